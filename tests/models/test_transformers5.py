"""Checkpoints that transformers 5 has saved, and what is exported of them: readable by 4 and 5 alike."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from zoo.tokenizers_of import CHATML

from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models import hf_files
from npd_ascend.models.convert import convert
from npd_ascend.models.spec import ModelSpec
from tests.data.conftest import CORPUS
from tests.models.samples import IDS, TEXTS

HERE = Path(__file__).parent
TOKENIZERS = ("chatml", "bos")
# The layout of transformers 5.19, as ``test_layout`` shows: keys that version 4 does not write, or writes otherwise.
MODEL = {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
TOKENIZER = {
    "backend": "tokenizers",
    "tokenizer_class": "TokenizersBackend",
    "eos_token": "<|im_end|>",
    "extra_special_tokens": ["<tool>", "<|im_end|>"],
}


def tokenizer(folder, bos):
    """As version 4 saves one; with BOS in front of a text, or ChatML without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"],
        ),
    )
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    folder.mkdir(parents=True, exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"} if bos else {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast" if bos else "Qwen2Tokenizer",
                "pad_token": "<|endoftext|>",
                "additional_special_tokens": ["<|im_start|>"],
                **names,
            }
        )
    )
    return folder


def run(python, *args):
    subprocess.run(
        [python, HERE / "save_with_transformers5.py", *args],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )


@pytest.fixture
def by_hand(tmp_path, configs):
    """A checkpoint folder in that layout."""
    from npd_ascend.models.initial import initial_checkpoint

    folder = tmp_path / "by-hand"
    config = {k: v for k, v in configs["llama"].items() if k not in ("rope_theta", "torch_dtype")}
    initial_checkpoint(folder, {**config, "vocab_size": 320, **MODEL})
    tokenizer(folder, bos=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def test_spec(by_hand):
    spec = ModelSpec.from_folder(by_hand)
    assert (spec.rope.theta, spec.dtype) == (5e5, "bfloat16")


def test_tokenizer(by_hand, capfd):
    t = load_tokenizer(by_hand)
    assert (t.eos_token_id, t.chat_template) == (2, CHATML) and t.additional_special_tokens == TOKENIZER[
        "extra_special_tokens"
    ]
    assert t("a<|im_end|>")["input_ids"][-1] == 2 and t("<tool>")["input_ids"] == [t.convert_tokens_to_ids("<tool>")]
    assert "not the same type" not in capfd.readouterr().err


def test_a_generic_class_without_tokenizer_json_is_refused(by_hand):
    (by_hand / "tokenizer.json").unlink()
    (by_hand / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="TokenizersBackend") as e:
        load_tokenizer(by_hand)
    assert "\n" not in str(e.value)


def test_copy_is_read_by_both(by_hand, tmp_path):
    """The base of the rotary angles and the type stand under the old names as well, and the tokenizer has a class and
    tokens that version 4 knows."""
    from transformers import AutoConfig, AutoTokenizer

    convert(by_hand, tmp_path / "out", "float32")
    config, names = (json.loads((tmp_path / "out" / n).read_text()) for n in ("config.json", "tokenizer_config.json"))
    assert config["rope_parameters"] == MODEL["rope_parameters"] and config["rope_theta"] == 5e5
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert names["tokenizer_class"] == hf_files.GENERIC and "extra_special_tokens" not in names
    assert names["additional_special_tokens"] == TOKENIZER["extra_special_tokens"]
    read = AutoConfig.from_pretrained(tmp_path / "out")
    assert AutoConfig.from_pretrained(by_hand).rope_theta == 10000.0 and read.rope_theta == 5e5  # why it is needed
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == 2
    again = convert(tmp_path / "out", tmp_path / "again")
    assert (
        "parameters" in again
        and (tmp_path / "again/config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    )


@pytest.mark.parametrize(
    "scaling",
    [
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "linear", "factor": 2.0},
    ],
)
def test_scaling_is_read_by_both(tmp_path, configs, scaling):
    from transformers import AutoConfig

    new = {k: v for k, v in configs["llama"].items() if k != "rope_theta"}
    new |= {"rope_parameters": {**scaling, "rope_theta": 5e5}}
    copy = hf_files.shared_config(new)
    (tmp_path / "config.json").write_text(json.dumps(copy))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (
        config.rope_theta == 5e5
        and config.rope_scaling == scaling
        and copy["rope_parameters"] == new["rope_parameters"]
    )
    assert ModelSpec.from_folder(tmp_path).rope == ModelSpec.from_config(new, {}, "new").rope
    assert hf_files.shared_config(copy) == copy


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"torch_dtype": "float32", "rope_theta": 1e4},
        {"rope_parameters": None, "dtype": None},
        {"rope_parameters": {"rope_type": "default"}},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"additional_special_tokens": ["<a>"]},
    ],
)
def test_files_of_version_4_stay(config):
    assert hf_files.shared_config(config) == config and hf_files.shared_tokenizer_config(config) == config


