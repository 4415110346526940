"""The parts of a node report: what each does, and which assumption of ``npd plan`` it settles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from npd_ascend.config import Config
from npd_ascend.config.job import Device
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.ascend.check import compile_config
from npd_ascend.ops.ascend.graphs import Graph, graphs
from npd_ascend.ops.doctor.finding import Finding
from npd_ascend.ops.doctor.registry import examine
from npd_ascend.ops.environments import visible_npus
from npd_ascend.ops.node_report.lines import read
from npd_ascend.ops.nodes import free_port
from npd_ascend.ops.placement import VISIBLE
from npd_ascend.ops.plan.devices import Npu
from npd_ascend.ops.plan.flops import forward_flops, kv_bytes, weight_bytes
from npd_ascend.ops.smoke import smoke
from npd_ascend.rollout.job import RolloutJob

_TIMEOUT = 3600.0
"""Seconds after which a measuring process is taken for hanging: one rank that fails lets the others wait for ever."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurements on a device.

    Attributes:
        sample: tokens of a sample in a row.
        prompt, answer: tokens in the measurement of decoding.
        megabytes: of a collective.
        least_row: rows are not shorter.
    """

    sample: int
    prompt: int
    answer: int
    megabytes: tuple[float, ...]
    least_row: int


SCALES = {"ascend": Scale(2048, 512, 256, (1.0, 16.0, 200.0), 2048), "cpu": Scale(32, 8, 8, (0.25, 1.0, 4.0), 64)}


@dataclass(frozen=True)
class Setting:
    """What a part is given.

    Attributes:
        config: the run, for this node's device.
        device: resolved.
        environments: interpreters.
        out: folder of the report, absolute.
        path, overrides: where the configuration is from.
        npu: the device, where the plan's table has it.
    """

    config: Config
    device: Device
    environments: Environments
    out: Path
    path: Path
    overrides: list[str]
    npu: Npu | None

    @property
    def scale(self) -> Scale:
        """Sizes for the device."""
        return SCALES[self.device.target]

    def folder(self, name: str) -> Path:
        """Where a part leaves jobs and logs."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        what: for people, a few words.
        settles: what is known after it that was not before.
        run: does it; ``findings`` as [level, what, remedy], ``lines`` of a measuring process, or both.
    """

    what: str
    settles: str
    run: Callable[[Setting], dict[str, Any]]


def _versions(s: Setting) -> dict[str, Any]:
    return {"findings": _told(examine(s.path, s.overrides))}


def _compile(s: Setting) -> dict[str, Any]:
    out = s.folder("compile") / "compile.json"
    return {"findings": _told(compile_config(s.config, out)), "compiled": json.loads(out.read_text())}


def _smoke(s: Setting) -> dict[str, Any]:
    return {"findings": _told(smoke(s.config, s.folder("smoke"), cpu=s.device.target == "cpu"))}


def _parity(s: Setting) -> dict[str, Any]:
    lines = _bench(s, "parity", {})
    for line in lines:
        if "value" in line and not line["value"] <= line["limit"]:
            line["error"] = f"{line['name']}: {line['value']:.2g} off, at most {line['limit']:.2g}"
    return {"lines": lines}


def _topk(s: Setting) -> dict[str, Any]:
    first = graphs(s.config)[0]  # the teacher's, where one is asked
    rows = min(s.config.annotate.vocab_chunk_rows, 64 if s.device.target == "cpu" else 1 << 20)
    job = {"rows": rows, "vocabulary": first.spec.vocab_size, "k": s.config.annotate.k}
    return {"lines": _bench(s, "topk", job, module="operators")}


def _annotate(s: Setting) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    for stage in ("annotate teacher", "annotate student"):
        sizes = _sizes(s, stage)
        if sizes:
            job = {"graphs": [asdict(g) for g in sizes], "cuts": [sizes[0].size]}
            measured = _bench(s, "annotate", job, sizes[0].size, stage.replace(" ", "_"))
            lines += [_with_share(s, sizes[0].spec, line, 1) for line in measured]
    return {"lines": lines}


def _train(s: Setting) -> dict[str, Any]:
    t, sizes = s.config.train, _sizes(s, "train")
    job = {
        "graphs": [asdict(g) for g in sizes],
        "cuts": [t.tensor_parallel, t.context_parallel],
        "micro_batches": max(1, t.global_batch // (t.micro_batch * t.data_parallel)),
    }
    measured = _bench(s, "train", job, sizes[0].size)
    return {"lines": [_with_share(s, sizes[0].spec, line, 3) for line in measured]}


def _hccl(s: Setting) -> dict[str, Any]:
    ranks = 2 if s.device.target == "cpu" else len(visible_npus())
    if ranks < 2:
        raise UserError("one device only: there is nothing to send")
    return {"lines": _bench(s, "hccl", {"megabytes": s.scale.megabytes}, ranks, module="operators")}


def _rollout(s: Setting) -> dict[str, Any]:
    c, folder = s.config, s.folder("rollout")
    spec = ModelSpec.from_folder(c.models.student)
    most = c.rollout.max_num_seqs
    job = RolloutJob(
        fingerprint="",
        out=folder,
        prompts=folder,
        model=c.models.student.resolve(),
        generation=0,
        seed=0,
        settings=c.rollout.model_copy(update={"stop_token_ids": []}),
        device=s.device,
        max_model_len=s.scale.prompt + s.scale.answer,
        eos_token_ids=[],
        vocabulary=spec.vocab_size,
    )
    given = {
        "job": job.model_dump(mode="json"),
        "sequences": sorted({max(1, most // 16), max(1, most // 4), most}),
        "prompt": s.scale.prompt,
        "answer": s.scale.answer,
        "folder": str(folder / "changed"),
    }
    lines = _measured(s, "rollout", given, s.environments.rollout, "npd_ascend.ops.node_report.engine")
    for line in lines:
        if s.npu is not None and "step_ms" in line:
            context = line["prompt"] + line["answer"] / 2
            moved = weight_bytes(spec) + line["sequences"] * context * kv_bytes(spec)
            width = s.npu.bandwidth * c.rollout.tensor_parallel
            line["share"] = moved / (line["step_ms"] / 1e3) / width
            line["launch_ms"] = line["step_ms"] / spec.num_layers
    return {"lines": lines}


PARTS: dict[str, Part] = {
    "versions": Part("versions, devices, driver, models", "which versions are really there", _versions),
    "compile": Part(
        "all graphs through the Ascend compiler", "that CANN takes every operator, type and size", _compile
    ),
    "parity": Part("device modules against plain references", "that kernels compute what they are taken to", _parity),
    "topk": Part("top-k by both operators", "which of them annotation should use", _topk),
    "hccl": Part("bandwidth of the collectives", "GB/s between the devices of the node", _hccl),
    "annotate": Part(
        "annotation at three row lengths", "FLOP/s reached in prefill, head and top-k included", _annotate
    ),
    "train": Part("training at three row lengths", "FLOP/s reached in training, and that its memory suffices", _train),
    "rollout": Part(
        "decoding at three batch sizes, weights replaced in place",
        "the launch floor of a decode step, its bandwidth, and whether captured graphs see new weights",
        _rollout,
    ),
    "smoke": Part("a tiny run of the whole chain", "that vLLM and MindFormers agree, also after a refresh", _smoke),
}
"""In the order in which they are taken: what is short and tells most comes first."""


def _with_share(s: Setting, spec: ModelSpec, line: dict[str, Any], passes: int) -> dict[str, Any]:
    """A line with the share of the peak that it comes to."""
    if s.npu is None or "tokens_per_second" not in line:
        return line
    flops = passes * forward_flops(spec, line["tokens"] / line["sample"], line["sample"], line["tokens"])
    return {**line, "share": flops / line["seconds"] / line["ranks"] / s.npu.flops}


def _told(findings: list[Finding]) -> list[list[str]]:
    return [[f.level, f.what, f.remedy] for f in findings]


def _sizes(s: Setting, stage: str) -> list[Graph]:
    """The graph of a stage's first rank at all, half and a quarter of the configured row: the size that matters first,
    should memory run out."""
    found = [g for g in graphs(s.config) if g.stage == stage]
    if not found:
        return []
    graph, cut = found[0], 16 * s.config.train.context_parallel
    rows = {max(s.scale.least_row, graph.row_length // n // cut * cut) for n in (4, 2)} | {graph.row_length}
    return [replace(graph, row_length=n, device=s.device.model_dump(mode="json")) for n in sorted(rows, reverse=True)]


def _bench(
    s: Setting, kind: str, job: dict[str, Any], ranks: int = 1, name: str = "", module: str = "bench"
) -> list[dict[str, Any]]:
    """Lines of a process of the MindSpore environment."""
    given = {
        "kind": kind,
        "target": s.device.target,
        "device": s.device.model_dump(mode="json"),
        "models": {role: str(getattr(s.config.models, role).resolve()) for role in ("teacher", "student")},
        "sample": s.scale.sample,
        **job,
    }
    return _measured(s, name or kind, given, s.environments.mindspore, f"npd_ascend.ops.node_report.{module}", ranks)


def _measured(
    s: Setting, name: str, given: dict[str, Any], python: Path, module: str, ranks: int = 1
) -> list[dict[str, Any]]:
    """Lines of a measuring process; if it ended badly, the last one says so."""
    folder = s.folder(name)
    lines, job = folder / "lines.jsonl", folder / "job.json"
    lines.unlink(missing_ok=True)
    job.write_text(json.dumps({**given, "lines": str(lines)}))
    run = [str(python)]
    if ranks > 1:
        run = [
            str(python.parent / "msrun"),
            f"--worker_num={ranks}",
            f"--local_worker_num={ranks}",
            "--join=True",
            f"--master_port={free_port()}",
            f"--log_dir={folder}",
        ]
    with open(folder / "log", "w") as log:
        code = _wait([*run, "-m", module, str(job)] if ranks == 1 else [*run, _file(module), str(job)], s, python, log)
    found = read(lines)
    if code or not found:
        found.append({"name": "process", "error": f"{_last(folder, ranks)} ({folder / 'log'})"})
    return found


def _wait(command: list[str], s: Setting, python: Path, log: Any) -> int:
    """Exit code of a command; its whole process group is gone afterwards."""
    env = {**os.environ, "GLOG_v": "3", "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if s.device.target == "ascend":
        env.setdefault(VISIBLE, ",".join(map(str, visible_npus())))
    try:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    except OSError as e:
        raise UserError(f"{command[0]}: cannot be started ({e.strerror}); run scripts/setup_env.sh") from None
    try:
        return child.wait(_TIMEOUT)
    except subprocess.TimeoutExpired:
        return 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _last(folder: Path, ranks: int) -> str:
    """The last line that says something of a process that stopped."""
    logs = [folder / "log", *sorted(folder.glob("worker_*.log"))] if ranks > 1 else [folder / "log"]
    said = [
        x.strip() for log in logs if log.exists() for x in log.read_text(errors="replace").splitlines() if x.strip()
    ]
    raised = [x for x in said if x.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    return (raised or said or ["ended without a word"])[-1][:500]


def _file(module: str) -> str:
    """Path of a module of this folder: msrun takes no ``-m``."""
    return str(Path(__file__).with_name(module.rpartition(".")[2] + ".py"))
