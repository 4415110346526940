"""Predictions from recorded rows: of a machine whose speed is known, and of odd recordings."""

import json

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.ops.plan import estimate, render
from npd_ascend.ops.plan.calibrate import Calibration

# Seconds that a pass takes to start, and a token: of the order of the mini run's on two cores.
SPEED = {
    "rollout": (10.0, 1 / 8000),
    "annotate_teacher": (7.0, 1 / 1500),
    "annotate_student": (6.0, 1 / 3000),
    "train": (12.0, 1 / 1000),
}
RESPONSE = 0.8


def record(tokens, generations=2, noise=0.0, seed=0):
    """(rows, events) as a run of that machine leaves them: ``busy`` holds compilation, as it really does."""
    rng = np.random.default_rng(seed)
    rows, events = [], []
    for g in range(generations):
        for stage, (start, per_token) in SPEED.items():
            shake = 1 + noise * rng.uniform(-1, 1)
            wall = (start + tokens * per_token) * shake
            if stage == "train":
                steps = 10
                for i in range(steps):
                    extra = start * shake if i == 0 else 0
                    rows.append(
                        {
                            "kind": "train",
                            "generation": g,
                            "step": g * steps + i,
                            "tokens": tokens * RESPONSE / steps,
                            "seconds": tokens * per_token * shake / steps + extra,
                        }
                    )
            rows.append(
                {
                    "kind": "stage",
                    "stage": stage,
                    "generation": g,
                    "seconds": wall,
                    "busy": wall - 1,
                    "tokens": tokens,
                    "samples": 5,
                }
            )
            name = stage.replace("_", " ")
            events.append({"event": "begin", "stage": name, "tokens": 0, "seconds": 0.0})
            for i in range(1, 9):
                events.append(
                    {
                        "event": "end" if i == 8 else "progress",
                        "stage": name,
                        "tokens": tokens * i / 8,
                        "seconds": (start - 1 + tokens * per_token * i / 8) * shake,
                    }
                )
    return rows, events


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("larger", [1, 4, 20])
def test_a_second_run_is_predicted(noise, larger):
    first = Calibration.from_rows(*record(20_000, noise=noise))
    for stage, (start, per_token) in SPEED.items():
        truth = 2 * start + 2 * larger * 20_000 * per_token
        assert first.seconds(stage, 2 * larger * 20_000, passes=2) == pytest.approx(truth, rel=0.25 if noise else 0.01)


def test_without_the_progress_file_training_is_still_told_apart():
    c = Calibration.from_rows(record(20_000)[0])
    assert c.rates["train"].per_token == pytest.approx(1 / 1000, rel=0.01)
    assert c.rates["train"].start == pytest.approx(12, rel=0.01)
    assert c.seconds("rollout", 20_000) == pytest.approx(10 + 20_000 / 8000)


def test_engines_that_stay_up_start_once():
    """As recorded of two generations of the mini run: 19,000 tokens, the engine up in the second."""
    rows = [
        {"kind": "stage", "stage": "rollout", "generation": g, "seconds": s, "busy": s, "tokens": 19000}
        for g, s in ((0, 35.9), (1, 3.2))
    ]
    events = [
        {"event": "progress", "stage": "rollout", "tokens": t, "seconds": s}
        for t, s in ((100, 33.0), (9500, 34.4), (19000, 35.9))
    ]
    c = Calibration.from_rows(rows, events)
    assert c.seconds("rollout", 2 * 19000, passes=2) == pytest.approx(35.9 + 3.2, rel=0.1)
    assert c.seconds("rollout", 5 * 19000, passes=5) == pytest.approx(35.9 + 4 * 3.2, rel=0.1)


def test_failed_and_empty_passes_do_not_count():
    rows, events = record(1000)
    failed = {"kind": "stage", "stage": "train", "generation": 0, "seconds": 900.0, "busy": 0.0, "tokens": 0}
    assert Calibration.from_rows([failed, *rows], events).rates == Calibration.from_rows(rows, events).rates


