"""Every row of the table in docs/data.md: the data are laid out as people have them, read, and put through doctor and
run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from zoo import tokenizers_of

from npd_ascend.config.load import parse_config
from npd_ascend.config.schema import Config, DataConfig
from npd_ascend.data.prompts import PromptRow, measure, read_prompts
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.ops.inputs import check_prompts
from npd_ascend.pipeline.executor import Executor
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
PLAIN = [{"prompt": f"ask {i}", "response": f"say {i}", "answer": str(i)} for i in range(3)]
WANTED = [(f"ask {i}", f"say {i}") for i in range(3)]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@dataclass
class Laid:
    """Data as they lie on the disk, and what they say.

    Attributes:
        names: for ``data.prompts``.
        rows: (last user's turn, reference or None) of each row; of a trajectory the roles of its turns.
    """

    names: list[Any]
    rows: list[tuple[str, Any]]


SHAPES: dict[str, Callable[[Path, pytest.MonkeyPatch], Laid]] = {}


def shape(name: str) -> Callable[[Any], Any]:
    def add(lay):
        SHAPES[name] = lay
        return lay

    return add


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def put(path: Path, *rows: dict) -> Path:
    path.write_text(jsonl(list(rows)), encoding="utf-8")
    return path


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def separated(rows: list[dict], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def save_to_disk(folder: Path, rows: list[dict], files: int = 1) -> None:
    """What ``datasets.Dataset.save_to_disk`` leaves."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        part = table(rows[i * len(rows) // files : (i + 1) * len(rows) // files])
        with pa.ipc.new_stream(str(folder / name), part.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(
        json.dumps(
            {
                "_data_files": [{"filename": n} for n in names],
                "_fingerprint": "0123456789abcdef",
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            }
        )
    )
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "homepage": "", "license": ""}))


def hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, repository: str, files: dict[str, bytes], ref: str | None = "main"
) -> Path:
    """What ``hf download`` leaves: blobs, and a snapshot of links to them."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    home = cache / f"datasets--{repository.replace('/', '--')}"
    revision = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    if ref is not None:
        (home / "refs").mkdir(parents=True)
        (home / "refs" / ref).write_text(revision)
    (home / "blobs").mkdir(parents=True)
    for number, (name, content) in enumerate(files.items()):
        (home / "blobs" / f"{number:040x}").write_bytes(content)
        link = home / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + name.count("/")), "blobs", f"{number:040x}"))
    return home / "snapshots" / revision


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table(rows), sink)
    return sink.getvalue().to_pybytes()


# ---- files


@shape("json-lines")
def _(root, env):
    return Laid([put(root / "a.jsonl", *PLAIN[:2]), put(root / "b.json", *PLAIN[2:])], WANTED)


@shape("json-array")
def _(root, env):
    (root / "one.json").write_text(json.dumps(PLAIN[:1]))
    (root / "many.json").write_text("\n " + json.dumps(PLAIN[1:], indent=2) + "\n\n")
    return Laid([root / "one.json", root / "many.json"], WANTED)


@shape("compressed")
def _(root, env):
    (root / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(PLAIN[:1]).encode()))
    (root / "b.json.zst").write_bytes(zstd(json.dumps(PLAIN[1:2]).encode()))
    (root / "c.csv.zst").write_bytes(zstd(separated(PLAIN[2:]).encode()))
    return Laid([root], WANTED)


@shape("csv")
def _(root, env):
    rows = [{**r, "prompt": r["prompt"] + ', "or"\nso'} for r in PLAIN]
    (root / "a.csv").write_text(separated(rows[:2]), encoding="utf-8-sig")
    (root / "b.tsv").write_text(separated(rows[2:], "\t"))
    return Laid([root / "a.csv", root / "b.tsv"], [(f'{p}, "or"\nso', r) for p, r in WANTED])


@shape("parquet")
def _(root, env):
    (root / "a.parquet").write_bytes(parquet(PLAIN))
    return Laid([root / "a.parquet"], WANTED)


@shape("folder")
def _(root, env):
    (root / "b.parquet").write_bytes(parquet(PLAIN[2:]))
    put(root / "a.jsonl", *PLAIN[:2])
    (root / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (root / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.jsonl'\n---\n# Data\n")
    return Laid([root], WANTED)


@shape("saved")
def _(root, env):
    save_to_disk(root / "set", PLAIN, files=2)
    return Laid([root / "set"], WANTED)


@shape("saved-splits")
def _(root, env):
    for split, rows in (("train", PLAIN), ("held_out", PLAIN[1:])):
        save_to_disk(root / "set" / split, rows)
    (root / "set" / "dataset_dict.json").write_text('{"splits": ["train", "held_out"]}')
    return Laid([root / "set", f"{root / 'set'}:held_out"], WANTED + WANTED[1:])


@shape("hub")
def _(root, env):
    rows = [{"question": r["prompt"], "answer": r["response"]} for r in PLAIN]
    hub(
        env,
        root / "cache",
        "openai/gsm8k",
        {
            "main/train-00000-of-00002.parquet": parquet(rows[:1]),
            "main/train-00001-of-00002.parquet": parquet(rows[1:2]),
            "main/test-00000-of-00001.parquet": parquet(rows[2:]),
            "socratic/train-00000-of-00001.parquet": parquet(rows[1:]),
            "README.md": b"# GSM8K",
        },
    )
    return Laid(["hf:openai/gsm8k", "hf:openai/gsm8k:test", "hf:openai/gsm8k/socratic:train"], WANTED + WANTED[1:])


# ---- conversations


def said(role: str, text: Any, **more: Any) -> dict:
    return {"role": role, "content": text, **more}


@shape("prompt-messages")
def _(root, env):
    rows = [
        {"prompt": [said("user", "hi"), said("assistant", "yes?"), said("user", p)], "response": r} for p, r in WANTED
    ]
    (root / "b.parquet").write_bytes(parquet(rows[1:]))
    return Laid([put(root / "a.jsonl", rows[0]), root / "b.parquet"], WANTED)


@shape("messages")
def _(root, env):
    rows = [{"messages": [said("system", "be brief"), said("user", p), said("assistant", r)]} for p, r in WANTED]
    (root / "b.parquet").write_bytes(parquet(rows[1:]))
    return Laid([put(root / "a.jsonl", rows[0]), root / "b.parquet"], WANTED)


@shape("parts")
def _(root, env):
    def parts(text: str) -> list[dict]:
        return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]

    return Laid(
        [
            put(
                root / "a.jsonl",
                *({"messages": [said("user", parts(p)), said("assistant", parts(r))]} for p, r in WANTED),
            )
        ],
        WANTED,
    )


@shape("sharegpt")
def _(root, env):
    rows = [
        {
            "id": p,
            "system": "be brief",
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "yes?"},
                {"from": "human", "value": p},
                {"from": "gpt", "value": r},
            ],
        }
        for p, r in WANTED
    ]
    (root / "a.json").write_text(json.dumps(rows))
    return Laid([root / "a.json"], WANTED)


TRAJECTORY = ["assistant", "tool", "assistant", "user", "assistant"]


@shape("sharegpt-tools")
def _(root, env):
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    rows = [
        {
            "conversations": [
                {"from": "human", "value": p},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "rain, 7 degrees"},
                {"from": "gpt", "value": "it rains"},
                {"from": "human", "value": "sure?"},
                {"from": "gpt", "value": r},
            ],
            "tools": json.dumps(TOOLS),
        }
        for p, r in WANTED
    ]
    return Laid([put(root / "a.jsonl", *rows)], [(p, TRAJECTORY) for p, _ in WANTED])


@shape("tool-calls")
def _(root, env):
    def call(arguments: Any) -> dict:
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}],
        }

    rows = [
        {
            "messages": [
                said("system", "you may call tools"),
                said("user", p),
                call('{"city": "Oslo"}'),
                said("tool", "rain, 7 degrees", tool_call_id="c1"),
                said("assistant", "it rains"),
                said("user", "sure?"),
                said("assistant", r),
            ],
            "tools": TOOLS,
        }
        for p, r in WANTED
    ]
    (root / "b.parquet").write_bytes(parquet(rows[1:]))
    return Laid([put(root / "a.jsonl", rows[0]), root / "b.parquet"], [(p, TRAJECTORY) for p, _ in WANTED])


# ---- tasks


@shape("alpaca")
def _(root, env):
    rows = [
        {"instruction": "double it", "input": "4", "output": "8"},
        {"instruction": "say hi", "input": "", "output": "hi"},
        {"instruction": "sum up", "context": "long text", "response": "short", "category": "x"},
    ]
    return Laid(
        [put(root / "a.jsonl", *rows)], [("double it\n4", "8"), ("say hi", "hi"), ("sum up\nlong text", "short")]
    )


@shape("self-instruct")
def _(root, env):
    rows = [
        {
            "id": "seed_task_0",
            "name": "double",
            "instruction": "double it",
            "is_classification": False,
            "instances": [{"input": "4", "output": "8"}, {"input": "5", "output": "10"}],
        },
        {"id": "seed_task_1", "name": "hi", "instruction": "say hi", "instances": [{"input": "", "output": "hi"}]},
    ]
    return Laid([put(root / "a.jsonl", *rows)], [("double it\n4", "8"), ("say hi", "hi")])


@shape("question-answer")
def _(root, env):
    rows = [
        {"question": "ask 0", "answer": "say 0"},
        {"problem": "ask 1", "solution": "say 1", "answer": "1"},
        {"query": "ask 2", "response": "say 2", "type": "x"},
    ]
    return Laid([put(root / "a.jsonl", *rows)], WANTED)


@shape("completion")
def _(root, env):
    rows = [
        {"prompt": "ask 0", "completion": "say 0"},
        {"prompt": [said("user", "ask 1")], "completion": [said("assistant", "say 1")]},
        {"task_id": "HumanEval/2", "prompt": "ask 2", "canonical_solution": "say 2", "entry_point": "f"},
    ]
    return Laid([put(root / "a.jsonl", *rows)], WANTED)


@shape("preference")
def _(root, env):
    rows = [
        {"prompt": "ask 0", "chosen": "say 0", "rejected": "no"},
        {
            "prompt": "ask 1",
            "chosen": [said("user", "ask 1"), said("assistant", "say 1")],
            "rejected": [said("user", "ask 1"), said("assistant", "no")],
        },
        {
            "prompt": [said("user", "ask 2")],
            "chosen": [said("assistant", "say 2")],
            "rejected": [said("assistant", "no")],
        },
    ]
    return Laid([put(root / "a.jsonl", *rows)], WANTED)


# ---- the table and its tests


def documented() -> list[str]:
    section = DOCS.read_text(encoding="utf-8").split("## Shapes")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)


def test_every_row_of_the_docs_is_a_test_and_every_test_a_row():
    assert documented() == list(SHAPES) and len(SHAPES) == 20


def reference(row: PromptRow) -> Any:
    return row.response if row.turns is None else [m["role"] for m in row.turns]


@pytest.mark.parametrize("name", documented())
def test_shape_is_read(name, tmp_path, monkeypatch):
    laid = SHAPES[name](tmp_path, monkeypatch)
    rows = list(read_prompts(laid.names, DataConfig(prompts=[]), need_reference=True))
    assert [(r.text, reference(r)) for r in rows] == laid.rows
    assert measure(laid.names)[0] == len(rows)
    assert [r.where for r in rows] == list(dict.fromkeys(r.where for r in rows))  # each names its row
    asked = list(read_prompts(laid.names, DataConfig(prompts=[])))
    assert all(r.turns is None and r.messages[-1]["role"] != "assistant" for r in asked)


# The template of Qwen2.5-Instruct in what matters: tools in the system turn, calls, results grouped as a user's turn.
TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content }}"
    "{%- endif %}{{- '\\n<tools>' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}"
    "{{- '\\n</tools><|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- elif m.tool_calls %}{{- '<|im_start|>assistant' }}{%- if m.content %}{{- '\\n' + m.content }}{%- endif %}"
    '{%- for call in m.tool_calls %}{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name }}'
    '{{- \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif m.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
MODEL = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint whose template knows tools."""
    folder = tmp_path_factory.mktemp("model")
    initial_checkpoint(folder, MODEL)
    tokenizers_of.qwen(folder, chat_template=TEMPLATE)
    return folder


