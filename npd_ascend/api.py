"""The commands of ``npd`` as functions, for notebooks and programs; ``npd_ascend/__init__.py`` exports them.

All of them raise ``UserError`` for what the caller can mend and ``MachineError`` where disk, memory or threads ran out
(the tree of exceptions is in ``npd_ascend/errors.py``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npd_ascend.config.load import load_config
from npd_ascend.config.schema import Config
from npd_ascend.out_of_memory import as_machine_error
from npd_ascend.store.stored_run import StoredRun, open_run


def run(config: Config | str | Path, *, stage: str | None = None, redo: bool = False, quiet: bool = False) -> StoredRun:
    """Runs a configuration in its run directory, or goes on where it stopped; the same as ``npd run``.

    Stages run in processes of the two environments (``scripts/setup_env.sh``), so the calling interpreter needs
    no engine. Relative paths are relative to the working directory.

    Args:
        config: a configuration, or the YAML file of one.
        stage: run only this stage, in the first generation that lacks it.
        redo: accept changed settings for an existing run, and make again what depends on them.
        quiet: print no progress.

    Returns:
        The run, for reading.

    Raises:
        UserError: an input, a setting or an environment has to be mended; what was finished stays.
        MachineError: disk, memory or threads ran out.
        Interruption: Ctrl-C or SIGTERM; all processes are gone, and the same call goes on from there. Only in the main
            thread: in others signals are the caller's affair.
    """
    from npd_ascend.pipeline.executor import Executor
    from npd_ascend.report.live import LiveView

    loaded = _config(config)
    with as_machine_error():
        if quiet:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                Executor(loaded, redo, LiveView(nowhere)).run(stage)
        else:
            Executor(loaded, redo).run(stage)
    return open_run(loaded.run.dir)


def dry_run(config: Config | str | Path) -> str:
    """What ``run`` would do, what is done already and what the rest would cost, as text; writes nothing.

    Raises:
        UserError: whatever would stop the run before its first stage.
    """
    from npd_ascend.pipeline.describe import describe

    with as_machine_error():
        return describe(_config(config))


def evaluate_checkpoint(config: Config | str | Path, checkpoint: str | Path, out: str | Path) -> dict[str, Any]:
    """Accuracy of a checkpoint on the held-out prompts of ``config.evaluate``; the same as ``npd evaluate``.

    Args:
        config: a configuration with ``evaluate.prompts``, or the YAML file of one.
        checkpoint: Hugging Face folder.
        out: folder for prompts, answers and ``result.json``; resumed like a run.

    Returns:
        The result: ``n``, ``correct``, ``accuracy`` (0 to 1), ``interval`` (95 %), ``truncated``, ``samples``, ...

    Raises:
        UserError: an input, a setting or an environment has to be mended.
        MachineError: disk, memory or threads ran out.
    """
    from npd_ascend.pipeline.evaluation import evaluate_checkpoint as evaluate

    with as_machine_error():
        return evaluate(_config(config), Path(checkpoint), Path(out))


def bench_checkpoint(
    config: Config | str | Path,
    checkpoint: str | Path,
    tasks: Sequence[str],
    data: str | Path,
    out: str | Path | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Scores of a checkpoint on public benchmarks; the same as ``npd bench``.

    Args:
        config: configuration of the run that it belongs to, or the YAML file of one.
        checkpoint: Hugging Face folder.
        tasks: names of benchmarks (docs/bench.md).
        data: folder with their rows.
        out: folder for scores and answers; ``bench`` in the run directory when None. Resumed like a run.
        limit: only so many rows of each, evenly spread.
        max_new_tokens: most tokens of an answer, in place of the benchmarks' own.
        seed: of sampled answers.

    Returns:
        By benchmark: ``score`` (0 to 1), ``interval`` (95 %), ``n``, ``settings``, ...

    Raises:
        UserError: an input, a setting or an environment has to be mended; what was scored stays.
        MachineError: disk, memory or threads ran out.
    """
    from npd_ascend.pipeline.benchmarking import bench_checkpoint as bench

    with as_machine_error():
        found = bench(
            _config(config),
            Path(checkpoint),
            tasks,
            Path(data),
            Path(out) if out else None,
            limit=limit,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
    return {result.benchmark: asdict(result) for result in found}


def build_report(run_dir: str | Path) -> Path:
    """Builds ``report.html`` of a run, finished or not; returns its path.

    Raises:
        UserError: there is no run.
        MachineError: the disk is full.
    """
    from npd_ascend.report.build import build

    with as_machine_error():
        return build(Path(run_dir))


def _config(config: Config | str | Path) -> Config:
    return config if isinstance(config, Config) else load_config(config)
