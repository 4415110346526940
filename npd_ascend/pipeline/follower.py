"""The other nodes of a run: each joins the steps that node 0 conducts, as ``npd join CONFIG``.

A follower decides nothing. It watches ``<run>/nodes`` (see ``node_protocol.py``), starts its part of every step that
the executor opens, and leaves when the run ends. When the executor dies it stops what it has started and
waits for the next one, so that node 0 alone has to be started again.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import Environments, resolve_device
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline import launch
from npd_ascend.pipeline.child import read_job
from npd_ascend.pipeline.node_protocol import Heartbeat, HeartbeatWatch, report, stall_s, start_heartbeat, wait_s
from npd_ascend.pipeline.processes import Child, child_environment
from npd_ascend.progress import message
from npd_ascend.store.atomic import read_object
from npd_ascend.store.layout import RunDir

_POLL_S = 0.2
_TRIES = 50


@dataclass
class _Part:
    step: str
    order: str
    child: Child


@dataclass
class Follower:
    """One node that is not node 0.

    Attributes:
        config: the run's configuration, as node 0 has it.
        nodes: which node this is.
    """

    config: Config
    nodes: Nodes
    _parts: list[_Part] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _tries: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Follows until the run ends.

        Raises:
            UserError: no executor shows up, the run has failed, or this node lacks what its part needs.
        """
        self._dir = RunDir(self.config.run.dir)
        self._environments = Environments.find()
        self._placement = Placement.of(self.config, resolve_device(self.config.device).target)
        self._placement.check(self.config, self.nodes.count)
        ray = launch.ray_node(self.config, self._placement, self.nodes, self._environments.rollout, self._dir.logs)
        previous = signal.signal(signal.SIGTERM, _leave)
        try:
            while not self._follow(self._executor()):
                message(f"node {self.nodes.rank}: node 0 has fallen silent; waiting for another start", "warning")
        finally:
            if ray:
                ray.close()
            signal.signal(signal.SIGTERM, previous)

    def _executor(self) -> HeartbeatWatch:
        """Waits for a living executor."""
        pulse, patience = HeartbeatWatch(self._dir.nodes / "executor.json"), wait_s()
        message(f"node {self.nodes.rank} of {self.nodes.count}: waiting for node 0 in {self._dir.root}")
        while not (pulse.look().get("state") == "running" and pulse.alive):
            if pulse.silent > patience:
                raise UserError(
                    f"node {self.nodes.rank}: no run has begun in {self._dir.root.resolve()} within "
                    f"{patience:g} s; start node 0, and see that both find this directory under the same "
                    "path (run.dir must be on shared storage)"
                )
            time.sleep(_POLL_S)
        return pulse

    def _follow(self, pulse: HeartbeatWatch) -> bool:
        """Serves one executor; False when it has fallen silent."""
        run, stall = str(pulse.fields["run"]), stall_s()
        beat = start_heartbeat(self._dir.nodes, self.nodes.rank, run)
        try:
            while True:
                state = pulse.look()
                if pulse.silent > stall or state.get("run") != run:
                    return False
                if state.get("state") == "failed":
                    raise UserError(f"node {self.nodes.rank}: the run has ended on node 0: {state.get('error')}")
                if state.get("state") == "ended":
                    message(f"node {self.nodes.rank}: the run has ended")
                    return True
                self._serve(run)
                time.sleep(_POLL_S)
        finally:
            self._stop(beat)

    def _serve(self, run: str) -> None:
        for path in sorted(self._dir.nodes.glob("order-*.json")):
            order, step = read_object(path), path.stem.removeprefix("order-")
            if order.get("run") != run:
                continue
            if order.get("stop"):
                for part in (p for p in self._parts if p.order == order["id"]):
                    part.child.stop()
            elif order.get("open") and order["id"] not in self._seen:
                try:
                    self._join(step, str(order["id"]))
                except UserError as e:  # on shared storage the job may be seen later than the order
                    self._tries[order["id"]] = self._tries.get(order["id"], 0) + 1
                    if self._tries[order["id"]] < _TRIES:
                        continue
                    report(self._dir.nodes, step, self.nodes.rank, str(order["id"]), 2, str(e))
                self._seen.add(order["id"])
        for part in [p for p in self._parts if p.child.poll() is not None]:
            self._parts.remove(part)
            code = part.child.wait()
            words = ("out of memory: " if code and part.child.ran_out_of_memory() else "") + part.child.log_tail()
            report(self._dir.nodes, part.step, self.nodes.rank, part.order, code, words)

    def _join(self, step: str, order: str) -> None:
        path = self._dir.jobs / f"{step}.json"
        _, job = read_job(path)
        if self.nodes.rank not in launch.nodes_of(job, self.nodes):
            return
        python, name = self._environments.mindspore, f"{step}-node{self.nodes.rank}"
        env = child_environment(python, launch.progress_file(self._dir.logs, self.nodes.rank))
        env |= launch.environment(job, self._placement, self.nodes)
        logs = self._dir.logs
        command = launch.command(python, path, job, self.nodes, logs / f"{name}-ranks")
        message(f"node {self.nodes.rank}: joins {step}")
        child = Child(name, command, env, logs / f"{name}.log", launch.cores(job, self._placement))
        self._parts.append(_Part(step, order, child))

    def _stop(self, beat: Heartbeat) -> None:
        for part in self._parts:
            part.child.stop()
        self._parts.clear()
        beat.stop()


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
