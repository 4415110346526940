"""Rollout workers on the nodes of a Ray cluster, as seen from the executor. Ray itself is in ``ray_driver.py``."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError

# What a worker on another machine gets of this one's environment; paths and devices are that machine's own.
_PASSED = ("VLLM_", "HF_", "TOKENIZERS_", "OMP_WAIT", "HCCL_")


class Cluster:
    """Hires workers anywhere in a Ray cluster.

    Args:
        python: interpreter of the rollout environment, on every node under the same path.
        address: of the cluster, ``host:port``.
        logs: folder for ``ray-driver.log``.
        target: ``cpu`` or ``ascend``.
        tensor_parallel: NPUs a worker; they are of one node.
        threads: cores a worker (CPU).
        env: environment of the executor's children; some of it is passed on.
        command: argv of a worker in place of ``worker.py``.
    """

    def __init__(
        self,
        python: Path,
        address: str,
        logs: Path,
        *,
        target: str = "cpu",
        tensor_parallel: int = 1,
        threads: int = 1,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
    ):
        self._python, self._address, self._log = Path(python), address, Path(logs) / "ray-driver.log"
        self._needs = {
            "npus": tensor_parallel if target == "ascend" else 0,
            "cpus": 0 if target == "ascend" else threads,
        }
        self._env = {**os.environ, **(env or {})}
        self._passed = {k: v for k, v in self._env.items() if k.startswith(_PASSED)}
        self._command = list(command)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._workers: dict[int, RemoteWorker] = {}
        self._driver: subprocess.Popen[bytes] | None = None

    def hire(self, index: int, log: Path, events: queue.Queue[tuple[Any, dict[str, Any]]]) -> RemoteWorker:
        """A new worker on whatever node has room; its words come as ``events``, ``unplaced`` if none has."""
        worker = RemoteWorker(self, next(self._numbers), index, log, events)
        with self._lock:
            self._workers[worker.number] = worker
        self._start()
        self.tell(
            worker.number, "start", env=self._passed, log=str(log.resolve()), command=self._command, **self._needs
        )
        return worker

    def tell(self, number: int, do: str, **fields: Any) -> None:
        """Sends a command to the driver; a dead one is reported by its listener."""
        driver = self._driver
        if driver is None or driver.stdin is None:
            return
        try:
            with self._lock:
                driver.stdin.write((json.dumps({"seat": number, "do": do, **fields}) + "\n").encode())
                driver.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass

    def close(self) -> None:
        """Gives up all workers and leaves the cluster."""
        driver, self._driver = self._driver, None
        if driver is not None:
            assert driver.stdin is not None
            try:
                driver.stdin.close()
                driver.wait(5)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                pass
            try:
                os.killpg(driver.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            driver.wait()

    def _start(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self._log, "ab") as err:
                self._driver = subprocess.Popen(
                    [str(self._python), "-m", "npd_ascend.rollout.ray_driver", self._address],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    env=self._env,
                    start_new_session=True,
                )
        except OSError as e:
            raise UserError(f"{self._python}: cannot be started ({e.strerror}); run scripts/setup_env.sh") from None
        threading.Thread(target=self._listen, args=(self._driver,), daemon=True).start()

    def _listen(self, driver: subprocess.Popen[bytes]) -> None:
        assert driver.stdout is not None
        last = {"event": "died", "why": "the connection to the Ray cluster is gone"}
        with driver.stdout as stdout:
            for line in stdout:
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue  # a line torn by a kill
                if answer["seat"] is None:
                    last = answer["event"]  # no cluster: all workers hear why
                elif worker := self._find(answer["seat"]):
                    worker.take(answer["event"])
        with self._lock:
            left, self._workers = list(self._workers.values()), {}
        for worker in left:
            worker.take(last)

    def _find(self, number: int) -> RemoteWorker | None:
        with self._lock:
            return self._workers.get(number)

    def drop(self, number: int) -> None:
        """Forgets a worker that is gone."""
        with self._lock:
            self._workers.pop(number, None)


class RemoteWorker:
    """A worker in a cluster; the interface of ``local.Worker``."""

    def __init__(
        self, cluster: Cluster, number: int, index: int, log: Path, events: queue.Queue[tuple[Any, dict[str, Any]]]
    ):
        self.number, self.index, self.log = number, index, log
        self.busy, self.why, self.heard, self.settled = False, "", time.monotonic(), False
        self.alive = True
        self._cluster, self._events, self._last = cluster, events, "lost"

    def take(self, event: dict[str, Any]) -> None:
        """Passes an event on."""
        if event["event"] in ("died", "unplaced"):
            self.alive, self._last = False, str(event.get("why", ""))
            self._cluster.drop(self.number)
        self._events.put((self, event))

    def send(self, command: dict[str, Any]) -> None:
        """Hands it a command."""
        self._cluster.tell(self.number, "say", line=command)

    def wait(self, seconds: float) -> None:
        """Waits until it is gone, for a limited time."""
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.05)

    def kill(self) -> None:
        """Gives it up; its engine ends with its place. A pool that counts on its death hears of it."""
        if self.alive:
            self._cluster.tell(self.number, "kill")
            self.take({"event": "died", "why": "given up"})

    def exit_reason(self) -> str:
        """How it ended."""
        return self._last


class RayNode:
    """This node's part of the run's own Ray cluster; it ends with this process.

    Args:
        python: interpreter of the rollout environment.
        rank: number of this node; node 0 is the head.
        address: of the head, ``host:port``.
        logs: folder for ``ray-node<rank>.log``.
        cpus, npus: what rollout workers may use here.
        env: environment; on Ascend with the devices that rollouts may use.
    """

    def __init__(
        self, python: Path, rank: int, address: str, logs: Path, *, cpus: int, npus: int, env: Mapping[str, str]
    ):
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"ray-node{rank}.log"
        argv = [str(python), "-m", "npd_ascend.rollout.ray_node", str(rank), address, str(cpus), str(npus)]
        with open(self.log, "ab") as out:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=out, stderr=out, env=dict(env), start_new_session=True
            )

    def close(self) -> None:
        """Ends Ray on this node."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
