"""What a node report measures of vLLM: ``python -m npd_ascend.ops.node_report.engine JOB.json``, rollout environment.

One engine: its start, decode steps at three numbers of sequences, then weights replaced in place and the answers
checked (under captured graphs, where the engine has them). Lines as ``bench`` writes them.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.ops.node_report.lines import Lines
from npd_ascend.rollout.engine import Engine
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.requests import Request

_FACTOR = 1.02
"""Between a weight and that of the other checkpoint: any stale one shows, and logits stay usable."""


def decode(engine: Engine, job: RolloutJob, sequences: int, prompt: int, tokens: int) -> dict[str, Any]:
    """Answers ``sequences`` prompts at once, each with exactly ``tokens`` tokens."""
    rng = np.random.default_rng(sequences)
    for i in range(sequences):
        ids = rng.integers(0, job.vocabulary, prompt).tolist()
        request = Request(0, i, ids, None, tokens)
        params = engine.params(job, request)
        params.ignore_eos = True
        engine.submit(f"{sequences}-{i}", request, params)
    steps: list[float] = []
    done = 0
    begun = time.perf_counter()
    while done < sequences:
        at = time.perf_counter()
        done += len(engine.step())
        steps.append(time.perf_counter() - at)
    seconds = time.perf_counter() - begun
    return {
        "sequences": sequences,
        "prompt": prompt,
        "answer": tokens,
        "tokens": sequences * tokens,
        "seconds": seconds,
        "tokens_per_second": sequences * tokens / seconds,
        "step_ms": 1e3 * float(np.median(steps)),  # prefills are few
        "eager": engine.eager,
    }


def reload(engine: Engine, model: Path, folder: Path) -> dict[str, Any]:
    """Other weights in place and back, each time with a check of the answers."""
    other = changed(model, folder)
    engine.check()
    found: dict[str, Any] = {"eager": engine.eager}
    for name, weights in (("to", other), ("back", model)):
        begun = time.perf_counter()
        engine.reload(weights)
        found[f"{name}_seconds"] = time.perf_counter() - begun
        verdict = engine.check()
        found[name] = str(verdict)
        if not verdict.passed:
            return {**found, "error": f"the engine does not answer with the new weights: {verdict}"}
    return found


def changed(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint in which every weight is another."""
    from safetensors.torch import load_file, save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.suffix == ".safetensors":
            weights = {n: (w * _FACTOR).to(w.dtype).contiguous() for n, w in load_file(path).items()}
            save_file(weights, folder / path.name, metadata={"format": "pt"})
        elif path.suffix != ".bin" and path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def main() -> None:
    """Takes the measurements of a job."""
    given = json.loads(Path(sys.argv[1]).read_text())
    job, lines = RolloutJob.model_validate(given["job"]), Lines(Path(given["lines"]))
    engines: list[Engine] = []

    def start() -> dict[str, Any]:
        begun = time.perf_counter()
        engines.append(Engine(job))
        return {"seconds": time.perf_counter() - begun, "eager": engines[0].eager}

    lines.take("engine start", start)
    if not engines:
        return
    for n in given["sequences"]:
        lines.take(
            f"decode, {n} sequences",
            lambda n=n: decode(engines[0], job, n, given["prompt"], given["answer"]),  # type: ignore[misc]
        )
    folder = Path(given["folder"])
    lines.take("reload of weights", lambda: reload(engines[0], job.model, folder))
    shutil.rmtree(folder, ignore_errors=True)
    engines[0].close()


if __name__ == "__main__":
    main()
