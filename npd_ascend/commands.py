"""The commands of ``npd``. No logic here: every command calls one function of a package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from npd_ascend import __version__, interrupt, out_of_memory
from npd_ascend.config.stages import check_stage, groups, stage_names
from npd_ascend.errors import MachineError, UserError
from npd_ascend.visible import one_line, visible

app = typer.Typer(
    name="npd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ConfigPath = Annotated[Path, typer.Argument(help="configuration file, e.g. configs/mini.yaml", show_default=False)]


def _settings(incomplete: str) -> list[str]:
    """Completions of ``--set``."""
    from npd_ascend.config.schema import Config

    return [f"{key}=" for key in _keys(Config) if key.startswith(incomplete)]


def _keys(kind: type[Any], at: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        yield from _keys(inner, f"{at}{name}.") if hasattr(inner, "model_fields") else [f"{at}{name}"]


def _stages(incomplete: str) -> list[str]:
    """Completions of ``--stage``."""
    return [name for name in stage_names() if name.startswith(incomplete)]


Set = Annotated[
    list[str] | None, typer.Option("--set", help="override a setting: section.key=value", autocompletion=_settings)
]
Redo = Annotated[bool, typer.Option("--redo", help="accept changed settings; make again what depends on them")]


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Near-Policy Distillation: a student learns from its own outputs at the speed of supervised fine-tuning."""


@app.command()
def run(
    config: ConfigPath,
    set_: Set = None,
    stage: Annotated[
        str | None, typer.Option(help=f"run only this stage: {', '.join(stage_names())}", autocompletion=_stages)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done and what it would cost")] = False,
    redo: Redo = False,
) -> None:
    """Runs a configuration, or goes on where it stopped."""
    from npd_ascend.config import load_config

    if stage:
        check_stage(stage)
    loaded = load_config(config, set_, inputs=not dry_run)
    if dry_run:
        from npd_ascend.pipeline.describe import describe

        _say(describe(loaded))
        return
    _execute(loaded, stage, redo)


def _stage_command(name: str, what: str) -> None:
    def command(config: ConfigPath, set_: Set = None, redo: Redo = False) -> None:
        from npd_ascend.config import load_config

        _execute(load_config(config, set_, inputs=True), name, redo)

    app.command(name, help=f"{what} (the first generation that lacks it).")(command)


for _name, _stage in groups().items():
    if _name != "evaluate":  # that command takes any checkpoint
        _stage_command(_name, _stage.does)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face folder to evaluate")],
    config: Annotated[Path, typer.Option(help="configuration with an evaluate section")],
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="folder; each checkpoint gets one of its own below it")] = Path(
        "runs/evaluate"
    ),
) -> None:
    """Exact-match accuracy of any checkpoint on the held-out prompts, through vLLM."""
    from npd_ascend.config import load_config
    from npd_ascend.pipeline.evaluation import evaluate_checkpoint

    interrupt.unwind()
    result = evaluate_checkpoint(load_config(config, set_, inputs=True), checkpoint, out)
    low, high = result["interval"]
    _say(f"checkpoint {result['checkpoint']}")
    _say(f"accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, n = {result['n']})")
    for k, value in result.get("pass_at", {}).items():
        _say(f"pass@{k} {value if isinstance(value, float) else value['value']:.4f}")
    _say(f"written to {result['written']}")


