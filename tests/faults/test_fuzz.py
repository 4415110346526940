"""Random and spoilt bytes into every reader: what comes out is a value, or one clear line, never a traceback."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from npd_ascend.config.load import load_config, parse_config
from npd_ascend.config.schema import DataConfig
from npd_ascend.data.prompts import read_prompts
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import entries
from npd_ascend.pipeline.checks import check_run_dir
from npd_ascend.report.collect import collect
from npd_ascend.store.atomic import write_json, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import model_fingerprint
from npd_ascend.store.journal import Journal
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter, read_metrics
from npd_ascend.store.topk_shard import TopKReader
from npd_ascend.sync.registry import check as check_sync
from npd_ascend.workers.jobfile import read_job

quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
HUGE = [0, -1, 1 << 31, 1 << 63, 1 << 64, 10**400, 1e308, -0.0, float("inf"), float("nan")]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(HUGE)
    | st.sampled_from(["../../etc/passwd", "/etc/passwd", "\0", "\ud800", "x" * 300, "1e999"])
)
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3), max_leaves=6
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all nodes of a JSON tree."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [at] + [p for k in keys for p in places(value[k], (*at, k))]


@st.composite
def spoilt(draw: st.DrawFn, tree: Any) -> Any:
    """``tree`` with one to three nodes removed, replaced or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(places(tree)))
        if not where:
            continue
        node = tree
        for key in where[:-1]:
            node = node[key]
        if draw(st.booleans()):
            node[where[-1]] = draw(values)
        elif isinstance(node, dict):
            value = node.pop(where[-1])
            if draw(st.booleans()):
                node[draw(st.text(max_size=6))] = value
        else:
            del node[where[-1]]
    return tree


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` cut, with bits flipped, or with bytes put in."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "flip", "flip", "insert", "zero"]))
        if kind == "cut":
            del out[at:]
        elif kind == "flip" and out:
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            out[at:at] = draw(st.binary(max_size=20))
        else:
            out[at : at + 16] = bytes(len(out[at : at + 16]))
    return bytes(out)


def calm(act: Callable[[], Any]) -> Any:
    """Runs ``act``; a ``UserError`` (``CorruptShard`` is one) of one line is all that may escape."""
    try:
        return act()
    except UserError as e:
        assert str(e).strip() and "\n" not in str(e)
        return None


# ---- configuration

TREE = {
    "run": {"dir": "r", "seed": 0},
    "models": {"teacher": "t", "student": "s", "tokenizer": None},
    "data": {"prompts": ["p.jsonl"], "limit": 3, "answer_field": "a"},
    "rollout": {"samples": 1, "top_p": 1.0},
    "select": {"lower": None, "upper": 0.8, "upper_quantile": None},
    "sync": {"at_epochs": [1, 2.5]},
    "train": {"epochs": 4, "global_batch": 4, "loss": {"kd_weight": 0.5, "divergence": "jsd:0.1"}},
    "evaluate": {"prompts": ["e.jsonl"]},
}


@quick
@given(spoilt(TREE))
def test_configuration_tree(tree):
    config = calm(lambda: parse_config(tree, "c.yaml"))
    if config is not None:
        calm(lambda: check_sync(config))
        assert config.rollout.paths >= 1


@quick
@given(
    damaged(yaml.safe_dump(TREE).encode())
    | st.binary(max_size=80)
    | st.text(max_size=80).map(lambda t: t.encode(errors="replace"))
)
def test_configuration_file(tmp_path, data):
    (tmp_path / "c.yaml").write_bytes(data)
    calm(lambda: load_config(tmp_path / "c.yaml"))


@quick
@given(
    st.text(max_size=30)
    | st.tuples(st.sampled_from(["train.lr", "run.dir", "data.prompts", "x"]), st.text(max_size=20)).map("=".join)
)
def test_override(tmp_path, item):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TREE))
    calm(lambda: load_config(tmp_path / "c.yaml", [item]))


# ---- prompts

ROW = {"prompt": [{"role": "user", "content": "hi"}], "response": "r", "answer": 3}
DATA = DataConfig(prompts=[], response_field="response", answer_field="answer", labels_field="labels")


@quick
@given(damaged((json.dumps(ROW) + "\n").encode() * 2) | spoilt(ROW).map(lambda v: json.dumps(v).encode()))
def test_prompts_in_json(tmp_path, data):
    (tmp_path / "p.jsonl").write_bytes(data)
    for row in calm(lambda: list(read_prompts([tmp_path / "p.jsonl"], DATA))) or []:
        assert row.text and row.messages


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("parquet") / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", None], "answer": [1, 2, 3], "response": ["x", "y", "z"]}), path)
    return path.read_bytes()


@quick
@given(st.data())
def test_prompts_in_parquet(tmp_path, parquet, data):
    (tmp_path / "p.parquet").write_bytes(data.draw(damaged(parquet)))
    calm(lambda: list(read_prompts([tmp_path / "p.parquet"], DATA)))


# ---- the store


@pytest.fixture(scope="module")
def kit_static(tmp_path_factory, make_kit):
    """Inputs that each example puts back as they were."""
    return make_kit(tmp_path_factory.mktemp("static") / "kit")


@pytest.fixture(scope="module")
def kit_data(tmp_path_factory, make_kit):
    """One generation's datasets, put back likewise."""
    kit = make_kit(tmp_path_factory.mktemp("data") / "kit")
    kit.data()
    return kit


def topk_samples(folder: Path) -> int:
    reader = TopKReader(Dataset.open(folder, "topk"))
    return sum(len(reader.read(i)) for i in range(len(reader)))


@quick
@given(st.data())
def test_topk_shard(kit_data, data):
    """Any damage of the bytes is found, or has changed nothing that is read."""
    path = kit_data.at("topk") / "shard-00001.topk"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        same = path.read_bytes() == whole
        read = calm(lambda: topk_samples(kit_data.at("topk")))
        assert read == 40 if same else read in (None, 40)
    finally:
        path.write_bytes(whole)


@quick
@given(st.data())
def test_topk_header_of_another_program(kit_data, data):
    """Checksums hold, figures are nonsense."""
    path = kit_data.at("topk") / "shard-00000.topk"
    whole = path.read_bytes()
    size, _ = struct.unpack_from("<II", whole, 8)
    head = json.loads(whole[16 : 16 + size])
    try:
        new = json.dumps(data.draw(spoilt(head))).encode()
        new = new.ljust(size)[: max(size, len(new))]
        assume(len(new) == size)  # the record's size must hold
        path.write_bytes(whole[:8] + struct.pack("<II", size, zlib.crc32(new)) + new + whole[16 + size :])
        calm(lambda: topk_samples(kit_data.at("topk")))
    finally:
        path.write_bytes(whole)


def read_everything(kit: Any) -> None:
    for name, kind in (("prompts", "prompts"), ("rollouts", "rollouts"), ("selection", "selection")):
        d = Dataset.open(kit.at(name), kind)
        assert d.read_all().num_rows >= 0 and d.missing(2) is not None
    topk_samples(kit.at("topk"))


@quick
@given(st.data())
def test_manifests_and_records(kit_data, data):
    """Damaged, or sealed anew with nonsense inside (as another program might)."""
    name = data.draw(st.sampled_from(["prompts", "rollouts", "topk"]))
    path = kit_data.at(name) / data.draw(st.sampled_from(["manifest.json", "shard-00001.json"]))
    whole = path.read_bytes()
    try:
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged(whole)))
        else:
            tree = data.draw(spoilt(json.loads(whole)))
            tree.pop("seal", None)
            try:
                write_sealed(path, tree)
            except (ValueError, OverflowError):
                assume(False)  # NaN or half a surrogate pair: no JSON file can hold it
        calm(lambda: read_everything(kit_data))
    finally:
        path.write_bytes(whole)


@quick
@given(st.lists(st.dictionaries(st.text(max_size=4), st.integers(), max_size=2), max_size=4), st.data())
def test_journal(tmp_path, records, data):
    """What is before the damage stays, what is after it goes, and the next record is read back."""
    path = tmp_path / "j.journal"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.append_many(records)
    journal.close()
    path.write_bytes(data.draw(damaged(path.read_bytes()) | st.binary(max_size=40)))
    journal = Journal(path)
    kept = journal.replay()
    journal.append({"last": 1})
    journal.close()
    assert Journal(path).replay() == [*kept, {"last": 1}]


@quick
@given(
    damaged(b'{"kind": "train", "step": 1, "loss": 0.5}\n{"kind": "lag", "step": 2, "forward": 0.1}\n')
    | st.lists(
        spoilt({"kind": "train", "step": 1, "time": 1.0, "loss": 0.5, "seconds": 2.0}).map(
            lambda v: json.dumps(v).encode()
        ),
        max_size=4,
    ).map(b"\n".join)
)
def test_metrics(tmp_path, data):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    writer = MetricsWriter(path)
    before = len(read_metrics(path))
    writer.log("refresh", step=3)
    assert len(read_metrics(path)) == before + 1
    writer.drop(lambda row: row["kind"] in ("train", "lag"))
    calm(lambda: collect(tmp_path).times())


@quick
@given(st.data())
def test_run_directory(tmp_path, data):
    root = tmp_path / "run"
    run = RunDir(root)
    config = parse_config({**TREE, "run": {"dir": str(root)}}, "c")
    root.mkdir(exist_ok=True)
    run.config.unlink(missing_ok=True)
    run.state.unlink(missing_ok=True)
    check_run_dir(config, run, redo=False)
    run.write_state(status="running", started=1.0)
    for path in (run.config, run.state):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    calm(lambda: check_run_dir(config, run, redo=False))
    calm(lambda: collect(root))
    calm(lambda: check_run_dir(config, run, redo=True))


# ---- checkpoints and jobs


@quick
@given(st.data())
def test_safetensors(kit_static, data):
    path = kit_static.student / "model.safetensors"
    whole = path.read_bytes()
    (n,) = struct.unpack("<Q", whole[:8])
    try:
        if data.draw(st.booleans()):
            head = data.draw(damaged(whole[: 8 + n]))
            path.write_bytes(head + whole[8 + n :])
        else:
            head = json.dumps(data.draw(spoilt(json.loads(whole[8 : 8 + n])))).encode()
            path.write_bytes(struct.pack("<Q", len(head)) + head + whole[8 + n :])
        for entry in (calm(lambda: entries(kit_static.student)) or {}).values():
            calm(lambda e=entry: e.read())
    finally:
        path.write_bytes(whole)


@quick
@given(st.data())
def test_safetensors_index(kit_static, data):
    index = kit_static.student / "model.safetensors.index.json"
    tree = data.draw(spoilt({"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}))
    try:
        index.write_text(json.dumps(tree))
        calm(lambda: entries(kit_static.student))
    finally:
        index.unlink()


@quick
@given(st.data())
def test_model_config(kit_static, data):
    path = kit_static.student / "config.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole) | spoilt(json.loads(whole)).map(lambda v: json.dumps(v).encode())))
        spec = calm(lambda: ModelSpec.from_folder(kit_static.student))
        assert spec is None or spec.parameters > 0
        calm(lambda: model_fingerprint(kit_static.student))
    finally:
        path.write_bytes(whole)


@quick
@given(st.data())
def test_hash_cache(kit_static, data):
    """A damaged cache never gives a checkpoint another identity."""
    cache = kit_static.root / ".hashes.json"
    cache.unlink(missing_ok=True)
    right = model_fingerprint(kit_static.student, cache)
    cache.write_bytes(data.draw(damaged(cache.read_bytes())))
    assert model_fingerprint(kit_static.student, cache) == right


@quick
@given(st.data())
def test_job(kit_static, data):
    path = kit_static.root / "job.json"
    job = kit_static.select_job().model_dump(mode="json")
    write_json(path, {"stage": "select", "job": job})
    path.write_bytes(
        data.draw(
            damaged(path.read_bytes()) | spoilt({"stage": "select", "job": job}).map(lambda v: json.dumps(v).encode())
        )
    )
    calm(lambda: read_job(path))


def test_the_rules_find_what_they_should():
    """``damaged`` and ``spoilt`` do change things, and ``calm`` lets faults through."""
    seen = set()

    @settings(max_examples=30)
    @given(damaged(b"0123456789"), spoilt({"a": [1, 2]}))
    def look(data, tree):
        seen.add((data != b"0123456789", json.dumps(tree) != '{"a": [1, 2]}'))

    look()
    assert (True, True) in seen
    with pytest.raises(KeyError):
        calm(lambda: {}["x"])
