"""The synchronous loop: at each step draw prompts, have them answered, ask the teacher, train.

It calls the same compiled step as training from the store does; only where batches come from differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import Config
from npd_ascend.errors import UserError
from npd_ascend.models.weights import save_hf
from npd_ascend.objectives.inputs import LossInputs
from npd_ascend.objectives.registry import parameters
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.store.identity import sample_seed
from npd_ascend.study.batches import Layout, Part
from npd_ascend.study.clock import Clock
from npd_ascend.study.method import LiveMethod, Sample, Scored
from npd_ascend.study.prefill import Prefill
from npd_ascend.study.prompts import Prompts
from npd_ascend.study.workbench import Workbench
from npd_ascend.train.reader import MicroBatch
from npd_ascend.train.schedule import learning_rate
from npd_ascend.train.step import Trainer


class LiveSource:
    """Samples as they are asked for; implements ``method.Source``.

    Args:
        bench: engines.
        job: how the student answers.
        trainer: the student.
        prompts: of the arm.
        teacher_answers: of each prompt, for methods that want them.
        weights: folder that the student's weights go through.
        like: checkpoint whose files the folder gets.
        loss: the student's mean NLL of held-out references.
    """

    def __init__(
        self,
        bench: Workbench,
        job: RolloutJob,
        trainer: Trainer,
        prompts: Prompts,
        teacher_answers: Callable[[], list[Array]],
        weights: Path,
        like: Path,
        loss: Callable[[], float],
    ):
        self.bench, self.job, self.trainer, self.prompts = bench, job, trainer, prompts
        self.weights, self.like = weights, like
        self.rng = np.random.default_rng([job.seed, 0])
        self.epoch, self.progress, self.step = 0, 0.0, 0
        self.answered = 0
        self._teacher_answers, self._loss = teacher_answers, loss
        self._teacher: list[Array] | None = None

    def student(self, prompts: Sequence[int]) -> list[Sample]:
        clock = self.bench.clock
        with clock.on("reload"):
            save_hf(self.trainer.net, self.weights, self.like, self.job.device.dtype)
        greedy = self.job.settings.greedy
        seeds = [None if greedy else sample_seed(self.job.seed, self.step << 32 | i) for i in prompts]
        with clock.on("rollout"):
            out = self.bench.answer(
                self.job.model_copy(update={"model": self.weights}), [self.prompts.ids[i] for i in prompts], seeds
            )
            clock.move("rollout", "start" if out.started else "reload", out.load_seconds)
        self.answered += len(prompts)
        return [
            Sample(i, self.prompts.ids[i], a.ids, "student", a.logprobs)
            for i, a in zip(prompts, out.answers, strict=True)
        ]

    def reference(self, prompts: Sequence[int]) -> list[Sample]:
        p = self.prompts
        if p.masked:
            raise UserError(
                "this method trains on whole references, some of which have turns of tools or users in "
                "between; set data.reference_turns: last"
            )
        missing = [i for i in prompts if not len(p.references[i])]
        if missing:
            raise UserError(
                f"prompt {missing[0]} has no reference answer, which this method needs: set data.response_field"
            )
        return [Sample(i, p.ids[i], p.references[i], "reference") for i in prompts]

    def teacher(self, prompts: Sequence[int]) -> list[Sample]:
        if self._teacher is None:
            self._teacher = self._teacher_answers()
        return [Sample(i, self.prompts.ids[i], self._teacher[i], "teacher") for i in prompts]

    def everything(self) -> Sequence[int]:
        return range(len(self.prompts))

    def held_out_loss(self) -> float:
        with self.bench.clock.on("evaluation"):
            return self._loss()


class LiveLoop:
    """Trains one arm from start to end.

    Args:
        config: of the arm.
        method: how samples come about and are weighed.
        source: where they come from.
        layout: shapes of the batches.
        teacher: the live teacher.
        student: the trainer's network, asked for distributions; used where the method needs them.
        clock: of the arm.
        stepped: called with (steps done, progress, prompts processed, loss row) after each step.
    """

    def __init__(
        self,
        config: Config,
        method: LiveMethod,
        source: LiveSource,
        layout: Layout,
        teacher: Prefill,
        student: Prefill,
        clock: Clock,
        stepped: Callable[[int, float, int, dict[str, float]], None],
    ):
        self.config, self.method, self.source, self.layout = config, method, source, layout
        self.teacher, self.student, self.clock, self.stepped = teacher, student, clock, stepped
        self.trainer = source.trainer
        self.vocab = self.trainer.net.spec.vocabulary
        self.k = config.annotate.k
        loss = source.trainer.loss
        self.names, self.defaults = loss.names, parameters(loss.terms)
        self.tokens = self.positions = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return int(self.config.train.epochs * len(self.source.prompts) / self.method.live.prompts_per_step + 0.5)

    def run(self) -> None:
        """Takes all steps."""
        source, per_step, n = self.source, self.method.live.prompts_per_step, len(self.source.prompts)
        order: list[int] = []
        for step in range(1, self.steps + 1):
            source.step = step
            source.epoch, source.progress = (step - 1) * per_step // n, (step - 1) / self.steps
            while len(order) < per_step:
                order += source.rng.permutation(n).tolist()
            chosen, order = order[:per_step], order[per_step:]
            samples = self.method.samples(chosen, source)
            progress = self.config.train.epochs * step / self.steps
            row = self._train(samples, step, learning_rate(self.config.train, progress))
            self.stepped(step, progress, step * per_step, row)

    def compile(self, bench: Workbench) -> None:
        """Compiles all shapes that may come, booked aside."""
        for length in self.layout.lengths:
            part = self.layout.empty(length)

            def work(part: Part = part) -> None:
                self.teacher(part)
                if self.method.needs_student:
                    self.student(part)
                self.trainer.accumulate(
                    self._batch(part, [], [], np.zeros((len(part.positions), self.vocab), np.float32)), 1
                )
                self.trainer.update(0.0, 1)
                self.trainer.reset()

            bench.once(
                (
                    id(self.trainer),
                    id(self.teacher),
                    self.layout.rows,
                    length,
                    len(part.positions),
                    self.k,
                    self.method.needs_student,
                ),
                work,
            )

    def _train(self, samples: list[Sample], step: int, lr: float) -> dict[str, float]:
        with self.clock.on("pack"):
            parts = list(self.layout.parts(samples))
        known: list[Array] = []
        scored: list[Scored | None] = [None] * len(samples)
        for part in parts:
            with self.clock.on("teacher"):
                known.append(self.teacher(part)[: part.tokens])
            own = None
            if self.method.needs_student:
                with self.clock.on("evaluation"):  # the loss's own forward pass would give it for nothing
                    own = self.student(part)[: part.tokens]
            self._score(part, samples, known[-1], own, scored)
        with self.clock.on("pack"):
            found = [s for s in scored if s is not None]
            weights = self.method.weigh(samples, found)
            parameters = self.method.parameters(samples, found)
            batches = [
                self._batch(part, samples, weights, teacher, parameters)
                for part, teacher in zip(parts, known, strict=True)
            ]
        tokens = sum(p.tokens for p in parts)
        self.tokens += tokens
        self.positions += sum(p.rows.input_ids.size for p in parts)
        with self.clock.on("train"):
            losses = [self.trainer.accumulate(b, tokens) for b in batches]
            norm, sums = self.trainer.update(lr, step)
        if not np.isfinite([*losses, norm]).all():
            raise UserError(f"the loss or gradient is NaN or infinite at step {step}; lower train.lr")
        means = {name: value / max(1, tokens) for name, value in sums.items()}
        return {**means, "grad_norm": norm, "tokens": tokens, "lr": lr}

    def _score(
        self, part: Part, samples: list[Sample], teacher: Array, own: Array | None, out: list[Scored | None]
    ) -> None:
        """Log-probs of the answers' own tokens, sample by sample."""
        at = 0
        for i in part.samples:
            response = samples[i].response
            here = np.arange(at, at + len(response))
            out[i] = Scored(teacher[here, response], None if own is None else own[here, response])
            at += len(response)

    def _batch(
        self, part: Part, samples: list[Sample], weights: list[Array], teacher: Array, given: list[Array] | None = None
    ) -> MicroBatch:
        """``given``: parameters of the terms behind cross-entropy, sample by sample; None: those configured."""
        n, t, m = len(part.positions), part.tokens, len(self.defaults)
        found = {
            "labels": np.zeros(n, np.int32),
            "weights": np.zeros((n, m), np.float32),
            "parameters": np.tile(self.defaults, (n, 1)),
        }
        if "teacher_ids" in self.names:
            ids, values = np.zeros((n, self.k), np.int32), np.zeros((n, self.k), np.float32)
            ids[:t], values[:t] = best(teacher[:t], self.k)
            found |= {"teacher_ids": ids, "teacher_logprobs": values}
        elif "teacher_logprobs" in self.names:
            found["teacher_logprobs"] = np.concatenate((teacher[:t], np.zeros((n - t, self.vocab), np.float32)))
        if t:
            found["labels"][:t] = np.concatenate([samples[i].response for i in part.samples])
            found["weights"][:t] = np.concatenate([weights[i] for i in part.samples])
            if given is not None:
                found["parameters"][:t, 1:] = np.repeat(
                    [given[i] for i in part.samples], [len(samples[i].response) for i in part.samples], 0
                )
        return MicroBatch(part.rows, part.positions, LossInputs(**found), t, part.samples)


def best(logprobs: Array, k: int) -> tuple[Array, Array]:
    """Ids and values of the k largest of each row, in no order.

    Args:
        logprobs: [T, V].
        k: 1..V.

    Returns:
        int32 [T, k] and float32 [T, k].
    """
    vocab = logprobs.shape[1]
    ids = np.argpartition(logprobs, vocab - k, 1)[:, vocab - k :]
    return ids.astype(np.int32), np.take_along_axis(logprobs, ids, 1)
