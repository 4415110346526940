"""Teacher and student must share token ids; everything else is refused with the difference named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npd_ascend.data.compat import check_pair
from npd_ascend.errors import UserError


@pytest.fixture
def pair(tmp_path, chatml):
    """Two checkpoint folders (config and tokenizer; weights do not matter here)."""
    for name in ("teacher", "student"):
        shutil.copytree(chatml, tmp_path / name)
        config(tmp_path / name)
    return tmp_path / "teacher", tmp_path / "student"


def config(folder: Path, vocab_size: int = 304) -> None:
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "hidden_size": 8,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "rope_theta": 10000.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu"}))


def edit(path: Path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_same_files_and_widths_that_differ_in_padding(pair):
    check_pair(*pair)
    config(pair[0], 320)
    check_pair(*pair)


def test_the_usual_case_does_not_import_transformers(pair):
    code = ("import sys; from npd_ascend.data.compat import check_pair; "
            f"check_pair({str(pair[0])!r}, {str(pair[1])!r}); assert 'transformers' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_logits_too_narrow(pair):
    config(pair[1], 299)
    with pytest.raises(UserError, match="logits cover 299 ids but the tokenizer .* has 300"):
        check_pair(*pair)


def test_same_vocabulary_in_other_words_is_accepted(pair):
    path = pair[0] / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    check_pair(*pair)


def test_vocabulary_differs(pair):
    def swap(tree):
        vocab = tree["model"]["vocab"]
        a, b = list(vocab)[10:12]
        vocab[a], vocab[b] = vocab[b], vocab[a]

    edit(pair[0] / "tokenizer.json", swap)
    with pytest.raises(UserError, match=r"different vocabularies \(2 tokens differ, first '.*': id 1\d and 1\d\)"):
        check_pair(*pair)


def test_merges_differ(pair):
    edit(pair[0] / "tokenizer.json", lambda tree: tree["model"].update(merges=[]))
    with pytest.raises(UserError, match="cut text differently"):
        check_pair(*pair)


def test_special_tokens_and_templates_differ(pair):
    original = (pair[0] / "tokenizer_config.json").read_text()
    edit(pair[0] / "tokenizer_config.json", lambda tree: tree.update(eos_token="<|endoftext|>"))
    with pytest.raises(UserError, match=r"different eos tokens \(ids 0 and 2\)"):
        check_pair(*pair)
    (pair[0] / "tokenizer_config.json").write_text(original.replace("assistant", "Assistant"))
    with pytest.raises(UserError, match="different chat templates"):
        check_pair(*pair)


def test_missing_files(pair, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pair[0] / name).unlink()
    check_pair(*pair)  # a teacher without tokenizer: only the widths can be compared
    with pytest.raises(UserError):
        check_pair(tmp_path / "gone", pair[1])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pair[1] / name).unlink()
    with pytest.raises(UserError, match="models.tokenizer"):
        check_pair(*pair)


def test_damaged_tokenizer(pair):
    for folder in pair:
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        check_pair(*pair)
