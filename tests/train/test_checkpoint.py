"""Checkpoints on a disk that damages them: the one before serves, whatever was hit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import Parameter, Tensor  # noqa: E402

from npd_ascend.config.schema import TrainConfig  # noqa: E402
from npd_ascend.train.adamw import PARTS, AdamW  # noqa: E402
from npd_ascend.train.checkpoint import Checkpoints, State  # noqa: E402

pytestmark = pytest.mark.mindspore
FILES = ("state.json", *(f"{part}.safetensors" for part in PARTS))
DAMAGE = {
    "missing": None, "empty": lambda d: b"", "half": lambda d: d[: len(d) // 2], "two bytes short": lambda d: d[:-2],
    "zeros": lambda d: bytes(len(d)),
    **{f"bit at {x}": lambda d, x=x: d[: (at := int(x * (len(d) - 2)))] + bytes([d[at] ^ 4]) + d[at + 1 :]
       for x in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)},
}  # fmt: skip


def optimizer(seed):
    rng = np.random.default_rng(seed)
    params = [
        Parameter(Tensor(rng.standard_normal(shape).astype(np.float32)), name=f"p{i}")
        for i, shape in enumerate(((5, 3), (7,)))
    ]
    adamw = AdamW(params, TrainConfig())
    for p in (*adamw.m, *adamw.v):
        p.set_data(Tensor(rng.random(p.shape).astype(np.float32)))
    return adamw


def content(o):
    return [[np.array(o.whole(part, name)) for name in o.names] for part in PARTS]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Checkpoints of steps 3 and 6."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("checkpoints"), keep=9)
    for step in (3, 6):
        checkpoints.save(State(step, 0, step, step / 10, "f"), optimizer(step))
    return checkpoints


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_one_is_passed_over(sound, tmp_path, file, kind, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(sound.folder, folder)
    path = folder / "step-00000006" / file
    if DAMAGE[kind] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGE[kind](path.read_bytes()))
    checkpoints = Checkpoints(folder, keep=9)
    (state,) = checkpoints.valid()
    assert state.step == 3 and state.progress == 0.3
    assert "step-00000006 is damaged" in capsys.readouterr().err
    fresh = optimizer(99)
    checkpoints.load(state, fresh)
    for mine, want in zip(content(fresh), content(optimizer(3)), strict=True):
        for a, b in zip(mine, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_sound_ones_are_taken_newest_first(sound):
    assert [s.step for s in sound.valid()] == [6, 3]


def test_what_a_kill_leaves_of_one_does_not_count(sound, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(sound.folder, folder)
    (folder / "step-00000006").rename(folder / ".tmp-step-00000006-1")
    assert [s.step for s in Checkpoints(folder, keep=9).valid()] == [3]
