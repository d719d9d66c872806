"""The localizer node as a process of its own: started with parameters, watched, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Mapping

from unifygeo_ros.core.errors import EngineError

NODE_MODULE = "unifygeo_ros.ros.localizer_node"
STOP_TIMEOUT_S = 15.0


class NodeProcess:
    """`localizer_node` with its output in a file."""

    def __init__(
        self,
        parameters: Path,
        log: Path,
        *,
        overrides: Mapping[str, object] | None = None,
        remaps: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the node.

        Args:
            parameters: a ROS parameter file.
            log: takes the output.
            overrides: by parameter name.
            remaps: topic names, from → to.
            environment: on top of this process'.
        """
        arguments = [item for name, value in (overrides or {}).items() for item in ("-p", f"{name}:={_text(value)}")]
        arguments += [item for old, new in (remaps or {}).items() for item in ("-r", f"{old}:={new}")]
        command = [sys.executable, "-m", NODE_MODULE, "--ros-args", "--params-file", str(parameters), *arguments]
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RCUTILS_LOGGING_USE_STDOUT": "1", **(environment or {})},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(errors="replace")

    def check_alive(self) -> None:
        """Raises EngineError with the end of the log if the process has ended."""
        if (status := self._process.poll()) is not None:
            tail = "\n".join(self.output().splitlines()[-5:])
            raise EngineError(f"the node ended with status {status}; the end of {self._log}:\n{tail}")

    def wait(self, timeout_s: float) -> int:
        """Wait for the process to end, and return its status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end by a signal and return its status; killed, which the status tells, if it does not in time."""
        self._process.send_signal(number)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