def configured(model: Path, tmp_path: Path, names: list[Any], source: str) -> Config:
    return parse_config(
        {
            "run": {"dir": str(tmp_path / "run")},
            "models": {"teacher": str(model), "student": str(model)},
            "data": {"prompts": list(map(str, names))},
            "rollout": {"source": source, "max_new_tokens": 8},
            "annotate": {"row_length": 2048},
            "sync": {"refreshes": 0},
            "device": {"target": "cpu"},
        },
        "test",
    )


def both(config: Config) -> tuple[dict[str, int] | str, Dataset | str]:
    """What doctor says of the prompts, and what the run's first stage makes or says of them."""
    try:
        looked: dict[str, int] | str = check_prompts(config)
    except UserError as e:
        looked = str(e)
    try:
        Executor(config).run("prepare")
    except UserError as e:
        return looked, str(e).removeprefix("prepare: ")
    return looked, Dataset.open(RunDir(config.run.dir).prompts, "prompts")


@pytest.mark.slow
def test_doctor_and_run_take_all_of_them(tmp_path, monkeypatch, model):
    laid = []
    for name, lay in SHAPES.items():
        (tmp_path / name).mkdir()
        laid.append(lay(tmp_path / name, monkeypatch))
    looked, made = both(configured(model, tmp_path, [n for one in laid for n in one.names], "reference"))
    assert isinstance(looked, dict) and isinstance(made, Dataset), (looked, made)
    wanted = [row for one in laid for row in one.rows]
    assert {k: made.extra[k] for k in looked} == looked and made.rows == len(wanted)
    tokenizer = load_tokenizer(model)
    for row, (text, answer) in zip(made.read_all().to_pylist(), wanted, strict=True):
        whole, masked = tokenizer.decode(row["reference_ids"]), row["reference_masked"]
        assert row["text"] == text
        assert (whole, masked) == (f"{answer}<|im_end|>", None) if isinstance(answer, str) else len(masked) == 4


