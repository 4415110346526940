"""How the executor and the other nodes talk: small files in ``<run>/nodes``, each with one writer.

    executor.json        {run, beat, state, error}: the executor lives as long as ``beat`` grows
    node-1.json           {run, beat, host}: so does node 1, and it has seen this run
    order-STEP.json       {run, id, stop}: join ``jobs/STEP.json``; ``stop``: leave it
    result-STEP-node-1.json   {id, code, words}: how node 1's part of that order ended

An order says only that a job is to be joined; what is run follows from the job as on the executor's own node. Clocks
are never compared: a beat is watched for change.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from npd_ascend import out_of_memory
from npd_ascend.errors import UserError
from npd_ascend.ops.nodes import Nodes, seconds
from npd_ascend.store.atomic import read_object, write_json

BEAT_S = 1.0
_POLL_S = 0.1


def wait_s() -> float:
    """How long nodes wait for each other at the start (``NODE_WAIT_S``)."""
    return seconds("NODE_WAIT_S", 1800.0)


def stall_s() -> float:
    """After how much silence a node is taken for dead (``NODE_STALL_S``)."""
    return seconds("NODE_STALL_S", 60.0)


class Heartbeat:
    """Rewrites a file once a second with a growing ``beat``, until stopped.

    Args:
        path: the file.
        fields: what is written beside the beat; ``update`` changes it.
    """

    def __init__(self, path: Path, **fields: Any):
        self.path, self._fields, self._count = path, fields, 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.update()
        self._thread = threading.Thread(target=self._run, name=f"beat {path.name}", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Writes now, with these fields changed."""
        with self._lock:
            self._fields.update(fields)
            self._count += 1
            write_json(self.path, {**self._fields, "beat": self._count, "pid": os.getpid()})

    def stop(self) -> None:
        """Writes no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.update()
            except OSError:
                continue  # a full or slow disk; the others see silence if it lasts


class HeartbeatWatch:
    """Watches another's beat."""

    def __init__(self, path: Path):
        self.path, self.fields = path, read_object(path)
        self._changed, self.alive = time.monotonic(), False

    def look(self) -> dict[str, Any]:
        """The file's content now; ``alive`` once it has changed while watched."""
        now = read_object(self.path)
        if now and now != self.fields:
            self.fields, self._changed, self.alive = now, time.monotonic(), True
        return self.fields

    @property
    def silent(self) -> float:
        """Seconds since it last changed."""
        return time.monotonic() - self._changed


class Running(Protocol):
    """What the runner needs of something that it started: a ``Child``, or one like it."""

    name: str
    log: Path

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def stop(self) -> None: ...
    def log_tail(self, lines: int = 1) -> str: ...
    def ran_out_of_memory(self) -> bool: ...


