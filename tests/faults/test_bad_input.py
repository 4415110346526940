"""Over a hundred kinds of bad input: each meets one clear line, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from npd_ascend.config.load import load_config
from npd_ascend.config.schema import Section
from npd_ascend.data.compat import check_pair
from npd_ascend.data.prompts import read_prompts
from npd_ascend.data.stage import run as prepare
from npd_ascend.errors import EXIT_CORRUPT, EXIT_USER, CorruptShard, UserError
from npd_ascend.evaluate.stage import run as evaluate
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.pack.stage import run as pack
from npd_ascend.pipeline.checks import check_config, check_run_dir
from npd_ascend.report.build import build
from npd_ascend.select.stage import run as select
from npd_ascend.store.atomic import read_sealed, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import inside, model_fingerprint
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_shard import TopKReader
from npd_ascend.workers import jobfile

Act = Callable[[Any], Any]
ROWS: dict[str, tuple[Act, tuple[str, ...]]] = {}


def row(name: str, act: Act, *fragments: str) -> None:
    assert name not in ROWS, name
    ROWS[name] = (act, fragments)


# ---- configuration: one setting


def setting(key: str, value: Any, *fragments: str, **more: Any) -> None:
    def act(kit):
        for k, v in {key: value, **{k.replace("__", "."): v for k, v in more.items()}}.items():
            kit.set(k, v)
        kit.config()

    row(f"config {key}={str(value)[:30]} {more or ''}".strip(), act, "config.yaml", *fragments)


setting("trian.lr", 1, "unknown key trian", "did you mean train?")
setting("train.learning_rate", 1, "unknown key train.learning_rate")
setting("train.epoch", 1, "did you mean train.epochs?")
setting("train.loss.kd_wieght", 1, "did you mean train.loss.kd_weight?")
setting("data.prompt_feild", "q", "did you mean data.prompt_field?")
setting("train.lr", -1, "train.lr", "greater than 0")
setting("train.lr", "fast", "train.lr", "valid number")
setting("train.lr", float("nan"), "train.lr", "finite")
setting("train.epochs", float("inf"), "train.epochs", "finite")
setting("train.epochs", 0, "train.epochs", "greater than 0")
setting("train.loss", "kl", "train.loss", "section of settings")
setting("train.loss.kd_weight", 1.5, "train.loss.kd_weight", "less than or equal to 1")
setting("train.loss.topk_norm", "softmax", "train.loss.topk_norm", "teacher")
setting("train.loss.ce_labels", "reference", "rollout.source: reference")
setting("train.loss.ce_labels", "none", "nothing is left to train on", train__loss__kd_weight=0)
setting("train.loss.terms", {"forward_kl": 1}, "terms is set beside kd_weight", train__loss__kd_weight=0.5)
setting("train.loss.terms", {"forward_kl": "much"}, "train.loss.terms", "valid number")
setting("train.loss.terms", {"forward_kl": float("inf")}, "train.loss.terms", "finite")
setting("train.loss.terms", {"forward_kl": 0}, "nothing is left to train on")
setting("train.loss.terms", ["forward_kl"], "train.loss.terms", "dictionary")
setting("train.global_batch", 6, "not a multiple", train__micro_batch=4)
setting("train.min_lr", 1.0, "min_lr", "above lr")
setting("train.micro_batch", 0, "train.micro_batch")
setting("run.dir", None, "run.dir", "expected a path")
setting("run.dir", "a\0b", "run.dir", "no text or path may have")
setting("run.seed", -1, "run.seed")
setting("run.seed", 1 << 40, "run.seed")
setting("run", [], "run", "section of settings")
setting("models.teacher", 7, "models.teacher", "expected a path")
setting("models.trust_remote_code", "maybe", "true or false")
setting("data.prompts", "prompts.jsonl", "data.prompts", "expected a list")
setting("data.limit", 0, "data.limit")
setting("data.template", "jinja", "data.template")
setting("data.system", 3, "data.system", "quote it")
setting("rollout.greedy", False, "no path is left")
setting("rollout.samples", 200, "rollout.samples")
setting("rollout.top_p", 0, "rollout.top_p")
setting("rollout.max_new_tokens", 2.5, "rollout.max_new_tokens")
setting("rollout.stop_token_ids", [-1], "rollout.stop_token_ids")
setting("annotate.row_length", 100, "multiple of 16")
setting("annotate.value_bits", 4, "annotate.value_bits")
setting("select.metric", "none", "select.metric is called select.filter now; rename it")
setting("select.lower", 1.0, "nothing could be kept", select__upper=0.5)
setting("select.upper_quantile", 0.9, "keep one", select__upper=1.0)
setting("select.upper_quantile", 97, "select.upper_quantile")
setting("pack.too_long", "split", "pack.too_long")
setting("sync.epsilon", 0, "sync.epsilon")
setting("evaluate.prompts", ["e.jsonl"], "data.answer_field", data__answer_field=None)
setting("device.target", "gpu", "device.target")


# ---- configuration: the file, and overrides


def text(name: str, content: bytes, *fragments: str) -> None:
    def act(kit):
        kit.file.write_bytes(content)
        load_config(kit.file)

    row(f"config file {name}", act, "config.yaml", *fragments)


text("empty", b"", "expected sections")
text("a list", b"- 1\n", "expected sections", "list")
text("broken", b"run: [\n", "not valid YAML", "line")
text("not UTF-8", b"\xff\xfe\x00", "cannot be read")
text("Python object", b"run: !!python/object/apply:os.system [ls]\n", "not valid YAML")
text("impossible date", b"run: {dir: 2026-13-45}\n", "not valid YAML")
text("deep", b"[" * 5000, "nested too deeply")
text("number for a section", b"run: 1\nmodels: 2\ndata: 3\n", "run: expected a section", "2 more")
text("key of a number", b"1: 2\n", "Keys should be strings")
text("sections missing", b"run: {dir: r}\n", "models is missing", "data is missing")
row("config file missing", lambda k: load_config(k.root / "none.yaml"), "none.yaml", "No such file")
row("config file is a folder", lambda k: load_config(k.root), "cannot be read", "directory")
for item, said in {
    "train.lr": "expected section.key=value",
    "=3": "expected section.key=value",
    "train..lr=1": "expected section.key=value",
    "run.dir.x=1": "dir is a value, not a section",
    "train.lr=[": "not valid YAML",
    "run.dir=2026-13-45": "not valid YAML",
    "train.lr=abc": "train.lr",
    "a.b=1": "unknown key a",
}.items():
    row(f"--set {item}", lambda k, item=item: (k.config(), load_config(k.file, [item])), said)


# ---- prompts


def line(name: str, content: str | bytes, *fragments: str, **config: Any) -> None:
    def act(kit):
        data = content if isinstance(content, bytes) else content.encode()
        kit.prompts.write_bytes(b'{"prompt": "a", "answer": "b", "response": "r"}\n' + data + b"\n")
        job = kit.prepare_job(**config)
        list(read_prompts(job.files, job.settings, need_reference="response_field" in config, need_answer=True))

    row(f"prompt {name}", act, "prompts.jsonl, line 2", *fragments)


line("cut off", '{"prompt": "a"', "not valid JSON")
line("of single quotes", "{'prompt': 'a'}", "not valid JSON")
line("two objects", '{"prompt": "a"} {}', "not valid JSON")
line("a list", "[1]", "holds a list")
line("a number", "17", "holds a number")
line("deep", "[" * 100_000, "not usable JSON")
line("long number", '{"prompt": ' + "1" * 5000 + "}", "not usable JSON")
line("not UTF-8", b'{"prompt": "caf\xe9"}', "not UTF-8", "0xe9")
line("of another field", '{"title": "a"}', "no field 'prompt'", "'title'", "data.prompt_field")
line("null", '{"prompt": null}', "no field 'prompt'")
line("empty", '{"prompt": " "}', "the prompt is empty")
line("a number as text", '{"prompt": 3}', "is a number, expected text")
line("no messages", '{"prompt": []}', "is an empty list")
line("no content", '{"prompt": [{"role": "user"}]}', "no role and content")
line("ends with answer", '{"prompt": [{"role": "assistant", "content": "x"}]}', "ends with the assistant's turn")
line("half surrogate", '{"prompt": "\\ud83d"}', "half of a surrogate pair")
line("no answer", '{"prompt": "a"}', "no field 'answer'", "data.answer_field")
line("answer of another type", '{"prompt": "a", "answer": true}', "is true or false")
line(
    "empty response", '{"prompt": "a", "answer": "1", "response": ""}', "'response' is empty", response_field="response"
)
line(
    "messages for raw",
    '{"prompt": [{"role": "user", "content": "a"}], "answer": "1"}',
    "template is raw",
    template="raw",
)


def file(name: str, content: bytes, *fragments: str) -> None:
    def act(kit):
        path = kit.root / name
        path.write_bytes(content)
        job = kit.prepare_job(prompts=[path])
        list(read_prompts(job.files, job.settings))

    row(f"prompt file {name}", act, name, *fragments)


file("empty.jsonl", b"\n \n", "there are no rows")
file("utf16.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "not UTF-8")
file("cut.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 5000)[:-20], "cannot be read")
file("plain.jsonl.gz", b"plain text", "cannot be read")
file("no.parquet", b"PAR1 but not really", "not a readable Parquet file")
file("table.txt", b"prompt\na\n", "unknown kind of file")


def parquet(name: str, table: pa.Table, *fragments: str) -> None:
    def act(kit):
        pq.write_table(table, kit.root / "t.parquet")
        job = kit.prepare_job(prompts=[kit.root / "t.parquet"])
        list(read_prompts(job.files, job.settings))

    row(f"Parquet {name}", act, "t.parquet", *fragments)


parquet("without prompts", pa.table({"q": ["a"]}), "row 1", "no field 'prompt'")
parquet("of numbers", pa.table({"prompt": [1]}), "row 1", "is a number")
parquet("with a huge row", pa.table({"prompt": ["a", "b", "c" * (5 << 20)]}), "row 3", "more than 4 MB", "shorten")
parquet("with bytes in messages", pa.table({"prompt": [[{"role": "user", "content": b"a"}]]}), "row 1", "expected text")
line("too long", '{"prompt": "' + "a" * (5 << 20) + '"}', "more than 4 MB", "shorten")
parquet("without rows", pa.table({"prompt": pa.array([], pa.string())}), "there are no rows")
parquet("of bytes", pa.table({"prompt": [b"a"]}), "row 1", "expected text")
row("prompt file missing", lambda k: prepare(k.prepare_job(prompts=[k.root / "none.jsonl"])), "none.jsonl", "no such")
row(
    "prompt folder empty",
    lambda k: ((k.root / "e").mkdir(), prepare(k.prepare_job(prompts=[k.root / "e"]))),
    "no prompt files in this folder",
)
row("prompt file of a long name", lambda k: prepare(k.prepare_job(prompts=[k.root / ("x" * 300 + ".jsonl")])), "xxx")
row("no prompt files", lambda k: prepare(k.prepare_job(prompts=[])), "no prompt files are given")
row("all prompts too long", lambda k: prepare(k.prepare_job(max_prompt_tokens=1)), "data.max_prompt_tokens")
row("a prompt too long", lambda k: prepare(k.prepare_job(max_prompt_tokens=1, too_long="refuse")), "line 1", "raise it")


# ---- checkpoints and tokenizers


def spec(name: str, changes: dict[str, Any], *fragments: str) -> None:
    def act(kit):
        kit.edit(kit.student / "config.json", lambda c: c.update(changes))
        check_checkpoint(kit.student)

    row(f"checkpoint config {name}", act, "student", *fragments)


spec("of another family", {"model_type": "gpt2"}, "'gpt2' is not supported", "qwen2")
spec("without family", {"model_type": None}, "is not supported")
spec("with text for a count", {"hidden_size": "16"}, "hidden_size", "whole number")
spec("with no layers", {"num_hidden_layers": 0}, "num_hidden_layers")
spec("with odd heads", {"num_attention_heads": 3}, "not a multiple")
spec("with odd key heads", {"num_attention_heads": 4, "num_key_value_heads": 3}, "not a multiple")
spec("with odd head_dim", {"head_dim": 7}, "odd")
spec("with gelu", {"hidden_act": "gelu"}, "only silu")
spec("with dynamic rope", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'", "yarn")
spec("with rope of no factor", {"rope_scaling": {"type": "yarn"}}, "rope_scaling: factor is missing")
spec(
    "with rope of another type's key", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"
)
spec(
    "with two ropes",
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
    "two different models",
    "remove",
)
spec("of experts", {"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts", "supported are")
spec("of Gemma", {"model_type": "gemma2"}, "Gemma", "supported are")
spec("with a window", {"model_type": "mistral", "architectures": None, "sliding_window": 64}, "sliding_window is 64")
spec("with rope of text", {"rope_scaling": "yarn"}, "expected an object")
spec("with an end token outside", {"eos_token_id": 9999}, "expected token ids below")
spec("with eps zero", {"rms_norm_eps": 0}, "rms_norm_eps")
spec("with eps huge", {"rms_norm_eps": 10**400}, "rms_norm_eps")
spec(
    "of another class",
    {"architectures": ["Qwen2ForRewardModel"]},
    "architectures is ['Qwen2ForRewardModel']",
    "PanguEmbeddedForCausalLM",
)
spec("of text for a class", {"architectures": "PanguEmbeddedForCausalLM"}, "architectures is", "expected [")
spec("of a list as family", {"model_type": []}, "is not supported")
spec("of other shapes", {"intermediate_size": 32}, "has shape", "config.json asks for")
spec("of more layers", {"num_hidden_layers": 2}, "missing", "layers.1")
spec("of fewer heads", {"bias": False}, "not expected", "bias")


def tensors(change: Callable[[bytearray], bytes | bytearray | None]) -> Act:
    def act(kit):
        path = kit.student / "model.safetensors"
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data) or data)
        check_checkpoint(kit.student)

    return act


def header(change: Callable[[dict[str, Any]], None]) -> Act:
    def spoil(data):
        (n,) = struct.unpack("<Q", data[:8])
        head = json.loads(data[8 : 8 + n])
        change(head)
        new = json.dumps(head).encode()
        return struct.pack("<Q", len(new)) + new + data[8 + n :]

    return tensors(spoil)


def first(head: dict[str, Any]) -> dict[str, Any]:
    return next(v for k, v in head.items() if k != "__metadata__")


row("weights empty", tensors(lambda d: b"\0"), "damaged safetensors file", "fetch it again")
row("weights cut", tensors(lambda d: d[:-8]), "ends inside tensor")
row("weights header length", tensors(lambda d: b"\xff" * 8 + d[8:]), "longer than the file")
row("weights header not JSON", tensors(lambda d: d[:8] + b"!" + d[9:]), "damaged safetensors file")
row("weights a tensor unnamed", header(lambda h: h.pop("model.norm.weight")), "does not begin where", "fetch it again")
row("weights a tensor named twice", header(lambda h: h.update({"extra": first(h)})), "does not begin where")
row("weights with bytes after them", tensors(lambda d: d + b"1234"), "4 bytes follow its last tensor", "fetch it again")


def rewritten(change: Callable[[dict[str, np.ndarray]], None]) -> Act:
    """The weight file written anew by the public library, with other tensors."""

    def act(kit):
        path = kit.student / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        check_checkpoint(kit.student)

    return act


NORM = "model.norm.weight"
row("weights a tensor lost", rewritten(lambda t: t.pop(NORM)), f"missing: {NORM}")
row("weights a tensor more", rewritten(lambda t: t.update(extra=t[NORM])), "not expected: extra")
row("weights of float64", rewritten(lambda t: t.update({NORM: t[NORM].astype(np.float64)})), NORM, "has dtype F64")
row("weights of integers", rewritten(lambda t: t.update({NORM: t[NORM].astype(np.int8)})), NORM, "has dtype I8")
row(
    "weights beside others",
    lambda k: (
        (k.student / "adapter_model.safetensors").write_bytes((k.student / "model.safetensors").read_bytes()),
        check_checkpoint(k.student),
    ),
    "adapter_model.safetensors",
    "move it out",
)
row("weights of unknown type", header(lambda h: first(h).update(dtype="F4")), "damaged safetensors file")
row("weights with bad offsets", header(lambda h: first(h).update(data_offsets=[0, 1 << 60])), "does not fit its shape")
row(
    "weights pickled",
    lambda k: ((k.student / "model.safetensors").rename(k.student / "pytorch_model.bin"), check_checkpoint(k.student)),
    "pickled weights",
    "refused",
)
row(
    "weights missing",
    lambda k: ((k.student / "model.safetensors").unlink(), check_checkpoint(k.student)),
    "neither model.safetensors nor",
)


def indexed(weight_map: Any) -> Act:
    def act(kit):
        (kit.student / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        check_checkpoint(kit.student)

    return act


row("weights index leads out", indexed({"a": "../../etc/passwd"}), "leads out of the folder")
row("weights index of a missing file", indexed({"a": "model-2.safetensors"}), "is missing; the index names it")
row("weights index of no files", indexed([1]), "not a safetensors index")
row("checkpoint missing", lambda k: check_checkpoint(k.root / "none"), "no config.json")
row(
    "checkpoint config not JSON",
    lambda k: ((k.student / "config.json").write_text("{"), check_checkpoint(k.student)),
    "config.json",
    "not readable as JSON",
)
row(
    "checkpoint config deep",
    lambda k: ((k.student / "config.json").write_text("[" * 100_000), check_checkpoint(k.student)),
    "config.json",
    "not readable as JSON",
)
row("weights header deep", tensors(lambda d: struct.pack("<Q", 100_000) + b"[" * 100_000), "damaged safetensors file")
row(
    "checkpoint config a list",
    lambda k: ((k.student / "config.json").write_text("[]"), check_checkpoint(k.student)),
    "expected a JSON object",
)
row("fingerprint of no checkpoint", lambda k: model_fingerprint(k.root), "no config.json")


def pair(name: str, spoil: Act, *fragments: str) -> None:
    row(f"pair {name}", lambda k: (spoil(k), check_pair(k.teacher, k.student)), *fragments)


pair(
    "of different vocabularies",
    lambda k: k.edit(k.teacher / "tokenizer.json", lambda t: t["model"]["vocab"].update({"zzz": 76})),
    "different vocabularies",
)
pair(
    "of different chat formats",
    lambda k: [
        k.edit(k.student / "config.json", lambda c: c.update(eos_token_id=4)),
        k.edit(
            k.teacher / "tokenizer_config.json",
            lambda t: t.update(chat_template=t["chat_template"].replace("用户", "人类")),
        ),
    ],
    "different chat templates",
    "set data.chat_template",
)
pair(
    "with too few logits",
    lambda k: k.edit(k.student / "config.json", lambda c: c.update(vocab_size=50)),
    "logits cover 50 ids",
)
pair("without tokenizer", lambda k: [p.unlink() for p in k.student.glob("token*")], "none of tokenizer.json")
pair(
    "of a broken tokenizer",
    lambda k: [(f / "tokenizer.json").write_text("{}") for f in (k.student, k.teacher)],
    "tokenizer",
    "cannot be",
)


# ---- what is looked at before anything starts


def before(key: str, value: Any, *fragments: str, **more: Any) -> None:
    def act(kit):
        for k, v in {key: value, **{k.replace("__", "."): v for k, v in more.items()}}.items():
            kit.set(k, v)
        check_config(kit.config())

    row(f"start {key}={str(value)[:30]}", act, *fragments)


before("select.filter", "delta_idf", "no filter 'delta_idf'", "delta_ifd")
before("train.context_parallel", 4, "train.context_parallel 4 does not divide the", "choose a divisor of")
before("train.loss.divergence", "forward", "no loss term 'forward'", "did you mean forward_kl?")
before("train.loss.divergence", "jsd:2", "between 0 and 1", train__loss__topk_norm="tail")
before("train.loss.divergence", "reverse_kl", "topk_norm")
before("sync.at_epochs", [10], "not before the end")
before("sync.policy", "kll", "sync.policy: there is no sync policy 'kll'; did you mean kl?", "static")
before("sync.policy", "kl", "sync.lag_every above 0", sync__lag_every=0, sync__refreshes=1)
before("rollout.source", "teacher", "never changes: set sync.refreshes: 0", sync__refreshes=1)
before("train.loss.token_weight", "entropy", "no token weight 'entropy'")
before(
    "train.loss.token_weight",
    "surprisal_gate",
    "reads rollout log-probs",
    "rollout.source",
    rollout__source="reference",
    data__response_field="answer",
    sync__refreshes=0,
)
before("train.loss.terms", {"forwardkl": 1}, "train.loss.terms", "no loss term 'forwardkl'", "did you mean forward_kl?")
before("train.loss.terms", {"jsd:2": 1}, "between 0 and 1", train__loss__topk_norm="tail")
before("train.loss.terms", {"no_such_package:loss": 1}, "train.loss.terms", "there is no module 'no_such_package'")
before("annotate.k", 400, "annotate.k is 400", "320 ids")
HELD_OUT = {"evaluate__prompts": ["e.jsonl"]}
before("evaluate.checker", "regex", "evaluate.checker: there is no reward 'regex'", **HELD_OUT)
before("evaluate.checker_data", "none.json", "evaluate.checker_data none.json", "cannot be read", **HELD_OUT)


# ---- run directories


def run_dir(name: str, spoil: Act, *fragments: str) -> None:
    def act(kit):
        run = RunDir(kit.run)
        config = kit.config()
        run.lock()
        check_run_dir(config, run, redo=False)
        run.write_state(status="running")
        spoil(kit)
        check_run_dir(kit.config(), run, redo=False)

    row(f"run directory {name}", act, *fragments)


run_dir("of other settings", lambda k: k.set("select.upper", 0.5), "select.upper = auto, now 0.5", "--redo")
run_dir("of another format", lambda k: k.edit(k.run / "run.json", lambda s: s.update(schema=99)), "format version 99")
run_dir("with half a config", lambda k: (k.run / "config.yaml").write_text("run: ["), "damaged", "--redo")
run_dir("with an empty config", lambda k: (k.run / "config.yaml").write_text(""), "damaged", "--redo")
run_dir("with bytes for a config", lambda k: (k.run / "config.yaml").write_bytes(b"\xff\xfe"), "damaged")
run_dir("without its config", lambda k: (k.run / "config.yaml").unlink(), "not empty and not a run directory")
row("run directory is a file", lambda k: RunDir(k.prompts).lock(), "prompts.jsonl", "choose another run.dir")
row("run directory in use", lambda k: [r.lock() for r in (RunDir(k.run), RunDir(k.run))], "another run is at work")
row("report of no run", lambda k: build(k.root / "none"), "no run there")
for bad in ("/etc/passwd", "../x", "a/../../b"):
    row(f"name leads out {bad}", lambda k, bad=bad: inside(k.root, bad), "leads out of the folder")


# ---- the store


def store(name: str, spoil: Act, act: Act, *fragments: str) -> None:
    row(f"store {name}", lambda k: (k.data(), spoil(k), act(k)), *fragments)


def sealed(kit: Any, dataset: str, file: str, **changes: Any) -> None:
    path = kit.at(dataset) / file
    write_sealed(path, {k: v for k, v in {**read_sealed(path), **changes}.items() if v is not None})


def recorded(kit: Any, dataset: str, shard: int, **changes: Any) -> None:
    records = read_sealed(kit.at(dataset) / "manifest.json")["shards"]
    sealed(kit, dataset, "manifest.json", shards=[{**r, **changes} if r["index"] == shard else r for r in records])


def flip(path: Path, at: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def top(kit: Any) -> Any:
    return TopKReader(Dataset.open(kit.at("topk"), "topk")).read(0)


store(
    "manifest missing",
    lambda k: (k.at("scores_teacher") / "manifest.json").unlink(),
    lambda k: select(k.select_job()),
    "no finished scores",
)
store(
    "manifest cut",
    lambda k: os.truncate(k.at("rollouts") / "manifest.json", 90),
    lambda k: select(k.select_job()),
    "manifest.json is damaged",
    "same command",
)
store(
    "manifest flipped",
    lambda k: flip(k.at("rollouts") / "manifest.json", 40),
    lambda k: select(k.select_job()),
    "manifest.json is damaged",
)
store(
    "manifest without shards",
    lambda k: sealed(k, "rollouts", "manifest.json", shards=None),
    lambda k: select(k.select_job()),
    "manifest.json is damaged",
)
store(
    "manifest of another kind",
    lambda k: sealed(k, "rollouts", "manifest.json", kind="packs"),
    lambda k: select(k.select_job()),
    "holds packs, expected rollouts",
)
store(
    "manifest of another format",
    lambda k: sealed(k, "rollouts", "manifest.json", schema=7),
    lambda k: select(k.select_job()),
    "format version 7",
    "new run.dir",
)
store(
    "record of another size",
    lambda k: recorded(k, "rollouts", 1, bytes=1),
    lambda k: select(k.select_job()),
    "shard 1 is damaged",
    "same command",
)
store(
    "record of other inputs",
    lambda k: recorded(k, "rollouts", 0, fingerprint="x"),
    lambda k: select(k.select_job()),
    "shard 0 is damaged",
)
store(
    "record without meta",
    lambda k: recorded(k, "rollouts", 0, meta=None),
    lambda k: select(k.select_job()),
    "shard 0 is damaged",
)
store(
    "shard missing",
    lambda k: (k.at("rollouts") / "shard-00001.parquet").unlink(),
    lambda k: pack(k.pack_job()),
    "shard 1 is damaged",
)
store(
    "shard cut",
    lambda k: os.truncate(k.at("selection") / "shard-00000.parquet", 200),
    lambda k: pack(k.pack_job()),
    "shard 0 is damaged",
)
store(
    "shard flipped",
    lambda k: flip(k.at("prompts") / "shard-00000.parquet"),
    lambda k: pack(k.pack_job()),
    "checksum differs",
)
store(
    "top-k block flipped",
    lambda k: flip(k.at("topk") / "shard-00000.topk"),
    lambda k: (top(k), TopKReader(Dataset.open(k.at("topk"), "topk")).read(3)),
    "checksum of sample 3 differs",
)
store("top-k header flipped", lambda k: flip(k.at("topk") / "shard-00000.topk", 20), top, "header checksum differs")
store("top-k magic flipped", lambda k: flip(k.at("topk") / "shard-00000.topk", 0), top, "no top-k shard")
store("top-k index flipped", lambda k: flip(k.at("topk") / "shard-00000.topk", 95), top, "checksum differs")


# ---- stages whose inputs do not fit together, and job files

store(
    "scores of other samples",
    lambda k: Dataset(k.at("scores_teacher"), "scores", "scores_teacher").write_table(
        0, Dataset.open(k.at("scores_teacher"), "scores").read(1)
    ),
    lambda k: select(k.select_job()),
    "shard 0 row 0 is sample",
)
store("selection keeps none", lambda k: None, lambda k: select(k.select_job(upper=-9.0)), "keeps none of 8 samples")
store(
    "scores not made",
    lambda k: None,
    lambda k: select(k.select_job().model_copy(update={"quantities": {}})),
    "needs scores_student, scores_teacher",
)
store("unknown filter", lambda k: None, lambda k: select(k.select_job(filter="best")), "no filter 'best'")
store(
    "rows too short",
    lambda k: None,
    lambda k: pack(
        k.pack_job(row_length=16).model_copy(
            update={"settings": k.pack_job(row_length=16).settings.model_copy(update={"row_length": 4})}
        )
    ),
    "row_length 4",
)
store(
    "samples too long",
    lambda k: None,
    lambda k: pack(
        k.pack_job(too_long="refuse").model_copy(
            update={"settings": k.pack_job(too_long="refuse").settings.model_copy(update={"row_length": 8})}
        )
    ),
    "longer than",
)
store("checker unknown", lambda k: None, lambda k: evaluate(k.evaluate_job(checker="sympy")), "no reward 'sympy'")
store("checker without its data", lambda k: None, lambda k: evaluate(k.evaluate_job(checker="maze")), "checker_data")
store(
    "checker data not JSON",
    lambda k: (k.root / "m.json").write_text("{"),
    lambda k: evaluate(k.evaluate_job(checker="maze", checker_data=k.root / "m.json")),
    "not valid JSON",
)


def job(name: str, content: str, *fragments: str) -> None:
    def act(kit):
        (kit.root / "job.json").write_text(content)
        jobfile.read_job(kit.root / "job.json")

    row(f"job {name}", act, "job.json", *fragments)


job("not JSON", "{", "not a job")
job("a list", "[]", "not a job")
job("without stage", '{"job": {}}', "not a job")
job("of an unknown stage", '{"stage": "os", "job": {}}', "not a job")
job("of a stage by path", '{"stage": "../x", "job": {}}', "not a job")
job("without fields", '{"stage": "select", "job": {}}', "Field required")
job("with a field more", '{"stage": "select", "job": {"a": 1}}', "job file")
job("deep", "[" * 100_000, "not a job")
row("job missing", lambda k: jobfile.read_job(k.root / "none.json"), "none.json", "No such file")


# ---- the test


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_there_are_a_hundred_rows():
    assert len(ROWS) >= 100


@pytest.mark.parametrize("name", ROWS)
def test_one_clear_line(kit, name):
    act, fragments = ROWS[name]
    with pytest.raises(UserError) as caught:
        act(kit)
    said = str(caught.value)
    assert all(f in said for f in fragments), said
    assert said.strip() and "\n" not in said and len(said) < 600, said
    assert caught.value.exit_code == (EXIT_CORRUPT if isinstance(caught.value, CorruptShard) else EXIT_USER)
    left = files(kit.root)
    assert not [f for f in left if ".tmp-" in f]
    # What a stage was about to make is not there, not even in part.
    assert not [f for f in left if f.startswith(("d/selected", "d/packed", "d/prepared", "d/result"))]


def test_good_input_is_taken(kit):
    """The rows fail for what they spoil, not for what they have in common."""
    config = kit.config()
    check_config(config)
    run = RunDir(kit.run)
    run.lock()
    check_run_dir(config, run, redo=False)
    kit.data()
    prepare(kit.prepare_job())
    select(kit.select_job())
    pack(kit.pack_job())
    evaluate(kit.evaluate_job())
    assert np.isfinite(top(kit).logz).all()
    jobfile.write_job(kit.root / "job.json", "select", kit.select_job())
    stage, read = jobfile.read_job(kit.root / "job.json")
    assert stage.name == "select" and isinstance(read, Section) and read == kit.select_job()
