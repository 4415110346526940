"""The invariants of distillation on the user's own models: ``python -m npd_ascend.ops.selftest JOB.json``.

Runs in the MindSpore environment; ``doctor.selftest`` writes the job and reads the results, one JSON line each:
``{"name", "value", "limit"}``, good when value <= limit; ``{"begins"}`` says what is at work. Inputs are random token
ids of a fixed seed: what is tested is that two ways to compute the same thing agree, whatever the tokens.

Logits agree as far as their type lets them, which depends on the weights: where hidden states reach tens of thousands,
float32 leaves differences that would be faults elsewhere. The measure is how far transformers' logits, in the type of
the device, are from its own in float64 (``tolerance``).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.models.spec import ModelSpec

_LENGTHS = (7, 23, 2, 41, 12, 30)
_LOSS_ROWS = 8
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
"""Of logits, nats, by ``distance``, for models of usual hidden states. Eight bits of mantissa at logits of 20 to 40
leave differences of 0.1."""
_TIMES = {"float32": 4.0, "bfloat16": 3.0}
"""This multiple of the distance of transformers from its own float64 is taken for rounding: sums in another order are
off by as much, and the largest of a million differences (float32) varies more than a root mean square (bfloat16)."""
_MOST = {"float32": 0.05, "bfloat16": 1.0}
"""Beyond that a tolerance would let faults pass; a model that needs more should not be computed in this type."""


def tolerance(dtype: str, own: float) -> float:
    """What logits of a model may differ by.

    Args:
        dtype: type of the computation.
        own: ``distance`` between transformers' logits in that type and in float64.
    """
    return min(max(TOLERANCE[dtype], _TIMES[dtype] * own), _MOST[dtype])


def distance(difference: Array, dtype: str) -> float:
    """Of logits [n, V], or of a sequence's log-probs [n]: the largest difference; in bfloat16, where the largest of
    millions of rounding errors says little, the largest root mean square of a position, or that of the sequence."""
    if dtype == "float32":
        return float(np.abs(difference).max())
    return float(np.sqrt(np.square(difference, dtype=np.float64).mean(-1)).max())


def sequences(vocab: int, seed: int = 0) -> list[Array]:
    """Token ids of the test, int32."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n).astype(np.int32) for n in _LENGTHS]


