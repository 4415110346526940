"""``report.html``: one self-contained page on a run, readable while it still goes on."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from npd_ascend import __version__
from npd_ascend.bench.results import read_folder
from npd_ascend.bench.table import Table, columns_of, tabulate
from npd_ascend.config.stages import title
from npd_ascend.report import numbers, tables
from npd_ascend.report.captions import author, captions, lag_title, loss_formula, rule
from npd_ascend.report.collect import Evaluation, Run, collect, last
from npd_ascend.report.rewards import groups_of
from npd_ascend.report.samples import gallery
from npd_ascend.report.warnings import warnings_of
from npd_ascend.store.atomic import write_bytes
from npd_ascend.store.layout import RunDir
from npd_ascend.visible import visible

_TEMPLATES = Path(__file__).parent / "templates"
_DEFAULT_SAMPLES = 6
_ANSWERS = 4
_TABLES = ("evaluations", "rewards", "selection", "rollouts", "stored", "packing", "time")
_FIGURES = (
    "accuracy",
    "loss",
    "optimiser",
    "lag",
    "zones",
    "delta",
    "lengths",
    "timeline",
    "reward",
    "policy",
    "exploration",
)


def build(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the report of a run.

    Args:
        run_dir: the run directory; whatever is not there yet is left out of the report.
        out: file to write; ``<run_dir>/report.html`` when None.

    Returns:
        The file written.

    Raises:
        UserError: ``run_dir`` holds no run.
    """
    paths = RunDir(Path(run_dir))
    run = collect(paths.root)
    out = Path(out) if out else paths.report
    write_bytes(out, render(run).encode())
    return out


