"""``npd doctor`` on openPangu-Embedded folders as they are released: the 7B's own config, tokenizer config and weight
index, with a vocabulary of the released size and weight files that hold nothing."""

import json
import math
import shutil
import struct
from pathlib import Path

import pytest

from npd_ascend.config.load import parse_config
from npd_ascend.data.tokenizer import encode, load_tokenizer, tokenizer_size
from npd_ascend.models.mapping import rules
from npd_ascend.models.shapes import known_shape
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.doctor.machine import Machine
from npd_ascend.ops.doctor.registry import Patient, checks

proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

RELEASED = Path(__file__).parents[1] / "fixtures" / "openpangu_7b"
INDEX = "model.safetensors.index.json"
VOCABULARY = 153376
CHARACTERS = "▁0123456789abcdefghijklmnopqrstuvwxyz系统用户助手：你好"


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A SentencePiece model of the released size, with the added tokens at the released places."""
    added = {
        int(i): t["content"]
        for i, t in json.loads((RELEASED / "tokenizer_config.json").read_text())["added_tokens_decoder"].items()
    }
    kind = proto.ModelProto.SentencePiece
    model = proto.ModelProto()
    characters = iter(CHARACTERS)
    for i in range(VOCABULARY):
        piece = added.get(i) or next(characters, f"▁piece{i}")
        what = {0: kind.UNKNOWN, 1: kind.CONTROL, 2: kind.CONTROL}.get(
            i, kind.USER_DEFINED if i in added else kind.NORMAL
        )
        model.pieces.add(piece=piece, score=-float(i), type=what)
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.name = "identity"
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


def shapes(spec):
    return {name: shape for rule in rules(spec) for name, shape in zip(rule.hf, rule.shapes, strict=True)}


def holes(path, tensors):
    """A safetensors file with the right header and size, that takes no room."""
    layout, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"BF16": 2, "F32": 4}[dtype] * math.prod(shape)
        layout[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


@pytest.fixture
def teacher(tmp_path, vocabulary):
    """The 7B, in the four files of its index."""
    folder = tmp_path / "openPangu-Embedded-7B"
    folder.mkdir()
    for path in (*RELEASED.glob("*.json"), vocabulary):
        shutil.copy(path, folder)
    known = {name: ("BF16", shape) for name, shape in shapes(ModelSpec.from_folder(folder)).items()}
    files = {}
    for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items():
        # What has no rule are frequencies, which the network makes itself.
        files.setdefault(file, {})[name] = known.get(name, ("F32", (64,)))
    for file, tensors in files.items():
        holes(folder / file, tensors)
    return folder


@pytest.fixture
def student(tmp_path, vocabulary):
    """The 1B: tied, biases of four projections, in one file."""
    folder = tmp_path / "openPangu-Embedded-1B-SFT"
    folder.mkdir()
    shutil.copy(RELEASED / "tokenizer_config.json", folder)
    shutil.copy(vocabulary, folder)
    (folder / "config.json").write_text(json.dumps(known_shape(folder.name)))
    tensors = shapes(ModelSpec.from_folder(folder))
    assert len(tensors) == 340
    holes(folder / "model.safetensors", {name: ("BF16", shape) for name, shape in tensors.items()})
    return folder


@pytest.fixture
def said(tmp_path, teacher, student):
    """Findings of a check on the pair."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "48 + 24"}\n')
    config = parse_config(
        {
            "run": {"dir": str(tmp_path / "run")},
            "data": {"prompts": [str(tmp_path / "p.jsonl")]},
            "models": {"teacher": str(teacher), "student": str(student)},
        },
        "test",
    )
    return lambda name: checks()[name](Patient(Machine(), None, config))


def test_the_pair_is_taken(said):
    found = said("models")
    assert [f.level for f in found if f.level == "error"] == [], found
    assert "teacher and student fit together" in found[0].what


def test_the_tokenizer_speaks_the_released_ids(teacher):
    tokenizer = load_tokenizer(teacher)
    assert tokenizer_size(tokenizer) == VOCABULARY and tokenizer.eos_token_id == 45892
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "[unused9]系统：[unused10][unused9]用户：你好[unused10][unused9]助手："
    ids = encode(tokenizer, [text], special=True)[0]
    assert ids[:2] == [1, 45887] and ids.count(45892) == 2 and ids.count(45887) == 3


def test_a_file_of_the_index_is_missing(said, teacher):
    (teacher / "model-00003-of-00004.safetensors").unlink()
    (first, *_) = said("models")
    assert first.level == "error" and "model-00003-of-00004.safetensors" in first.what


def test_a_tied_checkpoint_with_a_head_of_its_own(said, student):
    """As if the 1B were the untied model that it is not."""
    config = json.loads((student / "config.json").read_text()) | {"tie_word_embeddings": False}
    (student / "config.json").write_text(json.dumps(config))
    (first, *_) = said("models")
    assert first.level == "error" and "missing: lm_head.weight" in first.what
