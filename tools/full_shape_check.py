"""Converts a random checkpoint of openPangu-Embedded-1B's full shape there and back, with one short forward pass.

    python tools/full_shape_check.py [--folder DIR] [--keep]

Run it with the MindSpore environment's interpreter. Needs 5 GB of disk and 12 GB of memory; prints the time of each
step and the peak memory, and fails when a file comes back changed or memory goes over the limit.
"""

from __future__ import annotations

import argparse
import filecmp
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from npd_ascend.models.shapes import known_shapes

CONFIG = known_shapes()["openPangu-Embedded-1B"]
LIMIT_GB = 12.0
ROW = 64


@contextmanager
def step(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{name:<40} {time.perf_counter() - start:7.1f} s   peak so far {peak_gb():5.2f} GB", flush=True)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="npd-full-shape-"))
    try:
        check(folder)
    finally:
        if not args.keep:
            for name in ("in", "out"):
                shutil.rmtree(folder / name, ignore_errors=True)


def check(folder: Path) -> None:
    from npd_ascend.models.initial import initial_checkpoint

    with step("write a random checkpoint (bf16, sharded)"):
        spec = initial_checkpoint(
            folder / "in", CONFIG, seed=0, dtype="BF16", norm_std=0.1, bias_std=0.02, shard_bytes=1_000_000_000
        )
    files = sorted(p.name for p in (folder / "in").iterdir())
    print(f"{spec.parameters / 1e9:.3f} billion weights in {len(files) - 2} files")
    with step("import MindSpore and MindFormers"):
        import mindspore as ms

        from npd_ascend.config.job import Device
        from npd_ascend.models.network import build
        from npd_ascend.models.weights import load_hf, save_hf
    with step("build the network (float32)"):
        net = build(spec, Device(), ROW)
    with step("load"):
        load_hf(net, folder / "in")
    with step(f"one forward pass over {ROW} tokens, compiled"):
        ids = np.random.default_rng(0).integers(0, spec.vocab_size, (1, ROW)).astype(np.int32)
        position = np.arange(ROW, dtype=np.int32)[None]
        hidden = net(ms.Tensor(ids), ms.Tensor(position), ms.Tensor(np.zeros_like(ids))).asnumpy()
    assert np.isfinite(hidden).all() and 0.5 < hidden.std() < 2, hidden.std()
    with step("save"):
        save_hf(net, folder / "out", folder / "in")
    same, different, lost = filecmp.cmpfiles(folder / "in", folder / "out", files, shallow=False)
    print(
        f"files equal byte for byte: {len(same)} of {len(files)}; peak memory {peak_gb():.2f} GB, "
        f"limit {LIMIT_GB:.0f} GB"
    )
    if different or lost or peak_gb() > LIMIT_GB:
        raise SystemExit(f"failed: changed {different}, lost {lost}")


if __name__ == "__main__":
    main()
