"use strict";
// The page: what the server's journal says, as a past that can be scrolled, drawn on the map and in words.

const $ = (id) => document.getElementById(id);
const COLOURS = { fix: "#3ddc91", doubt: "#f6bd3f", lost: "#ff6370", fault: "#a397c9", none: "#8d9aa7", accent: "#4cc2ff" };
const NAMES = { fix: "fix", doubt: "not certain", lost: "lost or off the map", fault: "image cannot be used" };
const FAULTS = ["too_little_seen", "bad_stamp", "bad_prior", "no_heading", "rate_limit", "reset"];  // and all that end in _image
const ELLIPSE_95 = 2.4477;   // √χ²(95%, two degrees of freedom)
const TRAIL_MS = 30000;      // poses of so long are drawn behind the vehicle
const STALE_MS = 1500;       // a picture further from a frame than this is of another place
const WORD = { none: "waiting", rate_limit: "skipped" };

const past = { frames: [], keys: new Map(), poses: [], pictures: [], status: null, drive: 0, newest: -Infinity };
let info = null, selected = -1, live = true, follow = true, playing = false, playedAt = 0, playTime = 0, shown = null;

const isFault = (reason) => reason.endsWith("_image") || FAULTS.includes(reason);
const kindOf = (frame) => frame.fix ? "fix" : !frame.reason ? "none" : isFault(frame.reason) ? "fault"
  : ["lost", "off_map"].includes(frame.reason) ? "lost" : "doubt";
const number = (value, digits = 1) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const sigma = (c) => Math.sqrt((c[0] + c[2]) / 2 + Math.hypot((c[0] - c[2]) / 2, c[1]));

// -- past --------------------------------------------------------------------------------------------------------

function take(entries) {
  for (const entry of entries) {
    if (entry.kind === "frame") takeFrame(entry);
    else if (entry.kind === "pose") { keep(past.poses, entry, 4000); entry.drive = past.drive; }
    else if (entry.kind === "image") keep(past.pictures, entry, 700);
    else if (entry.kind === "status") { past.status = entry; shown = null; }
    else if (entry.kind === "map") loadInfo();
  }
  if (live && past.frames.length) select(past.frames.length - 1);
  dirty.timeline = map.dirty = true;
}

function keep(list, entry, limit) {
  list.push(entry);
  if (list.length > limit) list.splice(0, list.length - limit);
}

function takeFrame(entry) {
  // A bag that loops or a clock that is set back begins a drive of its own.
  if (entry.t < past.newest - 1000 && !past.keys.has(`${past.drive}:${entry.t}`)) { past.drive++; past.newest = -Infinity; }
  past.newest = Math.max(past.newest, entry.t);
  const key = `${past.drive}:${entry.t}`;
  const known = past.keys.get(key);
  if (known) { Object.assign(known, entry); shown = null; return; }
  const frame = { ...entry, drive: past.drive };
  past.keys.set(key, frame);
  past.frames.push(frame);
  $("empty").hidden = true;
}

function select(index, byHand = false) {
  index = Math.min(Math.max(index, 0), past.frames.length - 1);
  if (byHand) {
    live = info.mode === "live" && index === past.frames.length - 1;
    playTime = index;
  }
  if (index !== selected) { selected = index; shown = null; map.dirty = dirty.timeline = true; }
}

// -- map ------------------------------------------------------------------------------------------------------------

const map = new MapView($("map"), drawMap);
map.onGrab = () => setFollow(false);

function drawMap(context, view) {
  const frame = past.frames[selected];
  drawScale(view);
  if (!frame) return;
  drawPath(context, view, frame, (f) => f.truth, "rgba(0,0,0,.55)", 5);
  drawPath(context, view, frame, (f) => f.truth, "#ffffff", 2.2);
  drawFixes(context, view, frame);
  drawHypotheses(context, view, frame);
  if (frame.tile && !frame.fix) drawTile(context, view, frame.tile);
  const pose = poseAt(frame);
  if (pose) drawTrail(context, view, frame);
  if (frame.covariance) drawVehicle(context, view, frame, COLOURS[kindOf(frame)]);
  if (pose && live) drawVehicle(context, view, pose, COLOURS.accent);
}

