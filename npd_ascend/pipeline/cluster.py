"""Workers on other nodes, through Ray: which nodes live, starting there, death. The only file that imports Ray.

A worker elsewhere is the same process as here (``Here.start``), owned by an actor on its node; the actor passes
commands on and events back. When its node dies Ray says so, and the worker counts as dead; when this node dies Ray ends
the actors, and the workers go with them.
"""

from __future__ import annotations

import queue
import signal
import socket
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npd_ascend.config import Config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.nodes import Nodes, seconds
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline.launch import Crew, Here
from npd_ascend.pipeline.ray_node import RayNode, resource
from npd_ascend.progress import message
from npd_ascend.workers.local import Events, Worker

_HEAR_S = 1.0
_POLL_S = 0.5
_DUMP_S = 60.0


def wait_s() -> float:
    """How long nodes wait for each other (``NODE_WAIT_S``)."""
    return seconds("NODE_WAIT_S", 1800.0)


def place_s() -> float:
    """How long a worker's node may be away before the others go on without it (``NODE_PLACE_S``)."""
    return seconds("NODE_PLACE_S", 60.0)


class Place:
    """An actor on another node, which owns one worker there.

    Args:
        config: of the run.
        rank: number of the node.
        count, master, port: of ``Nodes``.
        crew: fields of the worker's crew.
        index: number of the worker.
    """

    def __init__(self, config: dict[str, Any], nodes: dict[str, Any], crew: dict[str, Any], index: int):
        settings = Config.model_validate(config)
        placement = Placement.of(settings, resolve_device(settings.device).target)
        here = Here(settings, placement, Nodes(**nodes), Environments.find(), Path(settings.run.dir) / "logs")
        self._events: Events = queue.Queue()
        self._worker = here.start(Crew(**crew), index, self._events)

    def where(self) -> str:
        """Host name, for people."""
        return socket.gethostname()

    def send(self, command: dict[str, Any]) -> None:
        """Passes a command on."""
        self._worker.send(command)

    def hear(self) -> list[dict[str, Any]]:
        """What the worker has said since the last call; waits a second for something. The last word is ``died``."""
        said = []
        try:
            said.append(self._told(self._events.get(timeout=_HEAR_S)[1]))
            while True:
                said.append(self._told(self._events.get_nowait()[1]))
        except queue.Empty:
            return said

    def dump(self) -> None:
        """Has the worker's stacks written to its log."""
        self._worker.dump()

    def _told(self, event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "why": self._worker.exit_reason()} if event["event"] == "died" else event


class Cluster:
    """The other nodes of a run, as the executor sees them.

    Args:
        config: of the run.
        nodes: how many there are; this is node 0.
        logs: folder for Ray's log.
    """

    def __init__(self, config: Config, nodes: Nodes, logs: Path):
        self._config, self._nodes, self._logs = config, nodes, logs
        self._head: RayNode | None = None

    def start(self) -> None:
        """Starts Ray on this node, and waits for the others.

        Raises:
            UserError: Ray is missing or does not start, a node does not come, or does not see the run directory.
        """
        try:
            import ray
        except ImportError:
            raise UserError(
                "a run on several nodes needs Ray in the MindSpore environment: pip install 'npd-ascend[ray]' there"
            ) from None
        self._ray: Any = ray
        deadline = time.monotonic() + wait_s()
        self._head = RayNode(0, self._nodes.ray, self._logs, self._nodes.address)
        while not self._head.ready:
            if not self._head.alive or time.monotonic() > deadline:
                raise UserError(f"Ray does not start at {self._nodes.ray}; see {self._head.log}")
            time.sleep(_POLL_S)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=self._nodes.ray,
                _node_ip_address=self._nodes.address or None,
                log_to_driver=False,
                logging_level="ERROR",
                namespace="npd",
            )
        except (ConnectionError, RuntimeError) as e:
            raise UserError(f"Ray does not answer at {self._nodes.ray} ({_line(e)}); see {self._head.log}") from None
        signal.signal(signal.SIGTERM, handler)  # Ray has set its own
        message(f"node 0 of {self._nodes.count}: waiting for the others at {self._nodes.ray}")
        while missing := [r for r in range(1, self._nodes.count) if not self.lives(r)]:
            if time.monotonic() > deadline:
                who = f"node {', '.join(map(str, missing))} of {self._nodes.count}"
                raise UserError(
                    f"{who} has not joined within {wait_s():g} s: start it with NODE_RANK={missing[0]} "
                    f"bash scripts/start_node.sh and the same configuration, and see that it reaches {self._nodes.ray}"
                )
            time.sleep(_POLL_S)
        self._check_shared()

    def close(self) -> None:
        """Ends all workers elsewhere, and Ray."""
        if self._head is not None:
            self._ray.shutdown()
            self._head.close()

    def lives(self, rank: int) -> bool:
        """Whether a node is there, as Ray sees it."""
        return any(n["Alive"] and resource(rank) in n["Resources"] for n in self._ray.nodes())

    def place(self, rank: int, crew: Crew, index: int) -> Any:
        """The actor of a worker, which starts when its node is there."""
        nodes = {**asdict(self._nodes), "rank": rank, "address": ""}
        return self._on(rank, Place).remote(self._config.model_dump(mode="json"), nodes, asdict(crew), index)

    def get(self, answer: Any, timeout: float | None = None) -> Any:
        """What an actor has answered, or None if it has not; raises what Ray does when it is gone."""
        try:
            return self._ray.get(answer, timeout=timeout)
        except self._ray.exceptions.GetTimeoutError:
            return None

    def give_up(self, actor: Any) -> None:
        """Ends an actor and its worker."""
        self._ray.kill(actor)

    def _check_shared(self) -> None:
        """Whether all nodes see this run's directory, by the path that jobs have."""
        token = self._logs / f".seen-{uuid.uuid4().hex}"
        token.write_text("")
        try:
            for rank in range(1, self._nodes.count):
                if not self._ray.get(self._task(rank).remote(str(token))):
                    raise UserError(
                        f"node {rank} does not see {self._logs.parent.resolve()}: run.dir must be on shared storage, "
                        "under the same path on every node"
                    )
        finally:
            token.unlink()

    def _on(self, rank: int, kind: type) -> Any:
        return self._ray.remote(kind).options(
            num_cpus=0, resources={resource(rank): 0.001}, max_restarts=0, max_task_retries=0, max_concurrency=4
        )

    def _task(self, rank: int) -> Any:
        return self._ray.remote(_sees).options(num_cpus=0, resources={resource(rank): 0.001}, max_retries=0)


