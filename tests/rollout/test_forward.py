"""The plain forward pass against transformers, and what is judged by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from npd_ascend.rollout.engine import set_environment  # noqa: E402

set_environment("cpu")  # read by torch when it is imported

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.rollout import forward  # noqa: E402
from npd_ascend.rollout.check import AnswerCheck, Verdict  # noqa: E402
from npd_ascend.rollout.forward import token_logprobs  # noqa: E402
from tests.rollout.families import FAMILIES, logprobs, write  # noqa: E402

IDS = [3, 100, 7, 55, 150, 9, 11, 130, 22, 22, 22]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(tmp_path, family, tied):
    model = write(tmp_path, family, tied, seed=0, layers=3)
    expected = logprobs(model, IDS).numpy()
    assert np.abs(token_logprobs(tmp_path, IDS) - expected).max() < 2e-5
    double = logprobs(model.double(), IDS).numpy()  # but for its norms, which stay float32
    assert np.abs(token_logprobs(tmp_path, IDS, torch.float64) - double).max() < 5e-6
    rounded = np.abs(token_logprobs(tmp_path, IDS, torch.bfloat16) - expected).max()
    assert 1e-4 < rounded < 0.5


def test_the_head_comes_in_pieces_and_weights_as_they_are_kept(tmp_path, monkeypatch):
    model = write(tmp_path, "qwen2", False, seed=1)
    whole = token_logprobs(tmp_path, IDS)
    kept = token_logprobs(tmp_path, IDS, stored=torch.bfloat16)
    monkeypatch.setattr(forward, "_HEAD_ROWS", 37)
    np.testing.assert_allclose(token_logprobs(tmp_path, IDS), whole, atol=1e-5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    np.testing.assert_allclose(kept, logprobs(model, IDS).numpy(), atol=2e-5)


def test_a_missing_tensor_is_named(tmp_path):
    write(tmp_path, "llama", False, seed=0)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="layers.1.mlp.up_proj.weight is missing"):
        token_logprobs(tmp_path, IDS)


@pytest.mark.parametrize(("vocab", "longest"), [(32, 2), (160, 3), (160, 4), (153376, 9), (151936, 4096)])
def test_the_request_fits_the_engine(vocab, longest):
    check = AnswerCheck(vocab, longest, "float32")
    assert 1 <= len(check.prompt) and 1 <= check.decoded and len(check.prompt) + check.decoded == min(longest, 16)
    assert all(0 <= i < vocab for i in [*check.prompt, check.forced])
    assert longest < 8 or max(check.prompt) - min(check.prompt) > vocab / 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """A checkpoint, the same after a small change of all weights, and one with hidden states in the ten thousands."""
    root = tmp_path_factory.mktemp("judged")
    model = write(root / "0", "llama", True, seed=0)
    for name, change in (("1", 0.01), ("2", 1.0)):
        with torch.no_grad():
            torch.manual_seed(1)
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.1 * change)
            if name == "2":
                model.model.embed_tokens.weight[:, 5] = 3e4
        model.save_pretrained(root / name)
    return [root / n for n in "012"]


def test_the_limit_is_ten_times_what_a_fresh_engine_shows(folders):
    check, ids = request(160, "float32")
    first, second = (token_logprobs(f, ids) for f in folders[:2])
    assert check.judge(folders[0], first + 3e-5) == Verdict(pytest.approx(3e-5), pytest.approx(3e-4))
    assert check.judge(folders[1], second + 2.9e-4).passed
    found = check.judge(folders[1], second + np.where(np.arange(len(second)) == 4, 4e-4, 0))
    assert not found.passed and found.difference == pytest.approx(4e-4, rel=0.01) and found.limit == pytest.approx(3e-4)
    assert not check.judge(folders[1], second * np.nan).passed


@pytest.mark.parametrize(("off", "passed"), [(2.9e-4, True), (5e-3, False)])
def test_a_fresh_engine_may_be_off_by_more(folders, off, passed):
    check, ids = request(160, "float32")
    found = check.judge(folders[0], token_logprobs(folders[0], ids) + off)
    assert found.passed is passed and 3e-4 <= found.limit * (1 + 1e-6) < 5e-3


@pytest.mark.parametrize("part", ["whole", "decoding", "prefill"])
def test_answers_that_did_not_move_are_told_within_the_limit(folders, part):
    """In bfloat16 a small update of the weights hides below ten times the rounding, and rounding is always new."""
    rng = np.random.default_rng(0)
    check, ids = request(160, "bfloat16")
    old, new = (token_logprobs(f, ids, torch.float32, torch.bfloat16) for f in folders[:2])
    moved = np.abs(old - new).max()
    first, healthy = (x + rng.uniform(-2, 2, len(old)) * moved for x in (old, new))
    stale = healthy.copy()
    n = len(check.prompt)
    where = {"whole": slice(None), "decoding": slice(n, None), "prefill": slice(n)}[part]
    stale[where] = first[where]
    assert check.judge(folders[0], first).passed and check.judge(folders[1], healthy).passed
    assert check.judge(folders[0], first).passed and check.judge(folders[0], first).passed  # the same weights again
    found = check.judge(folders[1], stale)
    assert found.difference < found.limit and found.unmoved and not found.passed


def test_models_that_rounding_upsets_are_not_suspected(folders):
    """Hidden states of 30,000: float32 alone is off by more than ten times what a tame model showed."""
    check, ids = request(160, "float32")
    check.judge(folders[0], token_logprobs(folders[0], ids))
    exact, rounded = token_logprobs(folders[2], ids, torch.float64), token_logprobs(folders[2], ids)
    assert np.abs(exact - rounded).max() > 1.5e-4
    found = check.judge(folders[2], exact)
    assert found.passed and 1e-4 < found.difference < found.limit
    assert not check.judge(folders[2], token_logprobs(folders[0], ids)).passed


def test_a_checkpoint_of_nans_is_the_users(tmp_path):
    model = write(tmp_path, "llama", True, seed=0)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    model.save_pretrained(tmp_path)
    check, ids = request(160, "float32")
    with pytest.raises(UserError, match="NaN"):
        check.judge(tmp_path, np.zeros(len(ids) - 1))


def request(vocab: int, dtype: str) -> tuple[AnswerCheck, list[int]]:
    check = AnswerCheck(vocab, 64, dtype)
    return check, check.prompt + [check.forced] * check.decoded