def environment(templates: Path) -> Environment:
    """Where pages are rendered: what did not come from this package is escaped, and its control characters are shown
    as such, so that they cannot change the layout."""
    return Environment(
        loader=FileSystemLoader([templates, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )


def _harmless(value: object) -> object:
    return type(value)(visible(value)) if isinstance(value, str) else value


def render(run: Run) -> str:
    """The page as HTML; everything that did not come from this package is escaped."""
    # Matplotlib takes a while to import: whoever only may write a report at the end should not wait at the start.
    from npd_ascend.report import plots

    count = run.config.report.samples if run.config else _DEFAULT_SAMPLES
    samples = gallery(RunDir(run.root), run.config, count, run.problems)
    env = environment(_TEMPLATES)
    env.filters.update(number=numbers.number)
    return env.get_template("report.html.j2").render(
        run=run,
        name=run.root.resolve().name,
        tiles=_tiles(run),
        warnings=warnings_of(run),
        figures={name: getattr(plots, name)(run) for name in _FIGURES},
        tables={name: getattr(tables, name)(run) for name in _TABLES},
        benchmarks=_benchmarks(run),
        captions=captions(run),
        lag_title=lag_title(run.config),
        loss_formula=loss_formula(run.config) if run.config else "",
        author=author(run.config),
        samples=samples,
        groups=groups_of(RunDir(run.root), run.config, run.problems),
        answers=_answers(run),
        facts=_facts(run),
    )


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(label, value, note) of the headline figures that are known."""
    tiles = []
    start, end = run.evaluation("start"), run.evaluation("end")
    if start and end:
        gain = 100 * (end.accuracy - start.accuracy)
        tiles.append(
            (
                "Accuracy, before → after",
                f"{100 * start.accuracy:.1f} → {100 * end.accuracy:.1f} %",
                f"{gain:+.1f} points; 95 % intervals {_interval(start)} and {_interval(end)}",
            )
        )
    elif start:
        tiles.append(("Accuracy at the start", numbers.percent(start.accuracy), f"95 % interval {_interval(start)}"))
    wall = run.wall_seconds()
    if wall is not None:
        stages = sorted(run.times(), key=lambda t: -t.seconds)[:2]
        total = sum(t.seconds for t in run.times())
        shares = ", ".join(f"{title(t.stage)} {numbers.percent(t.seconds / total, 0)}" for t in stages if total)
        tiles.append(("Total time", numbers.duration(wall), shares))
    if run.generations:
        at = [f"{r['progress']:g}" for r in run.refreshes if "progress" in r]
        note = f"sparse update after epoch {', '.join(at[:4])}{' …' if len(at) > 4 else ''}"
        tiles.append(("Generations", str(len(run.generations)), note if at else "no sparse update so far"))
    selected = [g for g in run.generations if g.selection and g.selection.samples]
    if selected:
        latest = selected[-1].selection
        assert latest is not None
        beside = "paper: 96.2 %" if latest.rule_as_paper else rule(latest, run.config.select if run.config else None)
        tiles.append(
            (
                "Keep rate",
                numbers.percent(latest.keep_rate),
                f"{latest.kept:,} of {latest.samples:,}, generation {selected[-1].index}; {beside}",
            )
        )
    if run.rewarded:
        first, latest_rewards = run.rewarded[0].rewards, run.rewarded[-1].rewards
        assert first is not None and latest_rewards is not None
        tiles.append(
            (
                "Reward, first → latest",
                f"{numbers.number(first.mean)} → {numbers.number(latest_rewards.mean)}",
                f"mean over a generation's answers; {numbers.percent(latest_rewards.equal, 0)} of the latest groups "
                "are all alike",
            )
        )
    lag = last(run.lag, "forward")
    if lag is not None:
        near = f"; near-policy: ≤ {run.lag_bound:g}" if author(run.config) == "the student" else ""
        tiles.append(("Lag at the end", f"{numbers.number(lag, 2)} nats", f"KL(current‖generator){near}"))
    train = next((t for t in run.times() if t.stage == "train"), None)
    if train and train.tokens_per_second:
        loss = last(run.train, "loss")
        tiles.append(
            (
                "Training speed",
                f"{numbers.number(train.tokens_per_second)} tokens/s",
                f"{len(run.train):,} steps; loss at the end {numbers.number(loss)}",
            )
        )
    stores = [g.store for g in run.generations if g.store and g.store.tokens]
    if stores:
        bytes_, tokens = sum(s.bytes for s in stores), sum(s.tokens for s in stores)
        tiles.append(
            (
                "Teacher store",
                f"{bytes_ / tokens:.1f} B/token",
                f"{numbers.size(bytes_)} for {tokens:,} response tokens",
            )
        )
    return tiles


def _interval(e: Evaluation) -> str:
    return f"{100 * e.interval[0]:.1f}–{100 * e.interval[1]:.1f}"


def _answers(run: Run) -> dict[str, Any] | None:
    """Answers of the first and the latest evaluation to the same questions, a few of them."""
    shown = [e for e in run.evaluations if e.answers]
    shown = shown[:1] + shown[1:][-1:]
    if not shown:
        return None
    by_prompt = [{a["prompt"]: a for a in e.answers} for e in shown]
    rows = [
        {
            "prompt": _cut(a["prompt"]),
            "answer": _cut(a["answer"]),
            "responses": [
                {"response": _cut(x["response"]), "correct": x["correct"], "thinking": _cut(x.get("thinking"))}
                if x
                else None
                for x in (answers.get(a["prompt"]) for answers in by_prompt)
            ],
        }
        for a in shown[0].answers[:_ANSWERS]
    ]
    return {"names": [e.name for e in shown], "rows": rows}


def _benchmarks(run: Run) -> Table | None:
    """What ``npd bench`` has scored in the run's directory, beside the paper's students."""
    results = read_folder(run.root / "bench")
    beside = [c for c in columns_of("6,8") if c.title in ("SFT 1B", "NPD 1B", "NPD + GRPO 1B")]
    return tabulate(results, beside) if results else None


def _cut(text: object, at_most: int = 300) -> str:
    text = "" if text is None else str(text)
    return text[:at_most] + ("…" if len(text) > at_most else "")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What the run and this report were made with."""
    facts = [
        ("Run directory", str(run.root.resolve())),
        ("npd_ascend", __version__),
        ("Report written", time.strftime("%Y-%m-%d %H:%M:%S %Z")),
        (
            "Machine",
            f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        ),
    ]
    for key, value in run.state.items():
        if value in (None, ""):  # no error, say
            continue
        if key in ("started", "ended") and isinstance(value, int | float):
            value = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(value))
        if isinstance(value, dict):
            facts += [(f"{key}: {k}", str(v)) for k, v in value.items()]
        elif key not in ("pid", "schema"):
            facts.append((key.replace("_", " ").capitalize(), str(value)))
    return facts
