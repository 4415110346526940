"""What tests of several rooms share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from npd_ascend.ops.environments import Environments
from npd_ascend.pipeline.processes import free_port

PAGE = 4096

# The same examples everywhere, and none that fails because the machine is busy.
settings.register_profile("npd", deadline=None, derandomize=True, database=None)
settings.load_profile("npd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that two processes that share the files end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class Disk:
    """A small file system of its own."""

    def __init__(self, root: Path):
        self.root = root
        self._ballast = root / "ballast"

    def leave(self, pages: int) -> None:
        """Fills it up but for so many pages."""
        self.free()
        with open(self._ballast, "wb", buffering=0) as f:
            room = os.statvfs(self.root).f_bavail - pages
            os.posix_fallocate(f.fileno(), 0, max(room, 1) * PAGE)
        assert os.statvfs(self.root).f_bavail == pages

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def read_only(self, yes: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


_STARVED = """if True:
    import os, resource, sys
    import mindformers
    import mindspore as ms
    from npd_ascend.pipeline import child

    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    ms.nn.Dense(64, 64)(ms.Tensor([[1.0] * 64])).asnumpy()
    limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os._exit(child.main(sys.argv[1:2]))
"""


@pytest.fixture(scope="session")
def starved():
    """(job file, bytes) -> its process, which had so much memory beyond what MindSpore and its threads take.

    The limit is set when the engine has started: what that takes, and whether its threads find room, differs from
    machine to machine.
    """
    def run(job: Path, room: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", _STARVED, str(job), str(room)], capture_output=True, text=True)

    return run


@pytest.fixture
def under_msrun(tmp_path):
    """(processes, script, arguments) -> runs the script on so many processes, which must end well in time."""
    def run(processes: int, script: str, *args: Path, seconds: float = 550) -> None:
        (tmp_path / "rank.py").write_text(script)
        bin_dir, logs = Path(sys.executable).parent, tmp_path / "logs"
        got = subprocess.run(
            [bin_dir / "msrun", f"--worker_num={processes}", f"--local_worker_num={processes}", "--join=True",
             f"--master_port={free_port()}", f"--log_dir={logs}", str(tmp_path / "rank.py"), *map(str, args)],
            env={**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, timeout=seconds)
        said = "".join(p.read_text(errors="replace")[-2000:] for p in sorted(logs.glob("*.log")))
        assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-3000:] + said

    return run


@pytest.fixture(scope="session")
def loud_padding():
    """(checkpoint of one F32 file, vocabulary): the head's rows from there on get logits that no model could overlook,
    so what does not mask them is wrong by nats."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    def make(folder: Path, vocabulary: int) -> Path:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
        padding = head[vocabulary:]
        padding[:] = np.random.default_rng(0).standard_normal(padding.shape).astype(np.float32) * 4 * np.abs(head).max()
        save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="session")
def engines():
    """The interpreters of both engines; skips where one environment stands for both."""
    found = Environments.find()
    if found.mindspore == found.rollout:
        pytest.skip("needs both environments (scripts/setup_env.sh)")
    return found
