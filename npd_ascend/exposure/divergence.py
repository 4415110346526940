"""Both models on the same tokens: KL over the full vocabulary both ways, and the log-probs of the tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models.network import CausalLM
from npd_ascend.rows.prefill import PrefillBatch, prefill_batches


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
    """One model's log-softmax of final hidden states. A cell of its own: two heads may bear the same parameter name,
    which one graph does not allow."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.logits = ops.MatMul(transpose_b=True)

    def construct(self, hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [R, H], head [>= V, H] -> [R, V] float32."""
        logits = self.logits(hidden, head.astype(hidden.dtype)).astype(ms.float32)
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

    Probabilities are over the ids that count in both models, whatever the widths of their logits. Heads work on whole
    chunks of answer tokens, gathered over passes: where prompts are long, few positions of a pass are answers.

    Args:
        student, teacher: networks with the same ``row_length``, weights loaded; the weights may change between calls.
        micro_batch: rows a pass; that of training spares a compilation.
        chunk_rows: positions whose logits stand in memory at once.

    Raises:
        UserError: the networks have different row lengths.
    """

    def __init__(self, student: CausalLM, teacher: CausalLM, micro_batch: int = 4, chunk_rows: int = 256):
        if student.row_length != teacher.row_length:
            raise UserError(
                f"student and teacher are built for rows of {student.row_length} and {teacher.row_length} "
                f"tokens; to compare them build both for the same"
            )
        self.student, self.teacher, self.micro_batch = student, teacher, micro_batch
        self.vocab = min(student.spec.vocabulary, teacher.spec.vocabulary)
        self._chunk, self._dtype = chunk_rows, ms.float32
        self._of_student, self._of_teacher, self._gap = _Logprobs(self.vocab), _Logprobs(self.vocab), _Gap()

    def __call__(
        self,
        prompts: Sequence[Array],
        answers: Sequence[Array],
        of_teacher: HiddenStates | None = None,
        of_student: HiddenStates | None = None,
    ) -> list[Tokens]:
        """Compares the models along ``answers``, each after its prompt.

        Args:
            prompts: int32 ids, at least one each.
            answers: int32 ids; of an empty one the result is empty.
            of_teacher, of_student: final hidden states of these very weights, looked up there and added; None: all are
                computed.

        Raises:
            UserError: a prompt and answer are longer than a row, or a model computes NaN.
        """
        student = self.student
        was_training = student.training
        student.set_train(False)
        spans: list[tuple[int, int]] = []  # sample and how many tokens, as the chunks hold them

        def states() -> Iterator[tuple[Array, ...]]:
            length, pad = student.row_length, student.spec.pad_token_id
            for part in prefill_batches(prompts, answers, length, self.micro_batch, pad):
                spans.extend((sample, span.stop - span.start) for sample, span in part.spans())
                yield (
                    self._states(student, part, of_student),
                    self._states(self.teacher, part, of_teacher),
                    part.targets,
                )

        values = [self._compare(*chunk) for chunk in _chunks(states(), self._chunk)]
        student.set_train(was_training)
        columns = np.concatenate([np.empty((4, 0), np.float32), *values], 1)
        if not np.isfinite(columns).all():
            raise UserError("a model computes NaN or infinite logits along the answers; check both checkpoints")
        nothing = np.empty(0, np.float32)
        out = [Tokens(nothing, nothing, nothing, nothing)] * len(answers)
        start = 0
        for sample, n in spans:
            out[sample] = Tokens(*columns[:, start : start + n])
            start += n
        return out

    def _states(self, net: CausalLM, part: PrefillBatch, remembered: HiddenStates | None) -> Array:
        """Final hidden states [T, H] before each answer token of a pass."""

        def make() -> Array:
            hidden = net(*net.inputs(part.rows))
            self._dtype = hidden.dtype
            states: Array = hidden.astype(ms.float32).asnumpy()  # numpy has no bfloat16
            return states.reshape(-1, states.shape[-1])[part.at]

        return make() if remembered is None else remembered.get(part, make)

    def _compare(self, student: Array, teacher: Array, targets: Array) -> Array:
        """Hidden states [n, H] of both before n <= ``chunk_rows`` tokens, targets [n] -> [4, n]."""
        n = len(targets)
        student, teacher, targets = (
            np.pad(c, [(0, self._chunk - n)] + [(0, 0)] * (c.ndim - 1)) for c in (student, teacher, targets)
        )
        values: Array = self._gap(
            self._of_student(Tensor(student, self._dtype), self.student.head_weight),
            self._of_teacher(Tensor(teacher, self._dtype), self.teacher.head_weight),
            Tensor(targets),
        ).asnumpy()[:, :n]
        return values


def _chunks(parts: Iterable[tuple[Array, ...]], size: int) -> Iterator[tuple[Array, ...]]:
    """Columns that come in parts, in chunks of ``size`` rows; the last may be shorter."""
    held: list[tuple[Array, ...]] = []
    for part in parts:
        held.append(part)
        if sum(len(columns[0]) for columns in held) >= size:
            joined = [np.concatenate(c) for c in zip(*held, strict=True)]
            whole = len(joined[0]) // size * size
            for start in range(0, whole, size):
                yield tuple(c[start : start + size] for c in joined)
            held = [tuple(c[whole:] for c in joined)]
    if sum(len(columns[0]) for columns in held):
        yield tuple(np.concatenate(c) for c in zip(*held, strict=True))


class HiddenStates:
    """Final hidden states of one model with one set of weights, by tokens; what was not asked for longest goes first.

    Students are compared with the same teacher along the same answers again and again, and the teacher's part of that
    is most of the work; one student is compared with several models along its own.

    Args:
        most: bytes to hold.
    """

    def __init__(self, most: int = 256 << 20):
        self._most, self._held = most, 0
        self._states: OrderedDict[tuple[bytes, ...], Array] = OrderedDict()

    def get(self, part: PrefillBatch, make: Callable[[], Array]) -> Array:
        """States [T, H] of a pass, made when they are not here."""
        rows = part.rows
        key = tuple(a.tobytes() for a in (rows.input_ids, rows.position_ids, rows.segment_ids, part.at))
        if key not in self._states:
            states = self._states[key] = make()
            self._held += states.nbytes
            while self._held > self._most and len(self._states) > 1:
                self._held -= self._states.popitem(last=False)[1].nbytes
        self._states.move_to_end(key)
        return self._states[key]