function drawPath(context, view, frame, point, colour, width) {
  context.strokeStyle = colour; context.lineWidth = width; context.lineJoin = "round";
  context.beginPath();
  let open = false;
  for (const other of past.frames) {
    const place = other.drive === frame.drive && point(other);
    if (!place) { open = false; continue; }
    if (open) context.lineTo(view.x(place[0]), view.y(place[1])); else context.moveTo(view.x(place[0]), view.y(place[1]));
    open = true;
  }
  context.stroke();
}

function drawFixes(context, view, frame) {
  const end = live ? past.frames.length - 1 : selected;
  for (let index = 0; index <= end; index++) {
    const other = past.frames[index];
    if (!other.covariance || other.drive !== frame.drive) continue;
    const x = view.x(other.east), y = view.y(other.north);
    if (x < -9 || y < -9 || x > view.width + 9 || y > view.height + 9) continue;
    context.globalAlpha = Math.max(0.35, 1 - (end - index) / 150);
    context.fillStyle = COLOURS.fix;
    context.beginPath(); context.arc(x, y, 3, 0, 7); context.fill();
  }
  context.globalAlpha = 1;
}

function drawHypotheses(context, view, frame) {
  // The first of a fix is the fix itself, which has its ellipse.
  for (const [east, north, weight] of (frame.hypotheses ?? []).slice(frame.fix ? 1 : 0).reverse()) {
    if (weight < 0.002) continue;
    const x = view.x(east), y = view.y(north), radius = 5 + 17 * Math.sqrt(weight);
    context.beginPath(); context.arc(x, y, radius, 0, 7);
    context.fillStyle = `rgba(76, 194, 255, ${0.10 + 0.25 * weight})`; context.fill();
    context.lineWidth = 1.6; context.strokeStyle = "rgba(140, 216, 255, .95)"; context.stroke();
    if (weight < 0.985 && weight >= 0.02) text(context, `${Math.round(100 * weight)}%`, x + radius + 4, y + 4);
  }
}

function text(context, words, x, y) {
  context.font = "600 12px system-ui, sans-serif";
  context.lineWidth = 3; context.strokeStyle = "rgba(0,0,0,.75)"; context.strokeText(words, x, y);
  context.fillStyle = "#fff"; context.fillText(words, x, y);
}

function drawTile(context, view, [east, north]) {
  context.strokeStyle = "rgba(255,255,255,.6)"; context.setLineDash([3, 4]); context.lineWidth = 1.4;
  context.strokeRect(view.x(east) - 8, view.y(north) - 8, 16, 16);
  context.setLineDash([]);
}

function drawTrail(context, view, frame) {
  context.strokeStyle = COLOURS.accent; context.lineWidth = 2.4; context.lineJoin = "round"; context.beginPath();
  let last = null;
  for (const pose of past.poses) {
    if (pose.drive !== frame.drive || pose.east === undefined || Math.abs(frame.t - pose.t) > TRAIL_MS) continue;
    const x = view.x(pose.east), y = view.y(pose.north);
    // A correction is a step of the estimate and no way that the vehicle went.
    if (last && pose.t - last.t < 2000 && Math.hypot(pose.east - last.east, pose.north - last.north) < 20) context.lineTo(x, y);
    else context.moveTo(x, y);
    last = pose;
  }
  context.stroke();
}

function drawVehicle(context, view, place, colour) {
  const [ee, en, nn] = place.covariance, x = view.x(place.east), y = view.y(place.north);
  const mean = (ee + nn) / 2, gap = Math.hypot((ee - nn) / 2, en), turn = 0.5 * Math.atan2(2 * en, ee - nn);
  const [long, short] = [mean + gap, Math.max(mean - gap, 0)].map((v) => ELLIPSE_95 * Math.sqrt(v) * view.scale);
  context.beginPath(); context.ellipse(x, y, Math.max(long, 1), Math.max(short, 1), -turn, 0, 7);
  context.fillStyle = colour + "2e"; context.fill();
  context.lineWidth = 4; context.strokeStyle = "rgba(0,0,0,.5)"; context.stroke();
  context.lineWidth = 2; context.strokeStyle = colour; context.stroke();
  context.save();
  context.translate(x, y); context.rotate(-place.yaw);
  context.beginPath(); context.moveTo(15, 0); context.lineTo(-9, 8.5); context.lineTo(-5, 0); context.lineTo(-9, -8.5); context.closePath();
  context.fillStyle = colour; context.strokeStyle = "#0b0f13"; context.lineWidth = 2; context.fill(); context.stroke();
  context.restore();
}

