"""Benchmarks' random samples pass for a corpus: training's own reader takes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from npd_ascend.config.schema import TrainConfig
from npd_ascend.train.reader import Reader

FILE = Path(__file__).parents[2] / "benchmarks" / "random_samples.py"


@pytest.mark.parametrize("lengths", ["mini_lengths", "chat_lengths"])
def test_the_reader_takes_them(lengths: str) -> None:
    spec = importlib.util.spec_from_file_location("random_samples", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    samples = module.Samples(getattr(module, lengths)(4), vocab=300)
    plan = samples.plan([np.array([0, 2]), np.array([1, 3])])
    settings = TrainConfig(global_batch=2, micro_batch=2, vocab_chunk_rows=64)
    batch = next(Reader(samples, [plan], samples, settings, 1024, 0, 300).micro_batches(0, 0))
    assert batch.tokens == samples.sizes.sum()
