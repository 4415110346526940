"""One node of the run's own Ray cluster: ``python -m npd_ascend.pipeline.ray_node RANK HOST:PORT ADDRESS``.

Keeps ``ray start --block`` alive for as long as stdin is open, so that Ray ends on this node with the process that
started it, however that ends. Ray says which nodes live, starts processes there and tells of their death; what the
devices are used for is not its affair, so it is told of none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

_GRACE_S = 10.0
_AGAIN_S = 2.0
_ENVIRONMENT = {
    "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES": "1",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "8000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
"""Ray leaves devices, priorities and memory alone (where that is short it would kill an actor, which takes little). A
node that does not answer is given up after some 40 seconds, and gives up a head that does not after 20."""


def resource(rank: int) -> str:
    """By which Ray knows a node."""
    return f"npd_node_{rank}"


_PORTS = (
    "node-manager",
    "object-manager",
    "runtime-env-agent",
    "dashboard-agent-grpc",
    "dashboard-agent-listen",
    "metrics-export",
)
"""Those that each node listens at, from behind the head's on: fixed ones can be opened in a firewall, and nodes that
start on one machine at the same time do not take each other's."""
_PROCESSES, _EACH = 3623, 200
"""So far behind the head's port begin those of the processes that Ray starts, and so many has each node."""


def last_up(address: str) -> str:
    """Where node 0 listens once all of its Ray is up: at its runtime-env agent's, which ``ray start`` waits for. Nodes
    of one machine that start before that may take each other's socket files.

    Args:
        address: of the head, ``host:port``.
    """
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1 + _PORTS.index('runtime-env-agent')}"


def command(rank: int, address: str, own: str = "") -> list[str]:
    """Ray's own command line: the head on node 0, a worker node elsewhere; ``own`` is this node's address."""
    port = int(address.rpartition(":")[2])
    where = ["--head", f"--port={port}", "--include-dashboard=false"]
    if rank:
        where = [f"--address={address}"]
    where += [f"--node-ip-address={own}"] if own else []
    where += [f"--{name}-port={at}" for at, name in enumerate(_PORTS, port + 1 + len(_PORTS) * rank)]
    first = port + _PROCESSES + _EACH * rank
    where += [f"--min-worker-port={first}", f"--max-worker-port={first + _EACH - 1}"]
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        *where,
        "--block",
        "--disable-usage-stats",
        "--num-cpus=1",
        f"--object-store-memory={80 << 20}",  # nothing is stored there
        f"--resources={json.dumps({resource(rank): 1})}",
    ]


class RayNode:
    """This node's part of the cluster, as a process that ends with this one.

    Args:
        rank: number of this node; node 0 is the head.
        address: of the head, ``host:port``.
        logs: folder for ``ray-node<rank>.log``.
        own: address of this node, empty for the one that Ray finds.
    """

    def __init__(self, rank: int, address: str, logs: Path, own: str = ""):
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"ray-node{rank}.log"
        argv = [sys.executable, "-m", "npd_ascend.pipeline.ray_node", str(rank), address, own]
        env: Mapping[str, str] = {**_ENVIRONMENT, **os.environ}
        with open(self.log, "ab") as out:
            self._since = out.tell()
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, start_new_session=True
            )

    @property
    def ready(self) -> bool:
        """Whether Ray has said that it runs on this node."""
        return b"Ray runtime started" in self.log.read_bytes()[self._since :]

    @property
    def alive(self) -> bool:
        """Whether Ray runs on this node, or tries to."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends Ray on this node."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(2 * _GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def main() -> None:
    """Entry of the process."""
    rank, address, own = sys.argv[1:4]
    gone = threading.Event()
    threading.Thread(target=_read, args=(gone,), daemon=True).start()
    while not gone.is_set():
        process = subprocess.Popen(
            command(int(rank), address, own), stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
        )
        while process.poll() is None and not gone.wait(0.2):
            pass
        _end(process)
        if int(rank) == 0 and not gone.is_set():
            sys.exit(process.returncode or 1)  # a head without its state is another cluster
        gone.wait(_AGAIN_S)  # the head may not be up yet, or again


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)  # Ray stops its processes of this node
        deadline = time.monotonic() + _GRACE_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _read(gone: threading.Event) -> None:
    sys.stdin.read()
    gone.set()


if __name__ == "__main__":
    main()
