"""A place for a rollout worker on some node of a Ray cluster: an actor that starts the worker and relays its words.

The worker itself is the process of ``worker.py``, the same as on one node: the engine stays out of Ray's processes, and
a worker whose actor is gone ends because its stdin does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_HEAR_S = 1.0
COMMAND = (sys.executable, "-m", "npd_ascend.rollout.worker")


class WorkerActor:
    """Made by ``ray_driver`` with the devices that Ray has given it in ``ASCEND_RT_VISIBLE_DEVICES``.

    Args:
        env: added to the environment of the worker.
        log: file on shared storage that takes what the worker prints.
        command: argv of the worker; its own interpreter's ``worker.py`` when empty.
    """

    def __init__(self, env: dict[str, str], log: str, command: list[str]):
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as err:
            self._popen = subprocess.Popen(
                command or COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def where(self) -> str:
        """Host name and devices, for people."""
        devices = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
        return socket.gethostname() + (f", NPU {devices}" if devices else "")

    def say(self, command: dict[str, Any]) -> None:
        """Hands a command to the worker."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write((json.dumps(command) + "\n").encode())
            self._popen.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is dead, and the listener says so

    def hear(self) -> list[dict[str, Any]]:
        """What the worker has said since the last call; waits a second for something. The last word is ``died``."""
        said = []
        try:
            said.append(self._lines.get(timeout=_HEAR_S))
            while True:
                said.append(self._lines.get_nowait())
        except queue.Empty:
            return said

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            try:
                self._lines.put(json.loads(line))
            except ValueError:
                continue  # a line torn by a kill
        code = self._popen.wait()
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._lines.put({"event": "died", "why": why})
