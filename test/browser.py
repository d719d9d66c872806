"""A real headless Chromium, driven by the DevTools protocol over a pipe: no library, no port."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 60.0


def chromium() -> str:
    """The browser's program; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("no Chromium is installed")


class Browser:
    """One page of a browser with a profile of its own."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 860) -> None:
        read_ours, write_theirs = os.pipe()
        read_theirs, write_ours = os.pipe()
        command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--hide-scrollbars", "about:blank"]

        def place_pipes() -> None:
            """The protocol reads from descriptor 3 and writes to 4; neither may be overwritten before it is copied."""
            reader, writer = (fcntl.fcntl(pipe, fcntl.F_DUPFD, 100) for pipe in (read_theirs, write_theirs))
            os.dup2(reader, 3)
            os.dup2(writer, 4)

        self._process = subprocess.Popen(
            command,
            preexec_fn=place_pipes,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_theirs)
        os.close(write_theirs)
        self._out, self._in = os.fdopen(write_ours, "wb"), os.fdopen(read_ours, "rb")
        self._ids = itertools.count(1)
        self._session: str | None = None
        self._buffer = b""
        self.errors: list[str] = []
        """What the page wrote to the console as an error, and exceptions that nothing caught."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        self._out.close()
        self._in.close()

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true; while the page loads, its names are not there yet."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (value := self.evaluate(f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()")):
            assert time.monotonic() < deadline, f"never true: {expression}; {self.errors}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        left, top, width, height = self.box(selector)
        self.mouse(left + width / 2, top + height / 2)

    def box(self, selector: str) -> list[float]:
        """Left, top, width and height of an element on the page."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return list(self.evaluate(f"(box => [box.x, box.y, box.width, box.height])({box})"))

    def mouse(self, x: float, y: float, to: tuple[float, float] | None = None) -> None:
        """A click, or a drag to another place."""
        common = {"button": "left", "clickCount": 1}
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self._call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **common)
        if to is not None:
            x, y = to
            self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **common)

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = self._in.read1(1 << 16)  # type: ignore[attr-defined]
            assert chunk, "the browser has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