SPOILT = {
    "a data set that is not in the cache": (
        lambda root: ["hf:org/nowhere"],
        "hf download org/nowhere --repo-type dataset",
    ),
    "a split that is not there": (lambda root: [f"{root}:tset"], "it has no 'tset'; its splits are test, train"),
    "an image": (
        lambda root: [
            put(
                root / "i.jsonl",
                {
                    "messages": [
                        said("user", [{"type": "image_url", "image_url": {"url": "x.png"}}]),
                        said("assistant", "a"),
                    ]
                },
            )
        ],
        "i.jsonl, line 1: part 1 of the content of message 1 is of type 'image_url'",
    ),
    "arguments that are no JSON": (
        lambda root: [
            put(
                root / "c.jsonl",
                {
                    "messages": [
                        said("user", "a"),
                        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{city: Oslo}"}}]},
                    ]
                },
            )
        ],
        "c.jsonl, line 1: the tool call of message 2 is not valid JSON",
    ),
    "an array that is cut off": (lambda root: [cut(root / "a.json")], "a.json, row 2: not valid JSON (the file ends"),
    "no reference": (
        lambda root: [put(root / "n.jsonl", {"messages": [said("user", "a")]})],
        "n.jsonl, line 1: no reference answer",
    ),
}


def cut(path: Path) -> Path:
    path.write_text(json.dumps(PLAIN)[:-60])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", SPOILT)
def test_doctor_and_run_refuse_it_with_the_same_line(name, tmp_path, monkeypatch, model):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        put(tmp_path / f"{split}.jsonl", *PLAIN)
    lay, said_of_it = SPOILT[name]
    looked, made = both(configured(model, tmp_path, lay(tmp_path), "reference"))
    assert isinstance(looked, str) and said_of_it in looked
    assert made == looked


# ---- data as released, where they are at hand

RELEASED = Path(os.environ.get("NPD_RELEASED_DATA", "/nowhere"))
FILES = {
    "gsm8k/train.jsonl": ("Natalia sold clips", "#### 72", 7473),
    "math500/test.jsonl": ("Convert the point", "boxed", 500),
    "ifeval/input_data.jsonl": ("Write a 300+ word summary", None, 541),
    "humaneval/HumanEval.jsonl.gz": ("from typing import List", "return", 164),
    "self_instruct/seed_tasks.jsonl": ("Is there anything I can eat", "protein", 175),
    "self_instruct/user_oriented_instructions.jsonl": ("The sentence you are given might be too wordy", "rate", 252),
}


@pytest.mark.parametrize("name", FILES)
def test_data_as_released(name):
    if not (RELEASED / name).is_file():
        pytest.skip("set NPD_RELEASED_DATA to a folder that holds it")
    prompt, answer, count = FILES[name]
    rows = list(read_prompts([RELEASED / name], DataConfig(prompts=[]), need_reference=answer is not None))
    assert len(rows) == count and rows[0].text.lstrip().startswith(prompt)
    assert answer is None or answer in rows[0].response


@pytest.mark.slow
def test_folders_that_the_library_itself_has_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    chats = [{"messages": [said("user", p), said("assistant", r)], "tools": None} for p, r in WANTED]
    part = datasets.Dataset.from_list(chats)
    part.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": part, "test": part.select([2, 0])}).save_to_disk(tmp_path / "dict")
    part.to_parquet(tmp_path / "c.parquet")
    part.to_json(tmp_path / "d.jsonl")
    for name, wanted in (
        ("one", WANTED),
        ("dict", WANTED),
        ("dict:test", [WANTED[2], WANTED[0]]),
        ("c.parquet", WANTED),
        ("d.jsonl", WANTED),
    ):
        rows = list(read_prompts([f"{tmp_path}/{name}"], DataConfig(prompts=[]), need_reference=True))
        assert [(r.text, r.response) for r in rows] == wanted, name
