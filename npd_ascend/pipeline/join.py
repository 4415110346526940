"""The other nodes of a run, ``npd join CONFIG``: each is a node of the run's Ray cluster, and nothing else.

Which workers are started there is decided on node 0. When node 0 dies the workers end with its Ray, and this node waits
for the next start; when the run ends, ``run.json`` in the shared run directory says how.
"""

from __future__ import annotations

import importlib.util
import signal
import time

from npd_ascend.config import Config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline.cluster import reachable, wait_s
from npd_ascend.pipeline.ray_node import RayNode, last_up
from npd_ascend.progress import message
from npd_ascend.store.layout import RunDir

_POLL_S = 0.5
_NEVER = object()


def join(config: Config, nodes: Nodes) -> None:
    """Lends this node to a run until that ends.

    Args:
        config: the run's configuration, as node 0 has it.
        nodes: which node this is.

    Raises:
        UserError: node 0 does not come, the run has failed, or this node lacks what its part needs.
    """
    Environments.find()
    Placement.of(config, resolve_device(config.device).target).check(config, nodes.count)
    if importlib.util.find_spec("ray") is None:
        raise UserError("no Ray in the MindSpore environment: pip install 'npd-ascend[ray]' there")
    run, me = RunDir(config.run.dir), f"node {nodes.rank}"
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        message(f"{me} of {nodes.count}: waiting for node 0 at {nodes.ray}")
        ended: object = _NEVER  # time at which the last run ended, when this node met the present one
        while _head_comes(nodes, run, ended):
            ended = run.read_state().get("ended") if ended is _NEVER else ended
            node = RayNode(nodes.rank, nodes.ray, run.logs, nodes.address)
            try:
                message(f"{me}: joins the run in {run.root}")
                while reachable(nodes.ray):
                    time.sleep(_POLL_S)
            finally:
                node.close()
            message(f"{me}: node 0 is gone")
        message(f"{me}: the run has ended")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _head_comes(nodes: Nodes, run: RunDir, ended: object) -> bool:
    """Waits until node 0's Ray is there; False when the run that this node met has come to its end instead.

    Raises:
        UserError: the run has failed, or node 0 does not come.
    """
    deadline = time.monotonic() + wait_s()
    while not reachable(last_up(nodes.ray)):
        state = run.read_state()
        if ended is not _NEVER and state.get("ended") != ended and state.get("status") != "running":
            if state.get("status") == "failed":
                raise UserError(f"node {nodes.rank}: the run has ended on node 0: {state.get('error')}")
            return False
        if time.monotonic() > deadline:
            raise UserError(
                f"node {nodes.rank}: node 0 has not been at {nodes.ray} within {wait_s():g} s; start it there, and "
                "see that this node reaches it"
            )
        time.sleep(_POLL_S)
    return True


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