function drawScale(view) {
  const metres = view.barLength();
  $("scale").firstElementChild.textContent = metres >= 1000 ? `${metres / 1000} km` : `${metres} m`;
  $("scale").lastElementChild.style.width = `${metres * view.scale}px`;
}

function poseAt(frame) {
  const pose = past.poses.at(-1);
  return live && pose && pose.drive === frame.drive && pose.covariance ? pose : null;
}

function centreOf(frame) {
  const pose = poseAt(frame);
  if (pose) return [pose.east, pose.north];
  if (frame.east !== undefined) return [frame.east, frame.north];
  const best = frame.hypotheses?.[0];
  return frame.truth ?? (best && best[2] > 0.5 ? best : null);
}

function showAll() {
  const places = [];
  for (const frame of past.frames) {
    if (frame.east !== undefined) places.push([frame.east, frame.north]);
    if (frame.truth) places.push(frame.truth);
  }
  if (!places.length && info?.map) { map.show(...info.map.bounds); return; }
  if (!places.length) return;
  const easts = places.map((p) => p[0]), norths = places.map((p) => p[1]);
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
  map.show(least(easts), least(norths), most(easts), most(norths));
}

function setFollow(on) {
  follow = on;
  $("follow").setAttribute("aria-pressed", on);
}

// -- words ----------------------------------------------------------------------------------------------------------

