"use strict";
// A map that is dragged and zoomed: imagery in square tiles, and what the page draws over it. East is right, north is up.

class MapView {
  constructor(canvas, draw) {
    this.canvas = canvas;
    this.draw = draw;             // (context, view) after the imagery
    this.info = null;             // the map of /info.json
    this.east = 0; this.north = 0;
    this.scale = 4;               // pixels a metre
    this.tiles = new Map();       // "level/x/y" → Image, null where there is none
    this.onGrab = () => {};
    this.pointers = new Map();
    this.dirty = true;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event));
    canvas.addEventListener("dblclick", (event) => this.zoom(2, event.offsetX, event.offsetY));
    this.resize();
  }

  setInfo(info) { this.info = info; this.tiles.clear(); this.dirty = true; }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth; this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio); this.canvas.height = Math.round(this.height * ratio);
    this.dirty = true;
  }

  x(east) { return this.width / 2 + (east - this.east) * this.scale; }
  y(north) { return this.height / 2 - (north - this.north) * this.scale; }

  centre(east, north) {
    if (east === this.east && north === this.north) return;
    this.east = east; this.north = north; this.dirty = true;
  }

  show(west, south, east, north) {
    const margin = 60;
    this.scale = Math.min((this.width - margin) / Math.max(east - west, 20), (this.height - margin) / Math.max(north - south, 20));
    this.scale = Math.min(Math.max(this.scale, 0.002), 40);
    this.centre((west + east) / 2, (south + north) / 2);
    this.dirty = true;
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.scale;
    this.scale = Math.min(Math.max(before * factor, 0.002), 60);
    // The place under the pointer stays there.
    const shift = 1 / before - 1 / this.scale;
    this.east += (x - this.width / 2) * shift; this.north -= (y - this.height / 2) * shift;
    this.dirty = true;
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.canvas.classList.add("dragged");
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const [x, y] = [event.offsetX, event.offsetY];
    if (this.pointers.size === 1) {
      if (Math.hypot(x - last[0], y - last[1]) < 1) return;
      this.east -= (x - last[0]) / this.scale; this.north += (y - last[1]) / this.scale;
      this.onGrab();
    } else {
      const [, other] = [...this.pointers].find(([id]) => id !== event.pointerId);
      const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(x - other[0], y - other[1]);
      if (before > 0) this.zoom(after / before, (x + other[0]) / 2, (y + other[1]) / 2);
    }
    this.pointers.set(event.pointerId, [x, y]);
    this.dirty = true;
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    if (!this.pointers.size) this.canvas.classList.remove("dragged");
  }

  paint() {
    if (!this.dirty || !this.width) return;
    this.dirty = false;
    const ratio = window.devicePixelRatio || 1, context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#181818";
    context.fillRect(0, 0, this.width, this.height);
    if (this.info) this.paintTiles(context, ratio); else this.paintGrid(context);
    this.draw(context, this);
  }

  paintTiles(context, ratio) {
    const wanted = Math.round(Math.log2(1 / (this.scale * ratio * this.info.metres_per_pixel)));
    const level = Math.min(Math.max(wanted, 0), this.info.levels - 1);
    context.imageSmoothingQuality = "high";
    if (wanted > level + 2) { this.paintFootprint(context); return; }  // further out there is no imagery
    // What is there of the coarser levels lies underneath until the wanted one has come.
    const coarsest = Math.min(level + 3, this.info.levels - 1);
    for (let coarse = coarsest; coarse >= level; coarse--) this.paintLevel(context, coarse, coarse === level || coarse === coarsest);
  }

  paintLevel(context, level, load) {
    const side = this.info.metres_per_pixel * 2 ** level * this.info.tile_pixels;
    const [west, south, east, north] = this.info.bounds;
    const half = [this.width / 2 / this.scale, this.height / 2 / this.scale];
    const first = (low, bound) => Math.floor(Math.max(low, bound) / side), last = (high, bound) => Math.ceil(Math.min(high, bound) / side) - 1;
    for (let x = first(this.east - half[0], west); x <= last(this.east + half[0], east); x++) {
      for (let y = first(this.north - half[1], south); y <= last(this.north + half[1], north); y++) {
        const image = this.tile(`${level}/${x}/${y}`, load);
        if (!image || !image.complete || !image.naturalWidth) continue;
        const left = Math.round(this.x(x * side)), top = Math.round(this.y((y + 1) * side));
        context.drawImage(image, left, top, Math.round(this.x((x + 1) * side)) - left, Math.round(this.y(y * side)) - top);
      }
    }
  }

  tile(name, load) {
    let image = this.tiles.get(name);
    if (image !== undefined || !load) return image;
    image = new Image();
    image.onload = () => { this.dirty = true; };
    image.onerror = () => { this.tiles.set(name, null); setTimeout(() => this.tiles.delete(name), 10000); };
    image.src = `tiles/${name}.jpg?${this.info.key}`;
    this.tiles.set(name, image);
    if (this.tiles.size > 600) this.tiles.delete(this.tiles.keys().next().value);
    return image;
  }

  paintFootprint(context) {
    const [west, south, east, north] = this.info.bounds;
    context.fillStyle = "#2b3a33";
    context.fillRect(this.x(west), this.y(north), (east - west) * this.scale, (north - south) * this.scale);
  }

  paintGrid(context) {
    const step = this.barLength();
    context.strokeStyle = "#262c33"; context.lineWidth = 1; context.beginPath();
    const half = [this.width / 2 / this.scale, this.height / 2 / this.scale];
    for (let east = Math.ceil((this.east - half[0]) / step) * step; east < this.east + half[0]; east += step) {
      context.moveTo(this.x(east), 0); context.lineTo(this.x(east), this.height);
    }
    for (let north = Math.ceil((this.north - half[1]) / step) * step; north < this.north + half[1]; north += step) {
      context.moveTo(0, this.y(north)); context.lineTo(this.width, this.y(north));
    }
    context.stroke();
  }

  barLength() {  // metres: a round number that is about 100 pixels long
    const about = 100 / this.scale, power = 10 ** Math.floor(Math.log10(about));
    return power * [5, 2, 1].find((step) => step * power <= about);
  }
}
