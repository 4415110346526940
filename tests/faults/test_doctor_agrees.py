"""Doctor and run say the same of damaged checkpoints, tokenizers and prompts: each goes through both."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.ops.doctor.machine import Machine
from npd_ascend.ops.doctor.registry import Patient, checks
from npd_ascend.pipeline.executor import Executor


@pytest.fixture
def kit(kit, request):
    """With heads that vLLM serves; in one file, or in several."""
    shape = json.loads((kit.student / "config.json").read_text()) | {"head_dim": 32}
    for folder in (kit.student, kit.teacher):
        tokens = {p.name: p.read_bytes() for p in folder.glob("token*")}
        initial_checkpoint(folder, shape, shard_bytes=20_000 if getattr(request, "param", "") == "sharded" else 1 << 30)
        for name, content in tokens.items():
            (folder / name).write_bytes(content)
    return kit


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Any], Any]:
    def spoil(kit):
        path = kit.student / "model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path)

    return spoil


NORM = "model.norm.weight"


def pickled(kit):
    (kit.student / "model.safetensors").rename(kit.student / "pytorch_model.bin")


def template(text):
    return lambda k: [
        k.edit(f / "tokenizer_config.json", lambda c: c.update(chat_template=text)) for f in (k.student, k.teacher)
    ]


def tokenizer(name, text):
    return lambda k: [(f / name).write_text(text) for f in (k.student, k.teacher)]


def parquet(table):
    def spoil(kit):
        pq.write_table(table, kit.root / "t.parquet")
        kit.set("data.prompts", [str(kit.root / "t.parquet")])

    return spoil


DAMAGE = {
    "pickled": (pickled, "pickled weights"),
    "weights missing": (lambda k: (k.student / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "weights of the teacher missing": (lambda k: (k.teacher / "model.safetensors").unlink(), "teacher"),
    "cut off": (lambda k: os.truncate(k.student / "model.safetensors", 9000), "ends inside tensor"),
    "bytes behind": (lambda k: open(k.student / "model.safetensors", "ab").write(b"1234"), "follow its last tensor"),
    "a tensor lost": (tensors(lambda t: t.pop(NORM)), f"missing: {NORM}"),
    "a tensor more": (tensors(lambda t: t.update(extra=t[NORM])), "not expected: extra"),
    "another shape": (tensors(lambda t: t.update({NORM: t[NORM][:8]})), "has shape [8]"),
    "another type": (tensors(lambda t: t.update({NORM: t[NORM].astype(np.float64)})), "has dtype F64"),
    "a second file": (
        lambda k: shutil.copyfile(k.student / "model.safetensors", k.student / "x.safetensors"),
        "x.safetensors",
    ),
    "another class": (
        lambda k: k.edit(k.student / "config.json", lambda c: c.update(architectures=["GPT2Model"])),
        "architectures",
    ),
    "no config": (lambda k: (k.student / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda k: (k.student / "config.json").write_text("{"), "not readable as JSON"),
    "heads that vLLM lacks": (
        lambda k: initial_checkpoint(k.student, json.loads((k.student / "config.json").read_text()) | {"head_dim": 8}),
        "",
    ),
    "tokenizer cut off": (tokenizer("tokenizer.json", '{"version": "1.0"'), "tokenizer"),
    "tokenizer config not JSON": (tokenizer("tokenizer_config.json", "{"), "cannot be loaded"),
    "tokenizer missing": (lambda k: [p.unlink() for p in k.student.glob("token*")], "none of tokenizer.json"),
    "template of no syntax": (template("{{ "), "the chat template refuses"),
    "template without the answer": (template("{{ messages[0]['content'] }}"), "does not show the assistant's answer"),
    "template that eats memory": (template("{{ 'a' * 10**10 }}"), "1 GB of memory"),
    "prompts missing": (lambda k: k.prompts.unlink(), "no such file"),
    "a prompt line broken": (lambda k: k.prompts.write_text('{"prompt": "a", "answer": "b"}\n{"promp'), "line 2"),
    "no Parquet": (
        lambda k: (k.set("data.prompts", [str(k.root / "x.parquet")]), (k.root / "x.parquet").write_bytes(b"PAR1")),
        "not a readable Parquet file",
    ),
    "Parquet without prompts": (parquet(pa.table({"q": ["a"]})), "row 1: no field 'prompt'"),
    "too little disk": (lambda k: k.set("train.keep_checkpoints", 10**12), "disk: the run needs about"),
    "unknown filter": (lambda k: k.set("select.filter", "delta_idf"), "no filter 'delta_idf'"),
    "a cut that does not come out even": (lambda k: k.set("train.tensor_parallel", 3), "train.tensor_parallel 3"),
}
SHARDED = {
    "a shard missing": (lambda k: next(k.student.glob("*-00002-of-*")).unlink(), "is missing; the index names it"),
    "a shard cut off": (lambda k: os.truncate(next(k.student.glob("*-00002-of-*")), 900), "safetensors"),
    "index not JSON": (lambda k: (k.student / tensorfile.INDEX).write_text("{"), "not a safetensors index"),
    "index of a tensor that is not there": (
        lambda k: k.edit(
            k.student / tensorfile.INDEX, lambda i: i["weight_map"].update(ghost=next(iter(i["weight_map"].values())))
        ),
        "names ghost",
    ),
}


def both(kit) -> tuple[list[str], str | None]:
    """Errors of doctor; what run says before its second stage, None when nothing."""
    config, known = kit.config(), checks()
    patient = Patient(Machine({}), None, config)
    errors = [
        f.what for name in ("settings", "models", "prompts", "disk") for f in known[name](patient) if f.level == "error"
    ]
    try:
        Executor(config).run("prepare")
        return errors, None
    except UserError as e:
        return errors, str(e).removeprefix("prepare: ")


def agree(kit, damage: tuple[Callable[[Any], Any], str]) -> None:
    damage[0](kit)
    errors, said = both(kit)
    assert errors and any(damage[1] in e for e in errors), errors
    if damage[1]:  # else a later stage refuses it
        assert said in errors, (said, errors)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_of_one_file(kit, name):
    agree(kit, DAMAGE[name])


@pytest.mark.parametrize("kit", ["sharded"], indirect=True)
@pytest.mark.parametrize("name", SHARDED)
def test_of_shards(kit, name):
    assert len(list(kit.student.glob("*.safetensors"))) > 2
    agree(kit, SHARDED[name])


@pytest.mark.parametrize("kit", ["single", "sharded"], indirect=True)
def test_sound_inputs_are_taken_by_both(kit):
    assert both(kit) == ([], None)


def test_what_a_run_has_written_needs_no_more_room(kit):
    """A run that has filled the disk with its own data goes on."""
    from npd_ascend.ops.plan import check_room

    config = kit.config()
    needed, _ = check_room(config)
    (kit.run / "generations").mkdir(parents=True)
    with open(kit.run / "generations" / "data", "wb") as f:
        f.truncate(int(needed) - 1000)
    assert check_room(config)[0] == pytest.approx(1000, abs=1)