function describe() {
  const frame = past.frames[selected];
  if (shown === frame && frame) return;
  shown = frame;
  describeHealth();
  if (!frame) return;
  const kind = kindOf(frame), text = frame.text ?? "";
  $("state").textContent = (WORD[frame.reason ?? kind] ?? frame.reason ?? kind).replaceAll("_", " ");
  $("state").style.color = COLOURS[kind];
  $("now").style.borderLeftColor = COLOURS[kind];
  $("reason").textContent = frame.fix ? "" : text.replace(/^\w+: /, "");
  const rows = [];
  if (frame.east !== undefined) {
    rows.push(["east, north", `${number(frame.east)} m, ${number(frame.north)} m`]);
    if (frame.wgs84) rows.push(["latitude, longitude", frame.wgs84.map((v) => v.toFixed(6)).join("°, ") + "°"]);
    rows.push(["heading", `${number(((90 - frame.yaw * 180 / Math.PI) % 360 + 360) % 360, 0)}° from north`]);
    rows.push(["σ of the long axis", `${number(sigma(frame.covariance), 2)} m`]);
  }
  if (frame.ambiguity !== undefined) rows.push(["ambiguity", `${number(100 * frame.ambiguity, 2)}%`]);
  if (frame.truth && frame.east !== undefined)
    rows.push(["true error", `${number(Math.hypot(frame.east - frame.truth[0], frame.north - frame.truth[1]), 2)} m`]);
  replace($("values"), rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  describeHypotheses(frame.hypotheses ?? []);
  describeCamera(frame);
}

function describeHypotheses(hypotheses) {
  const rows = hypotheses.slice(0, 5).map(([east, north, weight], index) => {
    const row = element("li"), bar = element("div"), fill = element("i");
    bar.className = "bar"; fill.style.width = `${100 * weight}%`; bar.append(fill);
    row.title = `east ${number(east)} m, north ${number(north)} m`;
    row.append(element("b", `${index + 1}`), bar, element("span", `${number(100 * weight, weight > 0.1 ? 1 : 2)}%`));
    return row;
  });
  const rest = hypotheses.slice(5).reduce((sum, place) => sum + place[2], 0);
  if (hypotheses.length > 5) rows.push(element("li", `and ${hypotheses.length - 5} more, ${number(100 * rest, 2)}% together`, "none more"));
  if (!rows.length) rows.push(element("li", "none", "none more"));
  replace($("hypotheses"), rows);
}

function describeCamera(frame) {
  let best = frame.image === undefined || !info?.pictures ? null : { image: frame.image, t: frame.t };
  if (!best) for (const picture of past.pictures)
    if (Math.abs(picture.t - frame.t) <= STALE_MS && (!best || Math.abs(picture.t - frame.t) < Math.abs(best.t - frame.t))) best = picture;
  $("camera-part").hidden = !info?.pictures;
  $("camera").hidden = !best;
  $("camera-note").textContent = best ? "" : "no picture of this moment";
  if (best) showPicture(`images/${best.image}.jpg?${info.epoch}`);
}

// One picture at a time: where they come slower than the frames, each new one would end the loading of the last, and none be shown.
const picture = { wanted: "", loading: false };
$("camera").onload = $("camera").onerror = () => { picture.loading = false; showPicture(picture.wanted); };

function showPicture(source) {
  picture.wanted = source;
  if (picture.loading || $("camera").getAttribute("src") === source) return;
  picture.loading = true;
  $("camera").src = source;
}

function describeHealth() {
  $("health-part").hidden = !past.status;
  if (!past.status) return;
  const details = { camera: ["rate_hz", "Hz"], localization: ["fix_rate_hz", "Hz"] };
  replace($("health"), past.status.parts.map((part) => {
    const row = element("li"), light = element("i"), words = element("span", part.text), [key, unit] = details[part.name] ?? [];
    light.className = `l${part.level}`;
    const extra = [];
    if (key && part.values[key]) extra.push(`${part.values[key]} ${unit}`);
    if (part.values["latency_ms.arrival_to_fix"]) extra.push(`image to fix, ms: ${part.values["latency_ms.arrival_to_fix"]}`);
    for (const name of Object.keys(part.values).filter((name) => part.name === "inputs" && name.endsWith(".rate_hz")))
      extra.push(`${name.replace(".rate_hz", "")} ${part.values[name]} Hz`);
    if (extra.length) words.append(element("small", extra.join(" · ")));
    row.append(light, element("b", part.name), words);
    return row;
  }));
}

function element(tag, words = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = words;
  if (name) made.className = name;
  return made;
}

function replace(parent, children) { parent.replaceChildren(...children); }

// -- timeline ---------------------------------------------------------------------------------------------------

const dirty = { timeline: true };

function drawTimeline() {
  const canvas = $("timeline"), ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
  const context = canvas.getContext("2d"), frames = past.frames, count = frames.length;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#10161c"; context.fillRect(0, 0, width, height);
  const step = width / Math.max(count, 1), base = height - 4;
  for (let index = 0; index < count; index++) {
    const frame = frames[index], kind = kindOf(frame);
    context.fillStyle = COLOURS[kind];
    // Height: what is not known. 0.1 m is low, 100 m and more is high.
    const spread = frame.covariance ? Math.min(Math.max((Math.log10(sigma(frame.covariance)) + 1) / 3, 0.12), 1) : 1;
    context.globalAlpha = kind === "none" ? 0.4 : kind === "fix" ? 0.95 : 0.75;
    context.fillRect(index * step, base - spread * (base - 5), Math.max(step - (step > 4 ? 1 : 0), 0.6), spread * (base - 5));
    if (index && frame.drive !== frames[index - 1].drive) { context.globalAlpha = 1; context.fillStyle = "#fff"; context.fillRect(index * step - 1, 0, 2, height); }
  }
  context.globalAlpha = 1;
  if (count) {
    const x = Math.min((selected + 0.5) * step, width - 1);
    context.fillStyle = "#fff"; context.fillRect(x - 1, 0, 2, height);
    context.beginPath(); context.moveTo(x - 6, 0); context.lineTo(x + 6, 0); context.lineTo(x, 8); context.fill();
    const first = frames.find((frame) => frame.drive === frames[selected].drive), seconds = (frames[selected].t - first.t) / 1000;
    $("clock").textContent = `${clock(seconds)} · ${selected + 1} of ${count}`;
  }
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function scrub(event) {
  const box = $("timeline").getBoundingClientRect();
  setPlaying(false);
  select(Math.floor((event.clientX - box.left) / box.width * past.frames.length), true);
}

function setPlaying(on) {
  if (on && selected >= past.frames.length - 1) select(0, true);
  playing = on; playedAt = performance.now(); playTime = Math.max(selected, 0);
  if (on) live = false;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function playOn(now) {
  if (!playing) return;
  let budget = (now - playedAt) * Number($("speed").value);
  playedAt = now;
  let index = selected;
  while (index < past.frames.length - 1) {
    const gap = Math.min(Math.max(past.frames[index + 1].t - past.frames[index].t, 0), 5000);
    if ((past.carry ?? 0) + budget < gap) { past.carry = (past.carry ?? 0) + budget; break; }
    budget += (past.carry ?? 0) - gap; past.carry = 0; index++;
  }
  select(index);
  if (index >= past.frames.length - 1) setPlaying(false);
}

// -- running --------------------------------------------------------------------------------------------------------

function tick(now) {
  playOn(now);
  const frame = past.frames[selected];
  if (follow && frame) { const place = centreOf(frame); if (place) map.centre(place[0], place[1]); }
  map.paint();
  if (dirty.timeline) { drawTimeline(); dirty.timeline = false; }
  describe();
  $("live").setAttribute("aria-pressed", live);
  requestAnimationFrame(tick);
}

async function loadInfo() {
  const answer = await fetch("info.json");
  const fresh = await answer.json();
  if (info && fresh.epoch !== info.epoch) { location.reload(); return; }  // another server, another past
  const first = !info || info.map?.key !== fresh.map?.key;
  info = fresh;
  document.title = `${info.name} · UnifyGeo watch`;
  $("name").textContent = info.name;
  $("mode").textContent = info.mode;
  $("mode").classList.toggle("on", info.mode === "live");
  $("notes").textContent = [...info.notes, ...(info.map?.attributions ?? [])].join(" · ");
  $("live").hidden = info.mode !== "live";
  if (first) { map.setInfo(info.map); if (info.map && !past.frames.length) map.show(...info.map.bounds); }
  shown = null;
}

function listen() {
  const events = new EventSource("events");
  let begun = false;
  events.onmessage = (event) => {
    take(JSON.parse(event.data));
    if (!begun && past.frames.length) {
      begun = true;
      showAll();
      if (info.mode === "replay") { live = false; select(0, true); setFollow(false); }
      else map.scale = Math.max(map.scale, 4);
    }
  };
  events.addEventListener("end", () => events.close());
  events.onerror = () => { $("link").hidden = false; };
  events.onopen = () => { $("link").hidden = true; loadInfo(); };
}

function legend() {
  const rows = Object.entries(NAMES).map(([kind, name]) => {
    const row = element("li", name), dot = element("i");
    dot.style.background = COLOURS[kind]; row.prepend(dot);
    return row;
  });
  for (const [name, colour, mode] of [["ground truth", "#ffffff", "replay"], ["pose between images", COLOURS.accent, "live"]]) {
    if (info.mode !== mode) continue;
    const row = element("li", name), line = element("i");
    line.className = "line"; line.style.background = colour; row.prepend(line); rows.push(row);
  }
  replace($("legend"), rows);
}

$("zoom-in").onclick = () => map.zoom(1.6);
$("zoom-out").onclick = () => map.zoom(1 / 1.6);
$("whole").onclick = () => { setFollow(false); showAll(); };
$("follow").onclick = () => { setFollow(!follow); map.dirty = true; };
$("play").onclick = () => setPlaying(!playing);
$("live").onclick = () => { setPlaying(false); live = true; select(past.frames.length - 1); setFollow(true); };
$("timeline").onpointerdown = (event) => { $("timeline").setPointerCapture(event.pointerId); scrub(event); };
$("timeline").onpointermove = (event) => { if (event.buttons) scrub(event); };
new ResizeObserver(() => { dirty.timeline = true; }).observe($("timeline"));
document.onkeydown = (event) => {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    " ": () => setPlaying(!playing), l: () => $("live").click(), f: () => $("follow").click(), w: () => $("whole").click(),
    ArrowLeft: () => { setPlaying(false); select(selected - 1, true); }, ArrowRight: () => { setPlaying(false); select(selected + 1, true); },
    Home: () => { setPlaying(false); select(0, true); }, End: () => { setPlaying(false); select(past.frames.length - 1, true); },
    "+": () => map.zoom(1.6), "-": () => map.zoom(1 / 1.6),
  };
  const action = actions[event.key];
  if (action && !(event.key === " " && event.target.tagName === "BUTTON")) { event.preventDefault(); action(); }
};

loadInfo().then(() => { legend(); listen(); requestAnimationFrame(tick); });
