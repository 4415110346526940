"""Device memory: sums by hand for a published shape, and the micro-batch that fits."""

import json

import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan import estimate
from npd_ascend.ops.plan.cuts import what_fits
from npd_ascend.ops.plan.devices import NPUS
from npd_ascend.ops.plan.memory import Memory, annotate_memory, max_device_memory, rollout_memory, train_memory
from npd_ascend.ops.plan.workload import Workload

NPU = NPUS["910B2"]


def test_training_state_of_the_1b(paper, shapes):
    spec = ModelSpec.from_folder(shapes["pangu1b"])
    m = train_memory(paper(), spec, NPU, recompute=True)
    # Weights, gradients twice, two moments in fp32, the head's gradient, a chunk of logits three times, the runtime.
    state = 20 * spec.parameters + 4 * 153376 * 1536 + 12 * 1024 * 153376 + 4e9
    assert m.fixed == pytest.approx(state)
    assert m.fits and m.budget == 58 * 2**30
    assert not train_memory(paper(), spec, NPU, recompute=False).fits
    tables = 153376 * 1536 * (1 if spec.tie_embeddings else 2)
    sharded = train_memory(paper(), spec, NPU, recompute=True, sharding=True)
    # Layers in bf16 and their gradients, embedding and head in fp32, an eighth of four fp32 values a weight.
    assert m.fixed - sharded.fixed == pytest.approx(
        20 * spec.parameters - 4 * (spec.parameters - tables) - 8 * tables - 2 * spec.parameters
    )
    cut = train_memory(paper(), spec, NPU, recompute=True, tensor_parallel=2)
    assert m.fixed - cut.fixed == pytest.approx((m.fixed - 4e9) / 2)
    rows = train_memory(paper(), spec, NPU, recompute=False, context_parallel=2, data_parallel=4)
    assert rows.fits and rows.fixed == m.fixed
    assert 2 * rows.a_row == train_memory(paper(), spec, NPU, recompute=False).a_row
    # Its ranks are copies among which the state is cut.
    assert (
        sharded.fixed
        == train_memory(paper(), spec, NPU, recompute=True, sharding=True, context_parallel=2, data_parallel=4).fixed
    )


def test_the_7b_student_needs_sharding(paper, shapes):
    spec = ModelSpec.from_folder(shapes["pangu7b"])
    assert train_memory(paper(), spec, NPU, recompute=True).largest == 0
    assert train_memory(paper(), spec, NPU, recompute=True, sharding=True, tensor_parallel=2, data_parallel=4).fits
    assert train_memory(paper(), spec, NPU, recompute=True, tensor_parallel=4).fits


def test_what_fits(paper, shapes):
    """No cut is named that heads or rows do not allow: the 1B has 6 key-value heads, the 7B 8."""
    small, large = (ModelSpec.from_folder(shapes[n]) for n in ("pangu1b", "pangu7b"))
    assert what_fits(paper(), small, NPU, 8) == (
        "with train.recompute: true 35 GB, which fits; train.context_parallel: 2 and train.data_parallel: 4 fit "
        "without it"
    )
    cut = what_fits(paper(), large, NPU, 8)
    assert cut == "train.recompute: true, train.optimizer_sharding: true, train.tensor_parallel: 2 would, on 8 devices"
    long = paper(pack={"row_length": 1 << 17})
    assert "train.tensor_parallel: 4, train.context_parallel: 2 would" in what_fits(long, large, NPU, 8)
    assert what_fits(paper(pack={"row_length": 1 << 21}), small, NPU, 8) == "a shorter pack.row_length would"


def test_the_72b_teacher_takes_four_devices(paper, shapes):
    (shapes["small"] / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen2",
                "vocab_size": 152064,
                "hidden_size": 8192,
                "intermediate_size": 29568,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
            }
        )
    )
    spec = ModelSpec.from_folder(shapes["small"])
    assert [annotate_memory(paper(), spec, NPU, n).fits for n in (1, 2, 4, 8)] == [False, False, True, True]


def test_largest_is_what_fits():
    m = Memory(fixed=10, a_row=3, budget=20, chosen=3, knob="k")
    assert m.largest == 3 and m.fits and m.needed == 19
    assert not Memory(10, 3, 20, 4, "k").fits
    assert Memory(30, 3, 20, 1, "k").largest == 0


def test_rollout_and_annotate(paper, shapes):
    small, large = (ModelSpec.from_folder(shapes[n]) for n in ("pangu1b", "pangu7b"))
    cache = rollout_memory(paper(), small, NPU, 2300)
    assert cache.a_row == 2300 * 26 * 2 * 6 * 128 * 2
    assert cache.budget == pytest.approx(0.9 * 64 * 2**30)
    a = annotate_memory(paper(), large, NPU)
    assert a.fixed == pytest.approx(2 * large.parameters + 12 * 1024 * 153376 + 4e9)
    assert a.largest >= 1
    assert annotate_memory(paper(annotate={"vocab_chunk_rows": 32768}), large, NPU).fixed > a.budget


@pytest.mark.parametrize("text,size", [("58GB", 58 * 2**30), (" 512 mb", 512 * 2**20), ("1.5GiB", 1.5 * 2**30)])
def test_sizes(text, size):
    assert max_device_memory(text) == size


@pytest.mark.parametrize("text", ["58", "lots", "GB", ""])
def test_bad_sizes(text):
    with pytest.raises(UserError, match="max_device_memory"):
        max_device_memory(text)


def test_a_32_gb_device_holds_less(paper):
    work = Workload(1e4, 300, 2000)
    large, small = (estimate(paper(), device=d, workload=work).stage("rollout").memory for d in ("910B2", "910B4"))
    assert small.largest < large.largest / 2