class Selftest:
    """The tests of one pair of models.

    Args:
        teacher, student: Hugging Face folders.
        device: what they run on.
        row_length: positions a row, at least the sum of ``_LENGTHS``.
        reference: what ``hf_logits`` wrote for the student; without it, the tolerance is that for usual models.
    """

    def __init__(self, teacher: Path, student: Path, device: Device, row_length: int, reference: Path | None = None):
        from npd_ascend.models.network import build
        from npd_ascend.models.weights import load_hf

        self.teacher, self.student, self.device, self.row = teacher, student, device, row_length
        self.spec, self.teacher_spec = ModelSpec.from_folder(student), ModelSpec.from_folder(teacher)
        self.net = build(self.spec, device, row_length)
        load_hf(self.net, student)
        self.texts = sequences(min(self.spec.vocab_size, self.teacher_spec.vocab_size))
        self.exact: list[Array] = []
        own = 0.0
        if reference is not None:
            with np.load(reference) as found:
                self.exact = [found[f"e{i}"] for i in range(len(self.texts))]
                own = max(distance(found[f"s{i}"] - e, device.dtype) for i, e in enumerate(self.exact))
        self.tolerance = tolerance(device.dtype, own)
        announce("compiling the student")
        self.packed = self._hidden(self.net, [self.texts])

    def run(self) -> None:
        """Prints a result for each test."""
        for what, test in (
            ("rows and their neighbours", self._packing),
            ("the loss", self._loss),
            ("annotation", self._annotation),
            ("scores", self._scores),
            ("writing and reading weights", self._round_trip),
            ("transformers", self._reference),
        ):
            announce(what)
            test()

    # ---- tests

    def _packing(self) -> None:
        """Packed = unpacked; neighbours in a row never matter."""
        alone = [self._hidden(self.net, [[t]])[0] for t in self.texts]
        gap = max(self._logit_gap(a, b) for a, b in zip(self.packed, alone, strict=True))
        _say("packed rows give the logits of single sequences", gap, self.tolerance)
        others = [t if i == 3 else t[::-1].copy() for i, t in enumerate(self.texts)]
        _say(
            "neighbours in a row do not matter",
            self._logit_gap(self._hidden(self.net, [others])[3], self.packed[3]),
            self.tolerance,
        )

    def _loss(self) -> None:
        """k = V: the loss over the stored support is the full KL; chunked = plain, values and gradients."""
        hidden = np.concatenate(self.packed)[:_LOSS_ROWS].astype(np.float32)
        head = self.net.head_weight.float().asnumpy()
        theirs = self._teacher_logits()
        vocab = min(head.shape[0], theirs.shape[1])
        ids = np.tile(np.arange(vocab, dtype=np.int32), (_LOSS_ROWS, 1))
        labels = np.arange(_LOSS_ROWS, dtype=np.int32) % vocab
        own = _log_softmax(hidden.astype(np.float64) @ head.T.astype(np.float64))
        plain = _log_softmax(theirs[:, :vocab].astype(np.float64))
        full_kl = float((np.exp(plain) * (plain - own[:, :vocab])).sum())
        whole = self._chunked(hidden, head, labels, ids, plain, chunk=_LOSS_ROWS)
        scale = max(1.0, abs(full_kl))
        _say("top-k loss with k = V is the full KL", abs(whole[1] - full_kl) / scale, 1e-4)
        _say(
            "student = teacher: KL is 0",
            abs(
                self._chunked(hidden, head, labels, ids, own[:, :vocab], _LOSS_ROWS)[1]
                if vocab == head.shape[0]
                else 0.0
            ),
            1e-3,
        )
        parts = self._chunked(hidden, head, labels, ids, plain, chunk=3)
        expected = self._plain_gradients(own, head, hidden, labels, plain, vocab)
        _say("chunked loss is the plain loss", abs(parts[0] - whole[0]) / scale, 1e-5)
        _say(
            "chunked gradients are the plain gradients",
            max(
                float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))
                for a, b in zip(parts[2:], expected, strict=True)
            ),
            1e-3,
        )

    def _annotation(self) -> None:
        """What an NPU finds inside the graph, the best tokens among it, numpy finds on the host."""
        import mindspore as ms

        from npd_ascend.annotate.head import ChunkedHead

        hidden, targets = np.concatenate(self.packed).astype(np.float32), np.concatenate(self.texts)
        at, k = np.arange(len(hidden)), min(10, self.spec.vocab_size)
        graph, host = (
            ChunkedHead(self.net.head_weight, 32, on_host=on_host)(ms.Tensor(hidden), at, targets, k)
            for on_host in (False, True)
        )
        logits = self._logits(hidden)
        chosen = np.take_along_axis(logits, graph.ids, 1) - host.logz[:, None]
        gap = max(
            float(np.abs(getattr(graph, name) - getattr(host, name)).max())
            for name in ("logprobs", "logz", "sampled", "entropy")
        )
        _say(
            "annotation inside the graph is that of the host",
            max(gap, float(np.abs(chosen - host.logprobs).max())),
            2e-3,
        )

    def _scores(self) -> None:
        """Student as its own teacher: Δ-IFD 0; scores do not depend on what else is scored."""
        from npd_ascend.annotate.prefill import Scorer
        from npd_ascend.config.schema import AnnotateConfig

        settings = AnnotateConfig(row_length=self.row, vocab_chunk_rows=64)
        heads, bodies = [t[:2] for t in self.texts], [np.append(t[2:], t[:1]) for t in self.texts]
        unconditioned = [t[:1] for t in self.texts]
        scorers = (Scorer(self.student, self.spec, settings, self.device) for _ in range(2))
        ifd = []
        for scorer in scorers:
            with_prompt, without = scorer.score(heads, bodies, 0), scorer.score(unconditioned, bodies, 0)
            ifd.append([a.sampled.mean() / b.sampled.mean() for a, b in zip(with_prompt, without, strict=True)])
            single = [scorer.score([h], [b], 0)[0] for h, b in zip(heads, bodies, strict=True)]
        _say("student = teacher: delta IFD is 0", float(np.abs(np.subtract(ifd[0], ifd[1])).max()), 0.0)
        _say(
            "scores do not depend on the packing",
            max(distance(a.sampled - b.sampled, self.device.dtype) for a, b in zip(with_prompt, single, strict=True)),
            self.tolerance,
        )

    def _round_trip(self) -> None:
        """Hugging Face -> MindFormers -> Hugging Face bit for bit; and what a refresh does: the lag after it is 0."""
        from npd_ascend.models import tensorfile
        from npd_ascend.models.weights import load_hf, save_hf

        with tempfile.TemporaryDirectory(prefix="npd-selftest-") as folder:
            out = Path(folder) / "export"
            save_hf(self.net, out, self.student)
            before, after = tensorfile.entries(self.student), tensorfile.entries(out)
            different = sum(not np.array_equal(before[n].read(), after[n].read(), equal_nan=True) for n in after)
            _say(
                "Hugging Face -> MindFormers -> Hugging Face: tensors that differ",
                different + len(set(before) ^ set(after)),
                0,
            )
            load_hf(self.net, out)
        again = self._hidden(self.net, [self.texts])
        lag = max(self._logit_gap(a, b) for a, b in zip(again, self.packed, strict=True))
        _say("the lag right after a refresh is 0", lag, 0.0)

    def _reference(self) -> None:
        """Logits of transformers in float64."""
        if self.exact:
            gap = max(
                distance(self._logits(h) - e, self.device.dtype) for h, e in zip(self.packed, self.exact, strict=True)
            )
            _say("logits of MindFormers are those of transformers in float64", gap, self.tolerance)

    # ---- parts

    def _hidden(self, net: Any, rows: list[list[Array]]) -> list[Array]:
        """Hidden states of each sequence, [length, H] float32."""
        import mindspore as ms

        from npd_ascend.rows.collate import collate

        batch = collate(rows, self.row, net.spec.pad_token_id, len(rows))
        hidden = net(*net.inputs(batch)).astype(ms.float32).asnumpy()
        return [hidden[a : a + n] for a, n in zip(batch.starts, batch.lengths, strict=True)]

    def _logits(self, hidden: Array) -> Array:
        return hidden @ self.net.head_weight.float().asnumpy().T

    def _logit_gap(self, a: Array, b: Array) -> float:
        return distance(self._logits(a - b), self.device.dtype)

    def _teacher_logits(self) -> Array:
        from npd_ascend.models.network import build
        from npd_ascend.models.weights import load_hf

        net = build(self.teacher_spec, self.device, self.row, params_dtype=self.device.dtype)
        load_hf(net, self.teacher)
        hidden = np.concatenate(self._hidden(net, [self.texts]))[:_LOSS_ROWS]
        return hidden @ net.head_weight.float().asnumpy().T

    def _chunked(
        self, hidden: Array, head: Array, labels: Array, ids: Array, teacher: Array, chunk: int
    ) -> tuple[float, float, Array, Array]:
        """Loss, KL, dLoss/dHidden and dLoss/dHead of the default loss."""
        import mindspore as ms

        from npd_ascend.config.schema import LossConfig
        from npd_ascend.objectives.chunked import ChunkedLoss
        from npd_ascend.objectives.inputs import LossInputs

        loss = ChunkedLoss(LossConfig(), chunk)
        inputs = LossInputs(
            labels=labels,
            weights=np.ones((len(hidden), 2), np.float32),
            teacher_ids=ids,
            teacher_logprobs=teacher.astype(np.float32),
        )
        value, terms, *gradients = (x.asnumpy() for x in loss(ms.Tensor(hidden), ms.Tensor(head), loss.tensors(inputs)))
        return float(value), float(terms[1]), *gradients

    def _plain_gradients(
        self, own: Array, head: Array, hidden: Array, labels: Array, teacher: Array, vocab: int
    ) -> tuple[Array, Array]:
        """dLoss/dHidden and dLoss/dHead in float64: (1 − λ)(softmax − label) + λ(softmax − teacher)."""
        from npd_ascend.config.schema import LossConfig

        kd = LossConfig().kd_weight
        d = np.exp(own)
        d[np.arange(len(d)), labels] -= 1 - kd
        d[:, :vocab] -= kd * np.exp(teacher)
        return d @ head.astype(np.float64), d.T @ hidden.astype(np.float64)


def _log_softmax(z: Array) -> Array:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def announce(what: str) -> None:
    """Says what is at work now."""
    print(json.dumps({"begins": what}), flush=True)


def _say(name: str, value: float, limit: float) -> None:
    print(json.dumps({"name": name, "value": float(value), "limit": limit}), flush=True)


def main() -> None:
    """Runs the job in the file given as the only argument."""
    job = json.loads(Path(sys.argv[1]).read_text())
    announce("MindFormers loads the student")
    Selftest(
        Path(job["teacher"]),
        Path(job["student"]),
        Device.model_validate(job["device"]),
        job["row_length"],
        Path(job["reference"]) if job["reference"] else None,
    ).run()


if __name__ == "__main__":
    main()
