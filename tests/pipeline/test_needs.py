"""Computed is what is asked for: passes of both models while filter, loss, weights, bounds and packing change."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.annotate import stage as annotate
from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.ops.environments import resolve_device
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.recipes import find
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import sample_id
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_codec import TopK
from npd_ascend.train.job import TrainJob
from tests.faults.conftest import kit, make_kit, sound  # noqa: F401


class Models:
    """Two models that hash instead of thinking, and the passes that they are asked for."""

    def __init__(self):
        self.passes = []

    def __call__(self, model, spec, settings, device, **kept):
        return _Scorer(self, model.name)


class _Scorer:
    def __init__(self, models, name):
        self._models, self._name = models, name

    def score(self, contexts, responses, k, done):
        alone = len({tuple(c) for c in contexts}) == 1
        self._models.passes.append(f"{self._name} {'alone' if alone else 'after'}" + (f" k={k}" if k else ""))
        return [self._of(c, r, k) for c, r in zip(contexts, responses, strict=True)]

    def _of(self, context, response, k):
        seed = hashlib.sha256(f"{self._name}{list(context)}{list(response)}".encode()).digest()
        rng, n = np.random.default_rng(list(seed)), len(response)
        logprobs = -np.sort(rng.uniform(0.1, 3, (n, 20)), 1)[:, :k].astype(np.float32)
        ids = np.tile(np.arange(k, dtype=np.int32), (n, 1))
        return TopK(
            ids, logprobs, np.ones(n, np.float32), -rng.uniform(0.2, 2, n).astype(np.float32), np.ones(n, np.float32)
        )


class Walk:
    """Carries out a recipe up to training, in this process."""

    def __init__(self, config, models):
        self.steps = StepBuilder(config, RunDir(config.run.dir), resolve_device(config.device))
        self.models, self.ran = models, []

    def __call__(self, stage, generation=-1, *, quantities=(), evaluation=""):
        step = self.steps.step(stage, generation, quantities=quantities)
        if step.complete:
            return
        self.ran.append(stage)
        if isinstance(step.job, RolloutJob):
            answered(step.job, step.outputs[0])
        elif isinstance(step.job, AnnotateJob):
            annotate.run(step.job, self.models)
        elif not isinstance(step.job, TrainJob):
            __import__(f"npd_ascend.{step.stage.module}.stage", fromlist=["run"]).run(step.job)

    def refresh(self, generation):
        return False

    def export(self, generation):
        pass


def answered(job, out: Dataset) -> None:
    """Answers with log-probs, as an engine leaves them."""
    prompts = Dataset.open(job.prompts, "prompts").read(0)
    n = len(prompts)
    out.write_table(
        0,
        pa.table(
            {
                "sample_id": [sample_id(p, 0, 0) for p in prompts["prompt_id"].to_pylist()],
                "prompt_index": prompts["prompt_index"],
                "path": np.zeros(n, np.int8),
                "response_ids": [[3 + i, 4, 2] for i in range(n)],
                "logprobs": pa.array([[-0.5, -1.0, -0.25]] * n, pa.list_(pa.float32())),
                "label_ids": pa.nulls(n, pa.list_(pa.int32())),
                "finish_reason": ["stop"] * n,
            }
        ),
    )
    out.finish(1, truncated=0, tokens=3 * n)


@pytest.fixture
def passes(kit):  # noqa: F811
    """Changes settings of a run that goes on; returns the passes that this takes, and the stages."""
    for key, value in {
        "select.lower": None,
        "select.upper": None,
        "sync.refreshes": 0,
        "select.filter": "none",
        "train.loss.topk_norm": "both",
    }.items():
        kit.set(key, value)

    def go(**settings):
        for key, value in settings.items():
            kit.set(key.replace("__", "."), value)
        models = Models()
        walk = Walk(kit.config(), models)
        find("npd")(walk.steps.config, walk)
        return models.passes, walk.ran

    return go


def test_no_pass_is_repeated(passes):
    asked, ran = passes()
    assert asked == ["teacher after k=3"]
    assert ran == ["prepare", "rollout", "annotate_teacher", "select", "pack", "train"]
    # The filter of the paper needs more: what stands stays.
    asked, ran = passes(select__filter="delta_ifd")
    assert asked == ["teacher alone", "student after", "student alone"]
    assert ran == ["annotate_teacher", "annotate_student", "select", "pack", "train"]
    for settings, again in (
        ({"select__upper": 5.0}, ["select", "pack", "train"]),
        ({"select__filter": "fire"}, ["select", "pack", "train"]),
        ({"select__filter": "ppl_weighted"}, ["select", "pack", "train"]),
        ({"select__filter": "student_ifd"}, ["select", "pack", "train"]),
        ({"select__filter": "teacher_ifd"}, ["select", "pack", "train"]),
        ({"select__ifd_form": "ppl_ratio", "select__upper": None}, ["select", "pack", "train"]),
        ({"train__loss__kd_weight": 0.0}, ["train"]),
        ({"train__loss__kd_weight": 0.9}, ["train"]),
        ({"train__loss__kd_weight": 0.3}, ["train"]),
        ({"train__loss__divergence": "reverse_kl"}, ["train"]),
        ({"train__loss__topk_norm": "tail"}, ["train"]),
        ({"train__loss__token_weight": "teacher_confidence"}, ["train"]),
        ({"train__loss__token_weight": "surprisal_gate"}, ["train"]),
        ({"pack__row_length": 256}, ["pack", "train"]),
        ({"pack__too_long": "drop"}, ["pack", "train"]),
        ({"train__epochs": 4}, ["pack", "train"]),
        ({"train__lr": 1e-4}, ["train"]),
        ({"select__filter": "none"}, ["select", "pack", "train"]),
        ({"select__filter": "delta_ifd"}, ["select", "pack", "train"]),
    ):
        asked, ran = passes(**settings)
        assert (settings, asked, ran) == (settings, [], again)
    # Settings of the stored top-k touch it alone.
    assert passes(annotate__value_bits=12)[0] == ["teacher after k=3"]
    assert passes(annotate__k=2)[0] == ["teacher after k=2"]
    # And what changes the models' arithmetic touches all.
    assert passes(annotate__row_length=64)[0] == [
        "teacher after k=2",
        "teacher alone",
        "student after",
        "student alone",
    ]


def test_a_filter_takes_the_passes_that_it_needs_and_a_loss_that_comes_later_one_more(passes):
    assert passes(select__filter="fire", train__loss__kd_weight=0.0)[0] == ["teacher after"]
    assert passes(train__loss__kd_weight=0.9)[0] == ["teacher after k=3"]
    assert passes(select__filter="teacher_ifd")[0] == ["teacher alone"]
    assert passes(select__filter="delta_ifd")[0] == ["student after", "student alone"]


def test_a_token_weight_may_ask_the_teacher_without_a_divergence(passes):
    assert passes(train__loss__kd_weight=0.0)[0] == []
    assert passes(train__loss__token_weight="teacher_confidence")[0] == ["teacher after k=3"]


def test_log_probs_of_the_rollout_save_the_students_pass(passes):
    asked, _ = passes(select__filter="delta_ifd", annotate__student_nll="rollout")
    assert asked == ["teacher after k=3", "teacher alone", "student alone"]
    assert passes(annotate__student_nll="prefill")[0] == ["student after"]


def test_log_probs_of_another_models_rollout_are_not_the_students(passes):
    asked, _ = passes(
        select__filter="student_ifd",
        annotate__student_nll="rollout",
        rollout__source="teacher",
        train__loss__kd_weight=0.0,
    )
    assert asked == ["student after", "student alone"]


def test_speed_changes_nothing(passes):
    passes(select__filter="delta_ifd")
    changes = {
        "rollout__workers": 2,
        "rollout__max_num_seqs": 4,
        "annotate__workers": 1,
        "train__checkpoint_every": 3,
        "select__warn_keep_below": 0.5,
        "device__max_device_memory": "20GB",
        "report__samples": 1,
    }
    assert passes(**changes) == ([], ["train"])  # which this walk leaves out
