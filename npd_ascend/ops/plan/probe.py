"""What this machine's CPU does, measured in about five seconds: seconds a token of each stage, and how fast it starts.

No engine is needed: one layer of each model runs in numpy at the model's shape, as a packed forward pass and as a step
of decoding, and the head over the whole vocabulary. What the engines need beside the arithmetic (start, compilation,
work a decoding step) is known from an idle machine with two cores and scaled by how fast this one runs Python. Of each
measurement the best counts, so the plan is that of a machine which the run has to itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.shapes import planned_spec
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops import machine_cache
from npd_ascend.ops.plan.calibrate import Calibration, Rate
from npd_ascend.ops.plan.workload import Workload
from npd_ascend.store.atomic import write_bytes

_EACH_S = 0.6
_TOKENS = 2048
_HEAD_ROWS = 64
_LOOP, _LOOP_S = 2_000_000, 0.062
"""A plain Python loop of this many turns, and its seconds on the machine that the constants below are from."""
_PROCESS = 3.5
"""Seconds in which a process imports MindSpore and loads a small model."""
_COMPILE = {"annotate": (0.8, 0.85), "train": (2.0, 3.0)}
"""Seconds of compiling: fixed, and for each layer. A graph that was compiled before takes ``_AGAIN`` of it."""
_AGAIN = 0.15
_ENGINE = (12.0, 0.3)
"""Seconds until vLLM is up: fixed, and for each layer."""
_STEP = 0.006
"""Seconds of vLLM's own work in each decoding step."""
_HOST = (1.2, 1.8)
"""Seconds of prepare, and of select and pack in each generation."""
_SCALING = 0.7
"""n cores are n to this power as fast as one."""
_BUSY = 0.5
"""Load a core before a measurement, from which on other work disturbs it."""
_TRAIN = 3.0
"""Forward and backward pass over a forward pass."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a model's parts.

    Attributes:
        prefill: of a token in all layers.
        decode: of a decoding step of ``batch`` sequences, head included.
        head: of a token's logits over the vocabulary and what annotation takes from them.
        update: of an optimiser step.
    """

    prefill: float
    decode: float
    head: float
    update: float
    layers: int
    batch: int


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Attributes:
        slow: how many times slower than the reference machine this one runs Python.
        machine: in words.
    """

    student: Speed
    teacher: Speed
    slow: float
    machine: str

    def calibration(self, config: Config) -> Calibration:
        """Rates by stage, for ``estimate``."""
        rollout = self.teacher if config.rollout.source == "teacher" else self.student
        step = rollout.decode + _STEP * self.slow
        engine = (_ENGINE[0] + _ENGINE[1] * rollout.layers) * self.slow
        # The engine stays up; a process that evaluates shares it.
        again = 0.5 * self.slow if config.rollout.keep_alive else engine
        rates = {
            "rollout": Rate(engine, again, step / rollout.batch),
            "evaluate": Rate(self.slow, self.slow, step / rollout.batch),
        }
        for name, speed in (("teacher", self.teacher), ("student", self.student)):
            rates[f"annotate_{name}"] = self._graph("annotate", speed, speed.prefill + speed.head)
        t = config.train
        tokens = t.global_batch * config.pack.row_length
        student = self.student
        rates["train"] = self._graph(
            "train", student, _TRAIN * (student.prefill + student.head) + student.update / tokens
        )
        return Calibration(rates, (_HOST[0] * self.slow, _HOST[1] * self.slow))

    def _graph(self, kind: str, speed: Speed, per_token: float) -> Rate:
        fixed, layer = _COMPILE[kind]
        compiling = fixed + layer * speed.layers
        return Rate((_PROCESS + compiling) * self.slow, (_PROCESS + _AGAIN * compiling) * self.slow, per_token)


def probe(config: Config, work: Workload) -> Probe:
    """Measures in a process of its own, and keeps the result for ``cached``.

    Args:
        config: says which models, and how many sequences decode at once.
        work: mean lengths.

    Raises:
        UserError: the measuring process fails.
    """
    job = [
        str(config.models.student),
        str(config.models.teacher),
        str(max(2, round(work.prompt_tokens + work.answer_tokens))),
        str(_batch(config, work)),
    ]
    # On one core, because threads that wait for each other measure the other jobs of a busy machine, not this one's.
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, "-m", __name__, *job], env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"measuring this machine fails: {(done.stderr.splitlines() or ['no message'])[-1]}; npd plan "
            "--device 910B2 plans for an NPU without it"
        )
    out = _read(done.stdout)
    if load > _BUSY * cores:
        out = replace(
            out, machine=f"{out.machine}, busy with other work: load {load:.1f}, so it may be faster than this"
        )
    try:
        write_bytes(_file(config, work), json.dumps(asdict(out)).encode())
    except OSError:
        pass  # the next one measures again
    return out


def cached(config: Config, work: Workload) -> Probe | None:
    """The result of an earlier probe on this machine for the same models and lengths, if there is one."""
    try:
        return _read(_file(config, work).read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(text: str) -> Probe:
    raw = json.loads(text)
    return Probe(Speed(**raw["student"]), Speed(**raw["teacher"]), float(raw["slow"]), str(raw["machine"]))


def _batch(config: Config, work: Workload) -> int:
    samples = work.prompts * config.rollout.paths / config.rollout.workers
    return max(1, round(min(config.rollout.max_num_seqs, samples)))


def _file(config: Config, work: Workload) -> Path:
    specs = [planned_spec(folder) for folder in (config.models.student, config.models.teacher)]
    key = repr([platform.node(), os.cpu_count(), specs, _batch(config, work)])
    return machine_cache.folder() / f"probe-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _machine() -> str:
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _best(work: Callable[[], object], seconds: float = _EACH_S) -> float:
    """Shortest time of a call: what the machine does when other jobs leave it alone."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _loop() -> int:
    total = 0
    for i in range(_LOOP):
        total += i
    return total


