"""A whole run of the recipe grpo with the real engines on tiny models, and what is made again of it, bit for bit."""

import shutil

import numpy as np
import pytest

from npd_ascend.draw.stage import drawn
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.mindspore, pytest.mark.timeout(900)]
pytest.importorskip("mindspore")


def students(run):
    return {p.name: p.read_bytes() for p in run.export.glob("*.safetensors")}


def config_of(tiny, run, **sync):
    return tiny.config(
        run.root,
        run={"recipe": "grpo"},
        data={"slice": 9},
        rollout={"greedy": False, "samples": 4},
        # Random models are never right, but their answers differ in length.
        reward={"parts": {"maze": {"data": str(tiny.folder / "task" / "maze.json")},
                          "length": {"weight": 0.5, "options": {"limit": 24, "buffer": 24}}}},
        select={"filter": "none"},
        train={"loss": {"terms": {"ppo_clip:0.2:0.28": 1, "drift": 0.001}}, "checkpoint_every": 1},
        evaluate={"prompts": []},
        sync=sync,
    )  # fmt: skip


def test_a_run_and_what_is_lost_of_it(tiny, tmp_path):
    run = RunDir(tmp_path / "run")
    config = config_of(tiny, run)
    code, out = tiny.run(config)
    assert code == 0, out
    rows = [r for r in read_metrics(run.metrics) if r["kind"] == "train"]
    for g in (0, 1):
        prompts = Dataset.open(run.generation(g).prompts, "prompts").read_all()
        source = Dataset.open(run.prompts, "prompts").read_all()
        chosen = drawn(24, 9, g, 1)
        assert prompts["prompt_ids"].to_pylist() == [source["prompt_ids"][int(i)].as_py() for i in chosen]
        rollouts = Dataset.open(run.generation(g).rollouts, "rollouts").read_all()
        rewards = Dataset.open(run.generation(g).rewards, "rewards").read_all()
        selection = Dataset.open(run.generation(g).selection, "selection").read_all()
        assert rewards["sample_id"].to_pylist() == rollouts["sample_id"].to_pylist() and len(rewards) == 36
        value, advantage = (selection[k].to_numpy() for k in ("reward", "advantage"))
        # What the end token adds to an answer counts; one that was cut costs all.
        cut = np.array(rollouts["finish_reason"].to_pylist()) == "length"
        names = Dataset.open(run.generation(g).rewards, "rewards").extra["parts"]
        right = np.array(rewards["parts"].to_pylist())[:, names.index("maze")]
        want = right - 0.5 * np.where(cut, 1, rollouts["tokens"].to_numpy() / 24)
        np.testing.assert_allclose(value, want, atol=1e-6)
        groups = value.reshape(9, 4)
        np.testing.assert_allclose(advantage, (groups - groups.mean(1, keepdims=True)).reshape(-1), atol=1e-6)
        mine = [r for r in rows if r["generation"] == g]
        # Right after the weights were handed over, engine and trainer say the same of the drawn tokens.
        assert mine[0]["age"] == 0 and mine[0]["policy_gap"] < 1e-3 and mine[0]["policy_clip_share"] == 0
        assert [r["age"] for r in mine] == list(range(len(mine))) and len(mine) > 1
        assert abs(mine[0]["policy_k3"]) < 1e-6 < mine[-1]["policy_k3"]
    before, losses = students(run), [(r["step"], r["loss"]) for r in rows]
    # A shard of rewards, and the end of training beyond a step in the middle.
    Dataset.open(run.generation(1).rewards, "rewards").discard(0)
    shutil.rmtree(run.generation(1).train)
    shutil.rmtree(run.checkpoints / f"step-{rows[-1]['step']:08d}")
    shutil.rmtree(run.export)
    run.export_mark.unlink()
    code, out = tiny.run(config)
    assert code == 0, out
    assert before and students(run) == before
    again = [(r["step"], r["loss"]) for r in read_metrics(run.metrics) if r["kind"] == "train"]
    assert again == losses and 'id="rewards"' in run.report.read_text()


def test_with_lead_the_next_slice_is_answered_during_training(tiny, tmp_path):
    """By the snapshot of a step in the middle, and each row of the metrics says how old its data is."""
    run = RunDir(tmp_path / "lead")
    code, out = tiny.run(config_of(tiny, run, lead=0.5))
    assert code == 0, out
    metrics = read_metrics(run.metrics)
    first, second = ([r for r in metrics if r["kind"] == "train" and r["generation"] == g] for g in (0, 1))
    taken = next(r["step"] for r in first if r["progress"] >= 0.5 - 1e-6)
    assert 1 <= taken < len(first) and read_sealed(run.generation(0).snapshot_mark)["step"] == taken
    assert [r["age"] for r in first] == list(range(len(first)))
    assert [r["age"] for r in second] == [len(first) - taken + i for i in range(len(second))]
    # The steps that the snapshot lacks are seen in the ratio from the first row on.
    assert first[0]["policy_gap"] < 1e-5 < second[0]["policy_gap"]
