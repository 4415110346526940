"""One node of the run's own Ray cluster: ``python -m npd_ascend.rollout.ray_node RANK HOST:PORT CPUS NPUS``.

Keeps ``ray start --block`` alive for as long as stdin is open, so that the cluster ends with the run however that ends,
also where this process is in a container that is entered with ``docker exec``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

_GRACE_S = 10.0
_AGAIN_S = 2.0


def command(rank: int, address: str, cpus: int, npus: int) -> list[str]:
    """Ray's own command line: the head on node 0, a worker node elsewhere."""
    where = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    if rank:
        where = [f"--address={address}"]
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        *where,
        "--block",
        "--disable-usage-stats",
        f"--num-cpus={cpus}",
        f"--resources={json.dumps({'NPU': npus} if npus else {})}",
    ]


def main() -> None:
    """Entry of the process."""
    rank, address, cpus, npus = sys.argv[1:5]
    if importlib.util.find_spec("ray") is None:
        print("error: no Ray in the rollout environment: pip install 'npd-ascend[ray]' there", file=sys.stderr)
        sys.exit(2)
    argv = command(int(rank), address, int(cpus), int(npus))
    gone = threading.Event()
    threading.Thread(target=_read, args=(sys.stdin, gone), daemon=True).start()
    while not gone.is_set():
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
        while process.poll() is None and not gone.wait(0.2):
            pass
        _end(process)
        if int(rank) == 0 and not gone.is_set():
            sys.exit(process.returncode or 1)  # a head without its state is another cluster
        gone.wait(_AGAIN_S)  # the head may not be up yet


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


def _read(stdin: IO[str], gone: threading.Event) -> None:
    stdin.read()
    gone.set()


if __name__ == "__main__":
    main()
