import numpy as np
import pytest

from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.pack import stage
from npd_ascend.rows.bfd import best_fit_decreasing, lower_bound


def test_each_epoch_is_a_plan_of_all_kept_samples(chosen):
    stage.run(chosen.job(row_length=48))
    out = chosen.result()
    kept = np.flatnonzero(chosen.keep)
    lengths = chosen.prompt + chosen.response
    assert out.shards == 3
    for table in out.iter_tables():
        rows = list(zip(*(table[c].to_pylist() for c in table.column_names), strict=True))
        assert sorted(o for samples, _, _ in rows for o in samples) == kept.tolist()
        for samples, prompt, response in rows:
            assert prompt == chosen.prompt[samples].tolist() and response == chosen.response[samples].tolist()
            assert sum(prompt) + sum(response) <= 48
    extra = out.extra
    assert extra["rows"] == len(best_fit_decreasing(lengths[kept], 48)) == out.read(0).num_rows
    assert extra["lower_bound_rows"] == lower_bound(lengths[kept], 48) <= extra["rows"]
    assert extra["tokens"] == lengths[kept].sum() and extra["response_tokens"] == chosen.response[kept].sum()
    assert extra["density"] == pytest.approx(extra["tokens"] / extra["rows"] / 48)
    assert extra["dropped_tokens"] == extra["truncated_tokens"] == 0
    assert 0 <= extra["imbalance"] <= extra["imbalance_worst_batch"]
    assert out.read(0) != out.read(1)


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_what_is_too_long_is_counted(chosen, too_long, capsys):
    stage.run(chosen.job(row_length=16, too_long=too_long))
    extra = chosen.result().extra
    total = (chosen.prompt + chosen.response)[chosen.keep]
    assert extra["tokens"] + extra["dropped_tokens"] + extra["truncated_tokens"] == total.sum()
    assert extra["samples"] + extra["dropped_samples"] == len(total)
    gone = extra["truncated_samples"] + extra["dropped_samples"]
    assert gone == (total > 16).sum() > 0
    assert "samples cut by" in capsys.readouterr().err


def test_refuse(chosen):
    with pytest.raises(UserError, match="longer than pack.row_length 16"):
        stage.run(chosen.job(row_length=16, too_long="refuse"))


def test_resumed_run_is_byte_identical(chosen):
    stage.run(chosen.job(row_length=48))
    out = chosen.result()
    before = {p.name: p.read_bytes() for p in out.folder.iterdir()}
    out.discard(1)
    stage.run(chosen.job(row_length=48))
    assert {p.name: p.read_bytes() for p in out.folder.iterdir()} == before
    (chosen.root / "rollouts" / "manifest.json").unlink()
    stage.run(chosen.job(row_length=48))  # complete: returns at once


def test_another_seed_is_another_order(chosen):
    stage.run(chosen.job(row_length=48))
    stage.run(chosen.job(row_length=48, seed=6, out="other"))
    assert chosen.result().read(0) != chosen.result("other").read(0)


def test_inputs_that_do_not_belong_together(chosen):
    chosen.write(selection_ids=chosen.ids[::-1])
    with pytest.raises(UserError, match="selection: shard 0 is not of the samples in"):
        stage.run(chosen.job(row_length=48))
    chosen.index = chosen.index + 1
    chosen.write()
    with pytest.raises(UserError, match="rollouts: shard 2 answers a prompt that is not in"):
        stage.run(chosen.job(row_length=48))


def test_a_damaged_shard_is_named(chosen):
    path = chosen.root / "selection" / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptShard, match="selection: shard 1"):
        stage.run(chosen.job(row_length=48))
