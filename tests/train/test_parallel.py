"""Two data-parallel processes under msrun end with the parameters of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.train.stage import run  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
RANK = """
import sys
from npd_ascend.config.jobs import TrainJob
from npd_ascend.train.stage import run
run(TrainJob.model_validate_json(open(sys.argv[1]).read()))
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes(world, rows_of, tensors_of, tmp_path):
    settings = {"epochs": 2.0, "lr": 3e-3, "min_lr": 3e-4, "global_batch": 4, "micro_batch": 1, "vocab_chunk_rows": 32}
    one = world.job("one", settings=settings)
    run(one)
    two = world.job("two", settings={**settings, "data_parallel": 2})
    (tmp_path / "job.json").write_text(two.model_dump_json())
    (tmp_path / "rank.py").write_text(RANK)
    bin_dir = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    got = subprocess.run(
        [bin_dir / "msrun", "--worker_num=2", "--local_worker_num=2", "--join=True", f"--master_port={free_port()}",
         f"--log_dir={tmp_path / 'logs'}", str(tmp_path / "rank.py"), str(tmp_path / "job.json")],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-3000:]
    for mine, other in zip(rows_of(two, "train"), rows_of(one, "train"), strict=True):
        for key in ("step", "progress", "lr", "tokens"):
            assert mine[key] == other[key]
        for key in ("loss", "ce", "kd", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5)
    lag = rows_of(two, "lag")
    assert lag[0]["forward"] == 0.0
    assert [r["forward"] for r in lag] == pytest.approx([r["forward"] for r in rows_of(one, "lag")], rel=1e-3)
    a, b = tensors_of(two.out / "next"), tensors_of(one.out / "next")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=2e-5, err_msg=name)