class Followers:
    """The other nodes, as the executor sees them.

    Args:
        folder: ``<run>/nodes``.
        nodes: how many there are.
    """

    def __init__(self, folder: Path, nodes: Nodes):
        self.folder, self.nodes, self.run = folder, nodes, uuid.uuid4().hex
        self.stall = stall_s()

    def start(self) -> None:
        """Waits until all nodes have seen this run.

        Raises:
            UserError: one does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in [*self.folder.glob("order-*.json"), *self.folder.glob("result-*.json")]:
            old.unlink(missing_ok=True)
        self._beat = Heartbeat(self.folder / "executor.json", run=self.run, state="running")
        self._pulses = {r: HeartbeatWatch(self.folder / f"node-{r}.json") for r in range(1, self.nodes.count)}
        deadline = time.monotonic() + wait_s()
        while missing := [r for r, p in self._pulses.items() if p.look().get("run") != self.run]:
            if time.monotonic() > deadline:
                self.stop("a node did not come")
                who = f"node {', '.join(map(str, missing))} of {self.nodes.count}"
                raise UserError(
                    f"{who} has not answered within {wait_s():g} s: start it with NODE_RANK={missing[0]} "
                    "bash scripts/start_node.sh and the same configuration, and see that it finds "
                    f"{self.folder.parent} under the same path (run.dir must be on shared storage)"
                )
            time.sleep(_POLL_S)

    def launch(self, step: str, node: int, log: Path) -> RemoteProcess:
        """Orders a node to join a step; its job file must stand."""
        path = self.folder / f"order-{step}.json"
        order = read_object(path)
        if order.get("run") != self.run or order.get("stop") or not order.get("open"):
            order = {"run": self.run, "id": uuid.uuid4().hex, "open": True, "stop": False}
            write_json(path, order)
        return RemoteProcess(self, step, node, order["id"], log)

    def silent(self, node: int) -> float:
        """Seconds since a node was last heard of."""
        self._pulses[node].look()
        return self._pulses[node].silent

    def close_order(self, step: str, stop: bool = False) -> None:
        """The step has ended; with ``stop`` nodes that still work on it leave it."""
        path = self.folder / f"order-{step}.json"
        order = read_object(path)
        if order.get("open") or (stop and not order.get("stop")):
            write_json(path, {**order, "open": False, "stop": stop})

    def stop(self, error: str = "") -> None:
        """Lets the nodes go; ``error``: why the run has not finished."""
        self._beat.stop()
        self._beat.update(state="failed" if error else "ended", error=error)


class RemoteProcess:
    """A step's part on another node; the interface of ``Child``."""

    def __init__(self, followers: Followers, step: str, node: int, order: str, log: Path):
        self.name, self.node, self.log = f"{step} on node {node}", node, log
        self._followers, self._step, self._order = followers, step, order
        self._result = followers.folder / f"result-{step}-node-{node}.json"
        self._ended: tuple[int, str] | None = None

    def poll(self) -> int | None:
        """Exit code; None while it runs. A node that falls silent counts as failed."""
        if self._ended is None:
            result = read_object(self._result)
            silent = self._followers.silent(self.node)
            if result.get("id") == self._order:
                self._ended = int(result["code"]), str(result.get("words", ""))
            elif silent > self._followers.stall:
                self._ended = 1, f"node {self.node} has not been heard of for {silent:.0f} s"
        return self._ended[0] if self._ended else None

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        while (code := self.poll()) is None:
            time.sleep(_POLL_S)
        return code

    def stop(self) -> None:
        """Asks the node to leave the step."""
        self._followers.close_order(self._step, stop=self.poll() is None)

    def log_tail(self, lines: int = 1) -> str:
        """Last line of its log, or why there is none."""
        return self._ended[1] if self._ended else ""

    def ran_out_of_memory(self) -> bool:
        """Whether its last words say so."""
        return out_of_memory.is_oom(self.log_tail())


class ProcessSet:
    """Parts of one step on several nodes: as long as one runs it runs, when one fails all are stopped."""

    def __init__(self, name: str, parts: list[Running]):
        self.name, self.parts, self.log = name, parts, parts[0].log
        self._failed: Running | None = None

    def poll(self) -> int | None:
        """Exit code of the part that failed first, 0 when all have ended well, None while any runs."""
        if self._failed is None:
            codes = [p.poll() for p in self.parts]
            if not any(codes):
                return 0 if all(c == 0 for c in codes) else None
            self._failed = next(p for p, c in zip(self.parts, codes, strict=True) if c)
            self.log = self._failed.log
            self.stop()
        return self._failed.poll()

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        while (code := self.poll()) is None:
            time.sleep(_POLL_S)
        return code

    def stop(self) -> None:
        """Stops every part."""
        for part in self.parts:
            part.stop()

    def log_tail(self, lines: int = 1) -> str:
        """Of the part that failed, or of the executor's own."""
        return (self._failed or self.parts[0]).log_tail(lines)

    def ran_out_of_memory(self) -> bool:
        """Whether the part that failed did."""
        return (self._failed or self.parts[0]).ran_out_of_memory()


def start_heartbeat(folder: Path, rank: int, run: str) -> Heartbeat:
    """Starts the beat of a follower."""
    return Heartbeat(folder / f"node-{rank}.json", run=run, host=socket.gethostname())


def report(folder: Path, step: str, rank: int, order: str, code: int, words: str) -> None:
    """Tells the executor how this node's part of an order ended."""
    write_json(folder / f"result-{step}-node-{rank}.json", {"id": order, "code": code, "words": words})
