import sys
from types import SimpleNamespace

import numpy as np
import pytest

from npd_ascend import progress
from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.select import registry, stage
from npd_ascend.select.registry import Bound, Verdict


def test_writes_a_decision_for_every_rollout_in_its_place(generation):
    stage.run(generation.job(lower=-0.3, upper=0.3))
    out = generation.result()
    assert [r["rows"] for r in out.manifest["shards"]] == list(generation.sizes)
    table = out.read_all()
    assert table["sample_id"].to_pylist() == generation.ids.tolist()
    teacher, student = (generation.nll[m][0] / generation.nll[m][1] for m in ("teacher", "student"))
    delta = teacher - student
    np.testing.assert_allclose(table["delta_ifd"].to_numpy(), delta)
    np.testing.assert_allclose(table["ifd_teacher"].to_numpy(), teacher)
    keep = (delta >= -0.3) & (delta <= 0.3)
    assert table["keep"].to_pylist() == keep.tolist() and keep.any() and not keep.all()
    reasons = table["reason"].to_pylist()
    assert reasons[1] == "empty" and table["zone"].to_pylist()[1] == "undefined"
    assert [r == "kept" for r in reasons] == keep.tolist()
    assert out.extra["kept"] == keep.sum() and out.extra["reasons"]["empty"] == 1
    assert out.extra["low_keep_rate"] is True


def test_truncated_answers_by_option(generation):
    stage.run(generation.job(filter="none", keep_truncated=False))
    reasons = generation.result().read_all()["reason"].to_pylist()
    expected = np.where(generation.tokens == 0, "empty", np.where(generation.finish == "length", "truncated", "kept"))
    assert reasons == expected.tolist()


def test_no_scores_needed_for_none(generation):
    stage.run(generation.job(teacher=False, student=False, filter="none"))
    table = generation.result().read_all()
    assert table["keep"].to_pylist() == (generation.tokens > 0).tolist()
    assert set(table["zone"].to_pylist()) == {"undefined"}
    assert generation.result().extra["delta_ifd"] is None


def test_resumed_run_writes_only_what_is_missing_and_the_same(generation):
    stage.run(generation.job(lower=None, upper_quantile=0.8))
    out = generation.result()
    before = {p.name: p.read_bytes() for p in out.folder.iterdir()}
    times = {i: out.path(i).stat().st_mtime_ns for i in (0, 1)}
    out.discard(2)
    stage.run(generation.job(lower=None, upper_quantile=0.8))
    assert {p.name: p.read_bytes() for p in out.folder.iterdir()} == before
    assert {i: out.path(i).stat().st_mtime_ns for i in (0, 1)} == times


def test_a_finished_selection_is_left_alone(generation):
    stage.run(generation.job())
    (generation.root / "rollouts" / "manifest.json").unlink()
    stage.run(generation.job())


def test_progress_and_warning_are_reported(generation, monkeypatch):
    events: list[dict] = []
    monkeypatch.setattr(progress, "_sink", events.append)
    stage.run(generation.job(upper=0.3))
    assert events[0]["event"] == "begin" and events[-1]["event"] == "message"
    assert [e["done"] for e in events if e["event"] == "end"] == [12]
    assert events[-1]["level"] == "warning" and "select.lower: null" in events[-1]["text"]


def test_scores_of_other_samples_are_refused(generation):
    generation.write(ids=np.roll(generation.ids, 1))
    with pytest.raises(UserError, match="teacher: shard 0 row 0 is sample"):
        stage.run(generation.job())


def test_scores_of_other_shards_are_refused(generation):
    generation.sizes = (5, 1, 6)
    generation.write(models=("student",))
    with pytest.raises(UserError, match="teacher: shard 1 has 0 rows, .*rollouts has 1"):
        stage.run(generation.job())
    generation.sizes = (12,)
    generation.write(models=("student",))
    with pytest.raises(UserError, match="3 shards of scores for 1 shards"):
        stage.run(generation.job())


def test_a_filter_of_ones_own_reads_the_entropy(generation, monkeypatch):
    seen = []

    @registry.register("sure", needs=("scores_teacher",))
    def sure(scores, settings):
        seen.append(scores)
        return Verdict(scores.entropy("scores_teacher"), upper=Bound(2.0))

    monkeypatch.setitem(sys.modules, "own_filters", SimpleNamespace(sure=sure))
    stage.run(generation.job(filter="own_filters:sure", student=False))
    assert generation.result().extra["filter"] == "own_filters:sure"
    entropy = generation.nll["teacher"][0] + 1
    kept = generation.result().read_all()["keep"].to_pylist()
    assert kept == (entropy <= 2).tolist() and 0 < sum(kept) < len(kept)
    np.testing.assert_array_equal(seen[0].teacher_cond, generation.nll["teacher"][0])
    unknown = seen[0].teacher_uncond, seen[0].delta_ifd, seen[0].entropy("scores_student")
    assert all(np.isnan(x).all() for x in unknown)


def test_needs_are_names_of_stored_scores():
    with pytest.raises(ValueError, match="filter x needs teacher; a filter reads scores_student, scores_teacher"):
        registry.register("x", needs=("teacher",))


def test_scores_missing(generation):
    with pytest.raises(UserError, match="delta_ifd needs scores_student, unconditioned_student"):
        stage.run(generation.job(student=False))
    with pytest.raises(UserError, match="no filter 'delta'"):
        stage.run(generation.job(filter="delta"))


def test_nothing_kept(generation):
    with pytest.raises(UserError, match="keeps none of 12 samples .*select.lower: null"):
        stage.run(generation.job(lower=50.0, upper=60.0))
    assert not (generation.root / "selection" / "manifest.json").exists()


def test_a_flipped_bit_in_the_scores_is_found(generation):
    path = generation.root / "scores_teacher" / "shard-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShard, match="teacher: shard 2"):
        stage.run(generation.job())
