"""Benchmarks of any checkpoint: what is asked for is checked here, then a worker in the rollout environment works."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from npd_ascend.bench.job import BenchJob
from npd_ascend.bench.registry import Benchmark, find
from npd_ascend.bench.results import Result, read_result
from npd_ascend.bench.rows import spread
from npd_ascend.config import Config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline.runner import Monitor
from npd_ascend.report.live import LiveView
from npd_ascend.store.atomic import write_json
from npd_ascend.store.identity import model_fingerprint
from npd_ascend.store.layout import RunDir
from npd_ascend.workers.local import LocalWorker
from npd_ascend.workers.process import NAMED
from npd_ascend.workers.session import PATIENT, Session, Work
from npd_ascend.workers.system import child_environment


def bench_checkpoint(
    config: Config,
    checkpoint: Path,
    tasks: Sequence[str],
    data: Path,
    out: Path | None = None,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    view: LiveView | None = None,
) -> list[Result]:
    """Scores a checkpoint on benchmarks, through lm-eval and vLLM; resumed where it stopped.

    Args:
        config: its ``models.tokenizer``, ``data``, ``rollout`` and ``device`` sections are used.
        checkpoint: Hugging Face folder.
        tasks: names of benchmarks.
        data: folder with their rows.
        out: below it each checkpoint has a folder, named after it and its content; ``<run.dir>/bench`` when None, from
            where the run's report takes it.
        limit: only so many rows of each benchmark, evenly spread.
        max_new_tokens: most tokens of an answer, in place of the benchmarks' own.
        seed: root of the seeds of sampled answers.
        view: where progress is shown.

    Returns:
        The scores, in the order of the names.

    Raises:
        UserError: an input is wrong or missing; what was scored before stays.
    """
    benchmarks = find(tasks)
    for benchmark in benchmarks:
        _look_at(benchmark, data, limit)
    check_checkpoint(checkpoint)
    environments, device = Environments.find(), resolve_device(config.device)
    _check_lm_eval(environments.rollout)
    placement = Placement.of(config, device.target)
    out = out or config.run.dir / "bench"
    identity = model_fingerprint(checkpoint, out / ".hashes.json")
    run = RunDir(out / f"{checkpoint.resolve().name}-{identity[:8]}")
    run.lock()
    cores = placement.cores("rollout")
    run.logs.mkdir(parents=True, exist_ok=True)
    job = BenchJob(
        out=run.root.resolve(),
        model=checkpoint.resolve(),
        checkpoint_id=identity,
        tokenizer=(config.models.tokenizer or checkpoint).resolve(),
        teacher=config.models.teacher.resolve(),
        trust_remote_code=config.models.trust_remote_code,
        data=config.data,
        folder=data.resolve(),
        benchmarks=list(tasks),
        limit=limit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        settings=config.rollout,
        device=device,
        env=placement.environment("rollout"),
        cores=list(cores) if cores else None,
        logs=run.logs.resolve(),
    )
    try:
        _work(job, run, environments.rollout, view or LiveView())
    finally:
        run.unlock()
    results = [read_result(run.root, b.name) for b in benchmarks]
    return [r for r in results if r]


def _look_at(benchmark: Benchmark, data: Path, limit: int | None) -> None:
    """Reads all rows, and asks those that count.

    Raises:
        UserError: a file is missing, or a row has another form.
    """
    rows = benchmark.rows(data)
    if not rows:
        raise UserError(f"benchmark {benchmark.name}: there are no rows in {data}")
    for row in spread(rows, limit):
        benchmark.asked(row)


def _check_lm_eval(python: Path) -> None:
    """Whether the rollout environment has lm-eval.

    Raises:
        UserError: it has not.
    """
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lm_eval') is None)"
    if subprocess.run([str(python), "-c", code], capture_output=True).returncode:
        raise UserError(f"{python} has no lm-eval, which benchmarks need; run scripts/setup_env.sh")


def _work(job: BenchJob, run: RunDir, python: Path, view: LiveView) -> None:
    """Has a worker do the job, and shows what it reports.

    Raises:
        UserError: it failed.
    """
    write_json(run.jobs / "bench.json", job.model_dump(mode="json"))
    command = [str(python), "-m", "npd_ascend.workers.process", NAMED, "bench"]
    env, log = child_environment(python), run.logs / "bench.log"
    monitor = Monitor(run.logs / "progress.jsonl", view)
    monitor.start()
    try:
        with Session("bench", lambda i, events: LocalWorker(i, command, env, log, events)) as session:
            session.do(Work("bench", job, "", PATIENT))  # it watches its engines itself
    finally:
        monitor.stop()