@app.command()
def bench(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Hugging Face folder to score; with --table: folders with scores")
    ],
    config: Annotated[Path | None, typer.Option(help="configuration of the run that the checkpoint belongs to")] = None,
    tasks: Annotated[str, typer.Option(help="names with commas between them, e.g. gsm8k,math500,ifeval")] = "",
    data: Annotated[Path | None, typer.Option(help="folder with the benchmarks' files")] = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="each checkpoint gets a folder below it; default: bench in the run directory")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only so many rows of each benchmark, evenly spread")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="most tokens of an answer")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of sampled answers")] = 0,
    table: Annotated[str, typer.Option(help="print scores side by side: markdown or latex")] = "",
    paper: Annotated[str, typer.Option(help="tables of the paper to show beside: 6, 7, 8, 15, 16, 17")] = "",
) -> None:
    """Scores checkpoints on public benchmarks, through lm-eval and vLLM; or prints a table of the scores."""
    from npd_ascend.bench.table import compare, lines

    if table:
        _say(compare(checkpoints, table, paper))
        return
    if config is None or data is None:
        raise UserError("npd bench needs --config and --data; with --table it prints scores that are there already")
    from npd_ascend.config import load_config
    from npd_ascend.pipeline.benchmarking import bench_checkpoint

    interrupt.unwind()
    names = [name for name in tasks.split(",") if name]
    loaded = load_config(config, set_)
    for checkpoint in checkpoints:
        found = bench_checkpoint(
            loaded, checkpoint, names, data, out, limit=limit, max_new_tokens=max_new_tokens, seed=seed
        )
        _say(lines(found))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="run directory")],
    monitor: Annotated[
        list[str] | None, typer.Option(help="also give the curves to tensorboard, wandb, swanlab or module:function")
    ] = None,
) -> None:
    """Builds report.html of a run, finished or not."""
    from npd_ascend.report.build import build

    _say(f"report: {build(run_dir)}")
    for name in monitor or []:
        from npd_ascend.monitors.feed import hand_on
        from npd_ascend.store.layout import RunDir

        hand_on(name, RunDir(run_dir))


@app.command()
def plan(
    config: ConfigPath,
    set_: Set = None,
    device: Annotated[
        str | None,
        typer.Option(help="NPU: 910B1, 910B2, 910B3, 910B4, 910C (one die); default: 910B2, on a CPU this machine"),
    ] = None,
    devices: Annotated[int | None, typer.Option(help="how many, over all nodes; default: what the config uses")] = None,
    prompts: Annotated[int | None, typer.Option(help="number of prompts; default: counted in the files")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(help="mean tokens of a prompt")] = None,
    answer_tokens: Annotated[float | None, typer.Option(help="mean tokens of an answer")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="finished run, or node report, of this machine")] = None,
    against: Annotated[str, typer.Option(help="other loops to compare with, e.g. on_policy,gkd,distillm2")] = "",
) -> None:
    """Estimates tokens, FLOPs, time, disk and device memory of each stage before anything runs."""
    from npd_ascend.config import load_config
    from npd_ascend.ops.plan import compare_loops, estimate_run, render

    loaded = load_config(config, set_)
    _say(
        compare_loops(loaded, against.split(","), device, devices, prompts, prompt_tokens, answer_tokens, calibrate)
        if against
        else render(estimate_run(loaded, device, devices, prompts, prompt_tokens, answer_tokens, calibrate))
    )


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="also check this configuration's models and paths")] = None,
    set_: Set = None,
    selftest: Annotated[bool, typer.Option("--selftest", help="test the invariants on the models of CONFIG")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="first run on an NPU: tiny, whole chain, compared")] = False,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="with --smoke and --node-report: what needs no NPU, or the CPU in its place")
    ] = False,
    out: Annotated[Path, typer.Option(help="with --smoke: folder of its run")] = Path("runs/smoke"),
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile", help="compile the graphs of CONFIG for Ascend, on any machine; its models may still be missing"
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="with --compile: file for all that was found")] = None,
    node_report: Annotated[
        Path | None,
        typer.Option(help="first hour on a node: tests and measurements into this folder, to be sent back; goes on"),
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="with --node-report: only this part; several times")] = None,
) -> None:
    """Checks environments, devices and (with a configuration) models, data and disk room."""
    from npd_ascend.ops.doctor import render, visit

    interrupt.unwind()
    findings = visit(config, set_, selftest, smoke, cpu, out, compile_, json, node_report, part)
    _say(render(findings))
    if any(f.level == "error" for f in findings):
        raise typer.Exit(2)


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="study, e.g. configs/study_quick.yaml", show_default=False)],
    set_: Set = None,
    only: Annotated[list[str] | None, typer.Option(help="group or group/arm; may be given several times")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the arms and what they may take")] = False,
) -> None:
    """Compares methods over tasks and seeds, or goes on where it stopped; writes a report."""
    from npd_ascend.config.study import load_study
    from npd_ascend.study.conduct import conduct, describe

    loaded = load_study(config, set_)
    if dry_run:
        _say(describe(loaded, only or []))
        return
    interrupt.unwind()
    if failed := conduct(loaded, only or [], _say):
        raise UserError(f"{failed} arms failed, see above; the same command runs them again")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="checkpoint folder (safetensors, sharded or not)")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; empty keeps each tensor's own")] = "",
) -> None:
    """Checks a checkpoint key by key and rewrites it as Hugging Face safetensors."""
    from npd_ascend.models.convert import convert as convert_checkpoint

    _say(convert_checkpoint(source, target, dtype or None))


