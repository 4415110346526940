"""openPangu-Embedded as it is released: the 7B's own files, and what is known of the 1B.

``tests/fixtures/openpangu_7b`` holds config, tokenizer config and weight index of the released folder, whose SHA-256
sums are those of its ``checklist.chk``.
"""

import hashlib
import json
from pathlib import Path

import pytest

from npd_ascend.config import load_config
from npd_ascend.errors import UserError
from npd_ascend.models.mapping import rules
from npd_ascend.models.rope import Rope
from npd_ascend.models.shapes import known_shape, known_shapes, shape_of
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import _BUFFER
from npd_ascend.ops.plan.devices import find_npu
from npd_ascend.ops.plan.memory import train_memory

RELEASED = Path(__file__).parents[1] / "fixtures" / "openpangu_7b"
SUMS = {
    "config.json": "8e300541888d68a6148d18720fa6b2df48f71e2e1606026d55b30af6dcb2ba37",
    "tokenizer_config.json": "acb88eac57f8765fedf34e9c10bc16d55c46f0902b0fea74fbf041daca2667ae",
    "model.safetensors.index.json": "9bf645e8399be6d99000eae64bd172b5c457d6d2c44d2257b47eb97a3c41aeda",
}


def names(spec):
    return [name for rule in rules(spec) for name in rule.hf]


@pytest.fixture(scope="module")
def spec():
    return ModelSpec.from_folder(RELEASED)


@pytest.mark.parametrize("name", SUMS)
def test_files_are_the_released_ones(name):
    assert hashlib.sha256((RELEASED / name).read_bytes()).hexdigest() == SUMS[name]


def test_config_of_the_7b(spec):
    assert (spec.model_type, spec.num_layers, spec.hidden_size, spec.intermediate_size) == (
        "PanguEmbedded",
        34,
        4096,
        12800,
    )
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (32, 8, 128, 153376)
    assert (spec.qkv_bias, spec.o_bias, spec.tie_embeddings, spec.qk_norm) == (True, True, False, False)
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (45892,), 0)
    assert spec.rope == Rope(16e6) and spec.rms_norm_eps == 1e-5 and spec.max_positions == 32768


def test_weight_index_of_the_7b(spec):
    """Every tensor has its rule and every rule its tensor; what else is there is a buffer of each layer, and the bytes
    add up to the last one."""
    index = json.loads((RELEASED / "model.safetensors.index.json").read_text())
    released = set(index["weight_map"])
    mine = set(names(spec))
    assert mine <= released and len(names(spec)) == len(mine) == 34 * 13 + 3
    buffers = released - mine
    assert len(buffers) == 34 and all(_BUFFER.fullmatch(name) for name in buffers)
    assert index["metadata"]["total_size"] == 2 * spec.parameters + 4 * 34 * 64


def test_known_shape_of_the_7b_is_the_released_one(spec):
    assert ModelSpec.from_config(known_shape("openPangu-Embedded-7B"), {}, "known") == spec


def test_the_1b_has_tied_embeddings_and_biases_of_four_projections():
    """A published conversion of it has 340 tensors in 26 blocks and none of an output layer."""
    spec = ModelSpec.from_config(known_shape("openPangu-Embedded-1B-SFT"), {}, "known")
    assert (spec.qkv_bias, spec.o_bias, spec.tie_embeddings) == (True, True, True)
    assert len(names(spec)) == 26 * 13 + 2 == 340 and "lm_head.weight" not in names(spec)
    assert spec.parameters == 1_155_912_192


def test_plan_and_configurations_follow(tmp_path):
    config = load_config(Path("configs/openpangu_1b_from_7b.yaml"))
    found, built_in = shape_of(config.models.student)
    assert built_in
    tied = ModelSpec.from_config(found, {}, "known")
    untied = ModelSpec.from_config({**found, "tie_word_embeddings": False}, {}, "known")
    npu = find_npu("910B2")
    needed = [train_memory(config, spec, npu, recompute=True).needed for spec in (untied, tied)]
    assert needed[0] - needed[1] == 20 * 153376 * 1536  # weights, two gradients, two moments in float32


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("openPangu-Embedded-1B", "openPangu-Embedded-1B"),
        ("openPangu-Embedded-1B-SFT", "openPangu-Embedded-1B"),
        ("Qwen2.5-Math-7B-Instruct", "Qwen2.5-Math-7B"),
        ("Qwen2.5-7B-Instruct", "Qwen2.5-7B"),
        ("Qwen2.5-7Bx", None),
        ("my-Qwen2.5-7B", None),
        ("Qwen2.5", None),
    ],
)
def test_names_with_and_without_a_suffix(name, known):
    assert known_shape(name) == (None if known is None else known_shapes()[known])


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("openPangu-Embedded-1B", 1.156),
        ("openPangu-Embedded-7B", 8.031),
        ("Qwen2.5-1.5B", 1.544),
        ("Qwen2.5-7B", 7.616),
        ("Qwen2.5-72B", 72.706),
        ("Qwen2.5-Math-1.5B", 1.544),
        ("Qwen2.5-Math-7B", 7.616),
        ("Qwen2.5-Coder-1.5B", 1.544),
        ("Qwen2.5-Coder-7B", 7.616),
    ],
)
def test_sizes_of_known_shapes(name, billions):
    """As the model cards have them."""
    config = known_shapes()[name]
    spec = ModelSpec.from_config(config, {}, name)
    assert spec.parameters / 1e9 == pytest.approx(billions, abs=5e-4)
    assert config.get("tokenizer_size", spec.vocab_size) <= spec.vocab_size


def test_a_folder_goes_before_its_name(tmp_path):
    folder = tmp_path / "Qwen2.5-7B"
    assert shape_of(folder)[1]
    folder.mkdir()
    with pytest.raises(UserError, match=r"no config\.json there"):
        shape_of(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    assert shape_of(folder) == ({"model_type": "qwen2"}, False)