def _speed(spec: ModelSpec, length: int, batch: int) -> Speed:
    rng = np.random.default_rng(0)
    layer = _Layer(spec, rng)
    samples = max(1, _TOKENS // length)
    x = rng.standard_normal((samples, min(length, _TOKENS), spec.hidden_size), np.float32)
    one = rng.standard_normal((batch, 1, spec.hidden_size), np.float32)
    past = rng.standard_normal((2, batch, spec.num_kv_heads, length, spec.head_dim), np.float32)
    prefill = _best(lambda: layer(x)) / (x.shape[0] * x.shape[1])
    decode = _best(lambda: layer(one, past))
    head = rng.standard_normal((spec.hidden_size, spec.vocab_size), np.float32)
    rows = min(_HEAD_ROWS, batch)
    hidden = rng.standard_normal((rows, spec.hidden_size), np.float32)
    logits = _best(lambda: _log_softmax(hidden @ head), _EACH_S / 2) / rows
    update = _best(lambda: _adamw(layer.sizes), _EACH_S / 2) * spec.parameters / layer.sizes
    n, cores = spec.num_layers, len(os.sched_getaffinity(0)) ** _SCALING
    prefill, decode, logits, update = (x / cores for x in (prefill, decode, logits, update))
    return Speed(n * prefill, n * decode + batch * logits, logits, update, n, batch)


class _Layer:
    """A decoder layer in float32 with random weights."""

    def __init__(self, spec: ModelSpec, rng: np.random.Generator):
        h, f = spec.hidden_size, spec.intermediate_size
        q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.spec = spec
        self.qkv, self.out, self.up, self.down = (
            rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
            for shape in ((h, q + 2 * kv), (q, h), (h, 2 * f), (f, h))
        )
        self.sizes = sum(w.size for w in (self.qkv, self.out, self.up, self.down))

    def __call__(self, x: Array, past: Array | None = None) -> Array:
        """[B, T, H] from [B, T, H]; ``past`` [2, B, KV heads, context, D]: keys and values of a decoding step."""
        s, (b, t, _) = self.spec, x.shape
        mixed = (_norm(x) @ self.qkv).reshape(b, t, -1, s.head_dim).transpose(0, 2, 1, 3)
        q, k, v = np.split(mixed, [s.num_heads, s.num_heads + s.num_kv_heads], 1)
        if past is not None:
            k, v = past
        groups = s.num_heads // s.num_kv_heads
        q = q.reshape(b, s.num_kv_heads, groups * t, s.head_dim)
        weights = np.exp(_log_softmax(q @ k.swapaxes(-1, -2)))
        mixed = (weights @ v).reshape(b, s.num_heads, t, s.head_dim).transpose(0, 2, 1, 3).reshape(b, t, -1)
        x = x + mixed @ self.out
        gate, up = np.split(_norm(x) @ self.up, 2, -1)
        out: Array = x + (gate / (1 + np.exp(-gate)) * up) @ self.down
        return out


def _norm(x: Array) -> Array:
    scaled: Array = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-5))
    return scaled


def _log_softmax(z: Array) -> Array:
    z = z - z.max(-1, keepdims=True)
    out: Array = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return out


def _adamw(n: int) -> Array:
    g = np.ones(n, np.float32)
    m, v = 0.9 * g + 0.1 * g, 0.95 * g + 0.05 * g * g
    out: Array = g - 1e-3 * m / (np.sqrt(v) + 1e-8)
    return out


def main() -> None:
    """Measures; arguments: student, teacher, tokens of a sequence, sequences that decode at once."""
    specs = [planned_spec(Path(folder)) for folder in sys.argv[1:3]]
    length, batch = map(int, sys.argv[3:5])
    slow = _best(_loop) / _LOOP_S
    student, teacher = (_speed(spec, length, batch) for spec in specs)
    found = Probe(student, teacher, slow, _machine())
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
