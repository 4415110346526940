"""What is measured while an arm runs: accuracy at set points, and the gap to the teacher at the end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.study import Arm
from npd_ascend.exposure.divergence import HiddenStates, Tokens
from npd_ascend.exposure.measures import Compare, measure
from npd_ascend.models.network import CausalLM
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import save_hf
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.study.dataset_cache import DatasetCache
from npd_ascend.study.prompts import Judge, Prompts
from npd_ascend.study.results import Recorder
from npd_ascend.study.workbench import Workbench

_NEAR = 1e-6
_DIGITS = 6


class Watch:
    """Measures one arm; all its time is booked aside.

    Args:
        arm: the arm.
        bench: engines.
        job: how held-out prompts are answered; its model is put in here.
        held_out: the held-out prompts.
        record: where rows go.
        cache: holds the teacher's answers.
        scratch: folder for weights on their way to the engine.
    """

    def __init__(
        self,
        arm: Arm,
        bench: Workbench,
        job: RolloutJob,
        held_out: Prompts,
        record: Recorder,
        cache: DatasetCache,
        scratch: Path,
    ):
        self.arm, self.bench, self.held_out, self.record, self.cache = arm, bench, held_out, record, cache
        tokens = arm.config.evaluate.max_new_tokens or arm.config.rollout.max_new_tokens
        self.job = job.model_copy(
            update={
                "settings": job.settings.model_copy(update={"greedy": True, "samples": 0, "max_new_tokens": tokens})
            }
        )
        self.weights = scratch / "watched"
        self.judge = Judge(arm.config, job.eos_token_ids)
        epochs, n = arm.config.train.epochs, arm.evaluations
        self._points = [epochs * i / n for i in range(1, n + 1)]
        self._responses: list[Array] = []

    def start(self) -> None:
        """Accuracy of the student that the arm begins with; many arms begin with the same."""
        student, config = self.arm.config.models.student, self.arm.config
        key = (
            self.cache.model(student),
            self.job.settings.model_dump_json(),
            self.job.max_model_len,
            self.job.device.model_dump_json(),
            config.evaluate.model_dump_json(),
            config.data.model_dump_json(),
            [p.tolist() for p in self.held_out.ids],
        )
        with self.bench.clock.on("evaluation"):
            values = self.cache.values("start", key, lambda: self._accuracy(student))
            self.record.log("eval", 0, 0.0, self.bench.clock.seconds, 0, **values)

    def stepped(self, net: CausalLM, step: int, progress: float, prompts: int, row: dict[str, Any]) -> None:
        """Logs a step, and measures where a point has been reached."""
        seconds = self.bench.clock.seconds
        values = {k: round(float(v), _DIGITS) for k, v in row.items() if k not in ("step", "progress", "generation")}
        self.record.log("train", step, progress, seconds, prompts, **values)
        if self._points and progress >= self._points[0] - _NEAR:
            with self.bench.clock.on("evaluation"):
                while self._points and progress >= self._points[0] - _NEAR:
                    self._points.pop(0)
                save_hf(net, self.weights, self.arm.config.models.student, self.job.device.dtype)
                self.record.log("eval", step, progress, seconds, prompts, **self._accuracy(self.weights))
                if not self._points and self.arm.exposure:
                    self._expose(net, step, progress, prompts)

    def loss(self, net: CausalLM, prompts: Prompts) -> float:
        """Mean NLL of reference answers under ``net``, nats a token."""
        return _nll(self._to_teacher(net)(prompts.ids, prompts.references))

    def teacher_answers(self, prompts: Prompts) -> tuple[list[Array], float]:
        """The teacher's greedy answers, and the seconds that they took."""
        teacher = self.arm.config.models.teacher
        job = self.job.model_copy(update={"model": teacher})

        def make() -> tuple[list[Array], float]:
            self.bench.ready(job, prompts.ids[0])
            batch = self.bench.answer(job, prompts.ids, [None] * len(prompts))
            self.bench.dismiss(job.model, self.arm.config.models.student)
            return [a.ids for a in batch.answers], batch.seconds

        key = ("teacher", self._teacher_weights, [p.tolist() for p in prompts.ids], job.settings.max_new_tokens)
        return self.cache.answers(key, make)

    def close(self) -> None:
        """Takes the weights away."""
        shutil.rmtree(self.weights, ignore_errors=True)

    def _accuracy(self, model: Path) -> dict[str, Any]:
        """What a row ``eval`` says of a model; its answers are kept until the next."""
        job = self.job.model_copy(update={"model": model})
        batch = self.bench.answer(job, self.held_out.ids, [None] * len(self.held_out))
        self._responses = [a.ids for a in batch.answers]
        right = self.judge(self.held_out, self._responses)
        return {
            "accuracy": float(right.mean()),
            "n": len(right),
            "hits": "".join("01"[r] for r in right.astype(int)),
            "ended": float(np.mean([a.finish != "length" for a in batch.answers])),
            "mean_tokens": float(np.mean([len(a.ids) for a in batch.answers])),
        }

    def _expose(self, net: CausalLM, step: int, progress: float, prompts: int) -> None:
        seconds = self.bench.clock.seconds
        n = min(self.arm.exposure_prompts, len(self.held_out))
        some = self.held_out.first(n)
        expert, _ = self.teacher_answers(some)
        own = HiddenStates()
        to_teacher = self._to_teacher(net, own)
        references = _nll(to_teacher(some.ids, some.references)) if any(map(len, some.references)) else None

        def start(prompts: Sequence[Array], answers: Sequence[Array]) -> list[Tokens]:
            """Asked last: its weights may take the place of the teacher's."""
            return self._compare(net, self.arm.config.models.student, None, own)(prompts, answers)

        values = measure(to_teacher, some.ids, self._responses[:n], expert, start)
        if references is not None:
            values["reference_nll"] = references
        self.record.log("exposure", step, progress, seconds, prompts, **values)

    @cached_property
    def _teacher_weights(self) -> str:
        """Identity of the teacher's weights."""
        return self.cache.model(self.arm.config.models.teacher)

    def _to_teacher(self, net: CausalLM, own: HiddenStates | None = None) -> Compare:
        return self._compare(net, self.arm.config.models.teacher, self.bench.states(self._teacher_weights), own)

    def _compare(self, net: CausalLM, model: Path, of_model: HiddenStates | None, own: HiddenStates | None) -> Compare:
        """``net`` beside a checkpoint, whose weights stand in the network for inference until others are loaded."""
        spec = ModelSpec.from_folder(model).sharing(self.job.vocabulary, model)
        other = self.bench.network(model, spec, self.job.device, net.row_length, self.job.max_model_len)
        pair = self.bench.pair(net, other, self.arm.config.annotate.micro_batch)
        return lambda prompts, answers: pair(prompts, answers, of_model, own)


def _nll(tokens: Sequence[Tokens]) -> float:
    """The student's, nats a token; answers may be empty."""
    return -float(np.concatenate([t.student for t in tokens]).mean(dtype=np.float64))