@app.command()
def prune(
    source: Annotated[Path, typer.Argument(help="checkpoint folder of any supported family")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    keep: Annotated[int | None, typer.Option(help="how many layers to keep, by block influence on --texts")] = None,
    layers: Annotated[str | None, typer.Option(help="which layers to keep, e.g. 0,1,5; in place of --keep")] = None,
    texts: Annotated[Path | None, typer.Option(help="prompt file (prompt, response) to measure influence on")] = None,
    limit: Annotated[int, typer.Option(min=1, help="rows of --texts that are read")] = 32,
) -> None:
    """Makes a shallower checkpoint of a teacher: the start of its student."""
    from npd_ascend.ops.pruning import prune_checkpoint

    _say(prune_checkpoint(source, out, keep, layers, texts, limit))


@app.command()
def decontaminate(
    prompts: Annotated[list[Path], typer.Argument(help="prompt files, JSON lines", show_default=False)],
    against: Annotated[list[Path], typer.Option(help="benchmark file, or folder of them; may be given several times")],
    out: Annotated[Path | None, typer.Option(help="write the rows that overlap with nothing")] = None,
    report_: Annotated[Path | None, typer.Option("--report", help="write the report as Markdown")] = None,
    ngram: Annotated[int, typer.Option(min=5, help="words that must agree in a row")] = 13,
) -> None:
    """Finds prompts that share a run of words with benchmarks; exit code 1 where some do and --out is not given."""
    from npd_ascend.data.decontaminate import decontaminate as find_overlap
    from npd_ascend.store.atomic import write_bytes

    found = find_overlap(prompts, against, out, ngram)
    if report_:
        write_bytes(report_, found.markdown().encode())
    _say(found.markdown().rstrip())
    if found.overlapping and out is None:
        raise typer.Exit(1)


@app.command()
def join(config: ConfigPath, set_: Set = None) -> None:
    """Takes this node's part (NODE_RANK of NODES) in a run that node 0 leads; scripts/start_node.sh calls it."""
    from npd_ascend.config import load_config
    from npd_ascend.ops.nodes import Nodes
    from npd_ascend.pipeline.join import join as join_run

    nodes = Nodes.from_environment()
    if not 0 < nodes.rank < nodes.count:
        raise UserError("npd join is for nodes 1, 2, ...: set NODES, NODE_RANK and MASTER_ADDR (scripts/start_node.sh)")
    settings = load_config(config, set_, inputs=True)
    interrupt.unwind()
    join_run(settings, nodes)


@app.command()
def version() -> None:
    """Prints the version."""
    _say(__version__)


def _execute(config: object, stage: str | None, redo: bool) -> None:
    from npd_ascend.config import Config
    from npd_ascend.pipeline.executor import Executor, Stopped, exit_code

    assert isinstance(config, Config)
    try:
        executor = Executor(config, redo)
        executor.run(stage)
        _say(f"report: {executor.run_dir.report}")
    except Stopped as e:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(exit_code(e)) from None


def run_command() -> None:
    """Reads the command line and does what it says; errors become one line and an exit code."""
    try:
        with out_of_memory.as_machine_error():
            app(standalone_mode=True)
    except interrupt.Interrupted:
        print("stopped", file=sys.stderr, flush=True)
        sys.exit(interrupt.EXIT_INTERRUPTED)
    except (UserError, MachineError) as e:
        _end(str(e), e.exit_code)


def _say(text: str) -> None:
    """Prints text for people; names and texts within it cannot steer the terminal."""
    typer.echo(visible(text))


def _end(text: str, code: int) -> None:
    print(f"error: {one_line(text)}", file=sys.stderr, flush=True)
    sys.exit(code)
