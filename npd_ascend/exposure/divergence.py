"""Both models on the same tokens: KL over the full vocabulary both ways, and the log-probs of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models.network import CausalLM
from npd_ascend.rows.prefill import prefill_batches


@dataclass(frozen=True)
class Tokens:
    """One answer, token by token; float32 [T] each, nats.

    Attributes:
        kl_st: KL(student ‖ teacher) of the next-token distributions before each token.
        kl_ts: KL(teacher ‖ student).
        student: the student's log-prob of the token.
        teacher: the teacher's.
    """

    kl_st: Array
    kl_ts: Array
    student: Array
    teacher: Array


class _Logprobs(nn.Cell):
    """One model's log-softmax at chosen positions. A cell of its own: two heads may bear the same parameter name,
    which one graph does not allow."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.logits = ops.MatMul(transpose_b=True)

    def construct(self, hidden: Tensor, head: Tensor, at: Tensor) -> Tensor:
        """hidden [N, H], head [>= V, H], at [R] int32 -> [R, V] float32."""
        rows = ops.gather(hidden, at, 0)
        logits = self.logits(rows, head.astype(rows.dtype)).astype(ms.float32)
        return ops.log_softmax(ops.narrow(logits, 1, 0, self.vocab), -1)


class _Gap(nn.Cell):
    def construct(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Log-probs [R, V] of both, targets [R] int32 -> [4, R]: the fields of ``Tokens``."""
        gap = student - teacher
        column = targets.reshape(-1, 1)
        return ops.stack(
            (
                (ops.exp(student) * gap).sum(-1),
                -(ops.exp(teacher) * gap).sum(-1),
                ops.gather_elements(student, 1, column).reshape(-1),
                ops.gather_elements(teacher, 1, column).reshape(-1),
            )
        )


class PairScorer:
    """Student and teacher, ready to be compared; every pass has the same shape, so each is compiled once.

    Probabilities are over the ids that count in both models, whatever the widths of their logits.

    Args:
        student, teacher: networks with the same ``row_length``, weights loaded; the weights may change between calls.
        micro_batch: rows a pass; that of training spares a compilation.
        chunk_rows: positions whose logits stand in memory at once.

    Raises:
        UserError: the networks have different row lengths.
    """

    def __init__(self, student: CausalLM, teacher: CausalLM, micro_batch: int = 4, chunk_rows: int = 1024):
        if student.row_length != teacher.row_length:
            raise UserError(
                f"student and teacher are built for rows of {student.row_length} and {teacher.row_length} "
                f"tokens; to compare them build both for the same"
            )
        self.student, self.teacher, self.micro_batch = student, teacher, micro_batch
        self.vocab = min(student.spec.vocabulary, teacher.spec.vocabulary)
        self._chunk = min(chunk_rows, micro_batch * student.row_length)
        self._of_student, self._of_teacher, self._gap = _Logprobs(self.vocab), _Logprobs(self.vocab), _Gap()

    def __call__(self, prompts: Sequence[Array], answers: Sequence[Array]) -> list[Tokens]:
        """Compares the models along ``answers``, each after its prompt.

        Args:
            prompts: int32 ids, at least one each.
            answers: int32 ids; of an empty one the result is empty.

        Raises:
            UserError: a prompt and answer are longer than a row, or a model computes NaN.
        """
        student, teacher = self.student, self.teacher
        nothing = np.empty(0, np.float32)
        out = [Tokens(nothing, nothing, nothing, nothing)] * len(answers)
        was_training = student.training
        student.set_train(False)
        for part in prefill_batches(prompts, answers, student.row_length, self.micro_batch, student.spec.pad_token_id):
            rows = student.inputs(part.rows)
            values = self._pass(student(*rows), teacher(*rows), part.at, part.targets)
            if not np.isfinite(values).all():
                raise UserError("a model computes NaN or infinite logits along the answers; check both checkpoints")
            for sample, span in part.spans():
                out[sample] = Tokens(*values[:, span])
        student.set_train(was_training)
        return out

    def _pass(self, student: Tensor, teacher: Tensor, at: Array, targets: Array) -> Array:
        parts = []
        for start in range(0, len(at), self._chunk):
            n = len(at[start : start + self._chunk])
            padded = np.zeros((2, self._chunk), np.int32)
            padded[0, :n], padded[1, :n] = at[start : start + n], targets[start : start + n]
            where = Tensor(padded[0])
            values = self._gap(
                self._of_student(student, self.student.head_weight, where),
                self._of_teacher(teacher, self.teacher.head_weight, where),
                Tensor(padded[1]),
            )
            parts.append(values.asnumpy()[:, :n])
        return np.concatenate(parts, 1)