def test_two_lists_of_tokens_become_one():
    found = hf_files.shared_tokenizer_config(
        {"additional_special_tokens": ["<a>"], "extra_special_tokens": ["<b>", "<a>"]}
    )
    assert found == {"additional_special_tokens": ["<a>", "<b>"]}


@pytest.mark.slow
@pytest.mark.mindspore
class TestSaved:
    """By transformers 5 itself, in the rollout environment."""

    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory, engines):
        root = tmp_path_factory.mktemp("saved")
        sources = [tokenizer(root / "sources" / name, name == "bos") for name in TOKENIZERS]
        run(engines.rollout, "save", root, *sources)
        names = ["llama", "qwen2", *(f"{n}{s}" for n in TOKENIZERS for s in ("", "-generic"))]
        run(engines.rollout, "read", *(x for n in names for x in (root / n, root / f"{n}.npz")))
        return root

    def test_layout(self, saved):
        """What the tests above are built from is what it writes."""
        config = json.loads((saved / "llama/config.json").read_text())
        assert {k: config[k] for k in MODEL} == MODEL
        assert not {"rope_theta", "rope_scaling", "torch_dtype"} & set(config)
        names = json.loads((saved / "chatml-generic/tokenizer_config.json").read_text())
        assert {k: names[k] for k in TOKENIZER} == TOKENIZER
        assert "chat_template" not in names and (saved / "chatml-generic/chat_template.jinja").is_file()
        assert not {"added_tokens_decoder", "additional_special_tokens"} & set(names)

    @pytest.mark.parametrize("name", [f"{n}{s}" for n in TOKENIZERS for s in ("", "-generic")])
    def test_tokenizers(self, saved, name):
        """Loaded in this environment: the same ids, special tokens and template."""
        theirs, t = np.load(saved / f"{name}.npz"), load_tokenizer(saved / name)
        tokens = [[t(x, add_special_tokens=s)["input_ids"] for x in TEXTS] for s in (True, False)]
        assert tokens == json.loads(str(theirs["tokens"])) and (t.chat_template or "") == str(theirs["template"])
        assert [t.bos_token, t.eos_token, t.pad_token, sorted(t.all_special_tokens)] == json.loads(
            str(theirs["special"])
        )

    @pytest.mark.parametrize("name", ["llama", "qwen2"])
    def test_models_and_their_export(self, saved, name, engines, tmp_path):
        """The logits of transformers 5, and again of the export; version 4 reads the export's base and type."""
        import mindspore as ms
        from transformers import AutoConfig

        from npd_ascend.config.job import Device
        from npd_ascend.models.network import build
        from npd_ascend.models.weights import load_hf, save_hf
        from npd_ascend.rows.collate import collate

        folder = saved / name
        spec = ModelSpec.from_folder(folder)
        net = build(spec, Device(), 16)
        load_hf(net, folder)
        hidden = net(*net.inputs(collate([[np.array(IDS)]], 16, 0, 1))).astype(ms.float32).asnumpy()
        want = np.load(saved / f"{name}.npz")["logits"]
        np.testing.assert_allclose(hidden[: len(IDS)] @ net.head_weight.asnumpy().T, want, atol=1e-4)
        save_hf(net, tmp_path / "export", folder)
        run(engines.rollout, "read", tmp_path / "export", tmp_path / "read.npz")
        read = np.load(tmp_path / "read.npz")
        np.testing.assert_array_equal(read["logits"], want)
        assert str(read["dtype"]) == "torch.bfloat16"
        config = AutoConfig.from_pretrained(tmp_path / "export")
        assert (config.rope_theta, config.dtype) == (spec.rope.theta, "bfloat16")