class RemoteWorker:
    """A worker on another node, or a part of one that is spread; the interface of ``workers.local.Worker``."""

    def __init__(self, cluster: Cluster, rank: int, crew: Crew, index: int, log: Path, events: Events):
        self.index, self.log = index, log
        self.busy, self.why, self.heard, self.settled = False, "", time.monotonic(), False
        self.alive, self.placed = True, False
        self._cluster, self._rank, self._events, self._last = cluster, rank, events, "given up"
        self._actor = cluster.place(rank, crew, index)
        threading.Thread(target=self._serve, args=(crew.name.replace("_", " "),), daemon=True).start()

    def send(self, command: dict[str, Any]) -> None:
        """Hands it a command, as soon as it is there."""
        self._actor.send.remote(command)

    def wait(self, seconds: float) -> None:
        """Waits until it is gone, for a limited time."""
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.05)

    def dump(self) -> None:
        """Has its stacks written to its log."""
        try:
            self._cluster.get(self._actor.dump.remote(), _DUMP_S)
        except Exception:
            return  # its node does not answer, which is reason enough

    def kill(self) -> None:
        """Gives it up, and its actor. Whoever counts on its death hears of it."""
        self._end("died")

    def exit_reason(self) -> str:
        """How it ended."""
        return self._last

    def _serve(self, name: str) -> None:
        """Waits until it is there, and passes its events on until its end."""
        try:
            host = self._come()
            if host is None:
                return self._end("unplaced", text=f"node {self._rank} has been away for {place_s():g} s")
            self.placed = True
            message(f"{name} worker {self.index} is on node {self._rank} ({host})")
            while self.alive:
                for event in self._cluster.get(self._actor.hear.remote()):
                    if event["event"] == "died":
                        self._last = event["why"]
                        return self._end("died")
                    self._events.put((self, event))
        except Exception as e:  # the actor is gone: its process, its node, or the network to it
            self._last = f"node {self._rank} is lost to Ray ({type(e).__name__})"
            if self._cluster.lives(self._rank):
                self._last = f"lost on node {self._rank}: {_line(e)}"
            self._end("died")

    def _come(self) -> str | None:
        """Host on which it has started; None: its node has been away for too long."""
        where, seen = self._actor.where.remote(), time.monotonic()
        while time.monotonic() - seen < place_s():
            if (host := self._cluster.get(where, _HEAR_S)) is not None:
                return str(host)
            if self._cluster.lives(self._rank):
                seen = time.monotonic()
        return None

    def _end(self, event: str, **fields: Any) -> None:
        alive, self.alive = self.alive, False
        self._cluster.give_up(self._actor)
        if alive:
            self._events.put((self, {"event": event, **fields}))


class SpreadWorker:
    """One worker whose ranks are on several nodes: it lives as long as all its parts do.

    Args:
        parts: one a node, that of this node first.
        events: where its events go.
    """

    placed = True

    def __init__(self, index: int, parts: list[Worker], heard: Events, events: Events):
        self.index, self.log = index, parts[0].log
        self.busy, self.why, self.heard, self.settled = False, "", time.monotonic(), False
        self._parts, self._events = parts, events
        self._last = "given up"
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    @property
    def alive(self) -> bool:
        return all(p.alive for p in self._parts)

    def send(self, command: dict[str, Any]) -> None:
        for part in self._parts:
            part.send(command)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for part in self._parts:
            part.wait(max(0.0, deadline - time.monotonic()))

    def dump(self) -> None:
        for part in self._parts:
            part.dump()

    def kill(self) -> None:
        for part in self._parts:
            part.kill()

    def exit_reason(self) -> str:
        return self._last

    def _listen(self, heard: Events) -> None:
        while True:
            part, event = heard.get()
            if event["event"] in ("died", "unplaced"):
                self.log, self._last = part.log, part.exit_reason()
                self.kill()
                return self._events.put((self, event))
            self._events.put((self, event))


def reachable(address: str) -> bool:
    """Whether something listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def hire(cluster: Cluster | None, here: Here, crew: Crew, index: int, events: Events) -> Worker:
    """Starts a worker where it belongs."""
    if cluster is None:
        return here.start(crew, index, events)

    def on(rank: int, events: Events) -> Worker:
        if rank == 0:
            return here.start(crew, index, events)
        return RemoteWorker(cluster, rank, crew, index, here.log(crew, index, rank), events)

    if not crew.spread:
        return on(crew.node(index, here.nodes), events)
    heard: Events = queue.Queue()
    return SpreadWorker(index, [on(rank, heard) for rank in range(here.nodes.count)], heard, events)


def _sees(path: str) -> bool:
    return Path(path).exists()


def _line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