def test_too_few_steps_fall_back_to_busy():
    rows = [
        {"kind": "stage", "stage": "train", "seconds": 20.0, "busy": 10.0, "tokens": 1000, "generation": 0},
        {"kind": "train", "generation": 0, "step": 1, "tokens": 800, "seconds": 9.0},
    ]
    rate = Calibration.from_rows(rows).rates["train"]
    assert (rate.start, rate.again, rate.per_token) == (10.0, 10.0, 0.01)


def test_unknown_stage_and_empty_run(tmp_path):
    assert Calibration.from_rows([]).seconds("train", 5) is None
    with pytest.raises(UserError, match="no finished stage"):
        Calibration.from_run(tmp_path)


def test_from_a_run_directory_into_the_plan(tmp_path, config):
    rows, events = record(20_000)
    run = tmp_path / "before"
    (run / "logs").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"kind": "sta')
    (run / "logs" / "progress.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events) + "torn")
    e = estimate(config(), calibration=Calibration.from_run(run))
    train = e.stage("train")
    assert train.measured == pytest.approx(2 * 12 + train.tokens / 1000, rel=0.01)
    assert "calibrated" in render(e)


def test_evaluations_and_host_stages_count_too():
    """As a run of two generations books them: answers and check of an evaluation are two rows over the same tokens."""

    def row(stage, generation, seconds, tokens):
        return {
            "kind": "stage",
            "stage": stage,
            "generation": generation,
            "seconds": seconds,
            "busy": seconds / 2,
            "tokens": tokens,
        }

    rows, events = record(20_000)
    for g in range(3):
        rows += [row("evaluate", g, 1.0, 4000), row("evaluate", g, 2.0, 4000)]
    rows += [row("prepare", -1, 3.0, 500), row("prepare", -1, 2.0, 100)]
    rows += [row(s, g, 1.0, 0) for s in ("select", "pack") for g in (0, 1)]
    c = Calibration.from_rows(rows, events)
    assert c.host(2) == pytest.approx(5 + 2 * 2) and c.host(4) == pytest.approx(5 + 4 * 2)
    assert c.seconds("evaluate", 3 * 4000, passes=3) == pytest.approx(9.0)
    assert c.rates["evaluate"].per_token == pytest.approx(1 / 8000) and "prepare" not in c.rates


def test_lengths_of_the_calibrating_run_are_used_before_guessing(tmp_path, config):
    import numpy as np
    import pyarrow as pa

    from npd_ascend.ops.plan.workload import workload
    from npd_ascend.store.dataset import Dataset
    from npd_ascend.store.layout import RunDir

    before = RunDir(tmp_path / "before")
    prompts = Dataset(before.prompts, "prompts", "p")
    prompts.write_table(
        0,
        pa.table(
            {
                "prompt_index": [0, 1],
                "prompt_id": [0, 1],
                "prompt_ids": pa.array([[1] * 4, [1] * 6], pa.list_(pa.int32())),
                "reference_ids": pa.nulls(2, pa.list_(pa.int32())),
                "label_ids": pa.nulls(2, pa.list_(pa.int32())),
                "answer": pa.nulls(2, pa.string()),
                "text": pa.nulls(2, pa.string()),
            }
        ),
    )
    prompts.finish(1)
    for g, tokens in enumerate((10, 50)):
        rollouts = Dataset(before.generation(g).rollouts, "rollouts", "r")
        rollouts.write_table(
            0,
            pa.table(
                {
                    "sample_id": [2 * g, 2 * g + 1],
                    "prompt_index": [0, 1],
                    "path": np.zeros(2, np.int8),
                    "response_ids": pa.array([[1], [2]], pa.list_(pa.int32())),
                    "logprobs": pa.nulls(2, pa.list_(pa.float32())),
                    "label_ids": pa.nulls(2, pa.list_(pa.int32())),
                    "finish_reason": ["stop"] * 2,
                }
            ),
        )
        rollouts.finish(1, tokens=tokens)
    w = workload(config(), like=before.root)
    assert (w.prompts, w.prompt_tokens, w.answer_tokens) == (100, 5, 15)
    assert workload(config(), answer_tokens=7, like=before.root).answer_tokens == 7
    assert workload(config(), like=tmp_path / "none").answer_tokens == 50
