"""Kills processes of tiny runs again and again, and compares what comes out with undisturbed runs.

    python tools/kill_campaign.py --out runs/kill_campaign --kills 100 --seed 0

Every run is real: tiny random models, vLLM, MindSpore, two generations. Under each policy (static; kl with lead; grpo,
with slices, rewards and groups of two) and over two nodes on this machine one run is left alone. The others lose a
random process (the executor, a stage's worker, a rollout worker) to SIGKILL at random instants, or the second node with
its Ray and all that runs there, and the same command is given again until they are finished. Then the exported student
must be the undisturbed one's bit for bit, and no prompt may be lost, repeated or mixed between snapshots.

``kills.jsonl`` grows while the campaign runs; ``result.json`` and ``result.md`` are written after each run, and added
to when the campaign is given again. Exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from npd_ascend.ops.nodes import free_port
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 24
POLICIES: dict[str, dict[str, Any]] = {
    "static": {"policy": "static", "refreshes": 1},
    "kl": {"policy": "kl", "refreshes": 1, "epsilon": 1e-9, "lead": 0.5},
    "grpo": {"policy": "static", "refreshes": 1},
    "two-nodes": {"policy": "static", "refreshes": 1},
}
GRPO: dict[str, Any] = {
    "run": {"recipe": "grpo"},
    "data": {"slice": PROMPTS},
    "rollout": {"greedy": False, "samples": 2},
    # Random models are never right, but their answers differ in length.
    "reward": {"parts": {"length": {"options": {"limit": 24, "buffer": 24}}}},
    "select": {"filter": "none"},
    "train": {"loss": {"terms": {"ppo_clip:0.2:0.28": 1}}},
}
"""What the recipe grpo has otherwise."""
_WORKER = re.compile(r"npd_ascend[./]workers[./](?:process|rank)(?:\.py)? worker (\w+)-\d")  # alone, or a rank
_ORPHAN_S = 20.0
_WAITS_S = (3.0, 10.0, 30.0)
_MANY = 30
"""After so many kills, chance does not explain that a kind of process was never hit."""


@dataclass
class Kill:
    """One SIGKILL.

    Attributes:
        policy, run: which run it hit.
        process: ``executor``, ``stage worker``, ``rollout worker`` or ``node 1``.
        stage: what was under way, e.g. ``train``; several with ``lead``; ``start`` before the first process.
        generation: of that stage; -1 before the first and for evaluations.
        after: seconds since the command was given.
        ended: how the command ended: ``killed``, ``exit 2``, or ``went on`` (a worker was replaced).
        line: its last line, where it ended by itself.
    """

    policy: str
    run: int
    process: str
    stage: str
    generation: int
    after: float
    ended: str = "went on"
    line: str = ""


# ---- runs


def make_inputs(folder: Path) -> None:
    """Maze task and two random checkpoints."""

    def tool(name: str, *args: object) -> None:
        command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, args)]
        subprocess.run(command, check=True, capture_output=True)

    if (folder / "student" / "config.json").is_file():
        return
    tool("make_maze_task", "--out", folder / "task", "--seed", 0)
    for name, seed, layers in (("teacher", 1, 3), ("student", 2, 2)):
        tool("init_checkpoint", "--preset", "mini-student", "--hidden-size", 64, "--intermediate-size", 64,
             "--num-hidden-layers", layers, "--num-attention-heads", 2, "--num-key-value-heads", 1, "--seed", seed,
             "--tokenizer", folder / "task" / "tokenizer", "--out", folder / name)  # fmt: skip


def write_config(inputs: Path, run: Path, policy: str) -> Path:
    """Configuration of a tiny run of two generations."""
    tree = {
        "run": {"dir": str(run), "seed": 1},
        "models": {"teacher": str(inputs / "teacher"), "student": str(inputs / "student")},
        "data": {"prompts": [str(inputs / "task" / "prompts_train.jsonl")], "limit": PROMPTS,
                 "answer_field": "answer"},
        "rollout": {"max_new_tokens": 24, "samples": 1, "shard_size": 6, "max_num_seqs": 8},
        "annotate": {"row_length": 128, "micro_batch": 2, "k": 4},
        "select": {"lower": None, "upper": None},
        "pack": {"row_length": 128},
        "train": {"epochs": 2, "lr": 1e-3, "min_lr": 1e-4, "global_batch": 2, "micro_batch": 2,
                  "checkpoint_every": 2, "vocab_chunk_rows": 64},
        "sync": {"probe_samples": 4, "lag_every": 3, **POLICIES[policy]},
    }  # fmt: skip
    if policy == "static":
        tree["evaluate"] = {"prompts": [str(inputs / "task" / "eval.jsonl")], "limit": 8, "checker": "maze",
                            "checker_data": str(inputs / "task" / "maze.json")}  # fmt: skip
    if policy == "grpo":
        for section, changes in GRPO.items():
            tree[section] = {**tree.get(section, {}), **changes}
    if policy == "two-nodes":
        tree["rollout"]["workers"] = tree["annotate"]["workers"] = 2
        tree["train"] |= {"data_parallel": 2, "micro_batch": 1}
    path = run.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def shim(folder: Path, first: bool) -> str:
    """Interpreter of a node. msrun starts the scheduler where it takes the first node's address for its own, which it
    cannot tell of two nodes on one machine."""
    folder.mkdir(exist_ok=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "msrun").write_text(
        f"#!{sys.executable}\nfrom mindspore.parallel.cluster.process_entity import _api\n"
        f"_api._is_local_ip = lambda address: {first}\n"
        "from mindspore.parallel.cluster.run import main\nmain()\n"
    )
    for file in folder.iterdir():
        file.chmod(0o755)
    return str(folder / "python")


class Command:
    """``npd run CONFIG`` as a process whose output goes to a file; over two nodes ``npd join CONFIG`` as another."""

    def __init__(self, config: Path, two: bool = False):
        self.log, self._config = config.with_suffix(".out"), config
        self._env = dict(os.environ)
        if two:
            ports = {"MASTER_PORT": str(free_port()), "NPD_RAY_PORT": str(free_port())}
            self._env |= {"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.2", "NODE_ADDR": "127.0.0.2", **ports}
            self._env["NPD_MINDSPORE_PYTHON"] = shim(config.parent / "first", first=True)
        self._process = self._start("run", self.log)
        self.pid = self._process.pid
        self.started = time.monotonic()
        self._other: subprocess.Popen[bytes] | None = None
        if two:
            self.lend()

    def lend(self) -> None:
        """Starts the second node."""
        python = shim(self._config.parent / "second", first=False)
        env = {"NODE_RANK": "1", "NODE_ADDR": "127.0.0.3", "NPD_MINDSPORE_PYTHON": python}
        self._other = self._start("join", self.log.with_suffix(".node1.out"), **env)

    def lose(self) -> None:
        """Kills the second node with all that runs there, and starts it again."""
        assert self._other is not None
        for pid in [*self.processes(self._other.pid), self._other.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._other.wait()
        self.lend()

    def end(self) -> None:
        """Lets the second node go."""
        if self._other is not None:
            self._other.terminate()
            self._other.wait()

    def _start(self, what: str, log: Path, **env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "npd_ascend.cli", what, str(self._config)]
        with open(log, "ab" if what == "join" else "wb") as out:
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env={**self._env, **env})

    def wait(self, seconds: float | None = None) -> int | None:
        """Exit code, or None when it still runs after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    @property
    def two(self) -> bool:
        """Whether there is a second node."""
        return self._other is not None

    def processes(self, of: int = 0) -> dict[int, str]:
        """Living descendants of the command, or of another process: pid to command line."""
        parents, found, commands = {}, {of or self.pid}, {}
        for pid, parent, command in _table():
            parents[pid], commands[pid] = parent, command
        while more := {p for p, parent in parents.items() if parent in found} - found:
            found |= more
        return {p: commands[p] for p in found - {of or self.pid} if commands[p]}


def _table() -> Iterator[tuple[int, int, str]]:
    """(pid, parent, command line) of all processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        yield int(folder.name), int(stat.rpartition(")")[2].split()[1]), command


def _holds(pid: int, root: Path) -> bool:
    """Whether a process has a file below a folder open, as every worker has its log."""
    with suppress(OSError):
        return any(os.readlink(f).startswith(f"{root}/") for f in Path(f"/proc/{pid}/fd").iterdir())
    return False


# ---- kills


def choose(command: Command, run: RunDir, rng: random.Random) -> tuple[int, str, str, int]:
    """A victim among the run's processes: pid (0: the second node), what it is, and the stage and generation under way:
    that which has begun last."""
    victims = {command.pid: "executor"}
    for pid, line in command.processes().items():
        if found := _WORKER.search(line):
            victims[pid] = "rollout worker" if found[1] == "rollout" else "stage worker"
    if command.two:
        victims[0] = "node 1"
    jobs = sorted(run.jobs.glob("*.json"), key=lambda p: p.stat().st_mtime)
    under_way = jobs[-1].stem if jobs and len(victims) > 1 + command.two else "start"
    pid = rng.choice(sorted(victims))
    if victims[pid] == "executor" and len(victims) > 1 and rng.random() < 0.5:
        pid = rng.choice(sorted(set(victims) - {pid}))
    numbered = re.fullmatch(r"g(\d{3})-(.*)", under_way)
    return (pid, victims[pid], numbered[2], int(numbered[1])) if numbered else (pid, victims[pid], under_way, -1)


def disturb(
    config: Path, run: RunDir, policy: str, number: int, kills: int, per_stage: int, rng: random.Random, log: Path
) -> list[Kill]:
    """One run to its end, hit at most ``kills`` times, and at most ``per_stage`` times in each stage.

    A stage that has had its share is left alone, so that the run comes on to the next one. Waits are uniform over
    ranges of several lengths: some kills come while processes start, others when they have long been at work. Tiny
    rollouts last a second, so a wait ends early, and at random, when one has begun.
    """
    done: list[Kill] = []

    def spared(stage: str, generation: int) -> bool:
        return sum((k.stage, k.generation) == (stage, generation) for k in done + hit) >= per_stage

    def wait(command: Command) -> int | None:
        until = time.monotonic() + rng.uniform(0.05, rng.choice(_WAITS_S))
        while (code := command.wait(0.02)) is None and time.monotonic() < until:
            begun = {int(p.parent.parent.name) for p in run.root.glob("generations/*/rollouts/*.journal")}
            if any(not spared("rollout", g) for g in begun):
                return command.wait(rng.uniform(0.0, 0.6))
        return code

    while True:
        command = Command(config, policy == "two-nodes")
        hit: list[Kill] = []
        while len(done) + len(hit) < kills:
            code = wait(command)
            if code is not None:
                break
            pid, process, stage, generation = choose(command, run, rng)
            if spared(stage, generation):
                continue
            kill = Kill(policy, number, process, stage, generation, round(time.monotonic() - command.started, 2))
            hit.append(kill)
            if process == "node 1":
                command.lose()
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if process == "executor":
                break
        code = command.wait()
        command.end()
        output = command.output
        if code not in (0, 2, -signal.SIGKILL) or "Traceback" in output:
            raise SystemExit(f"{config}: exit code {code}\n{output[-4000:]}")
        if hit:
            hit[-1].ended = {0: "went on", 2: "exit 2"}.get(code, "killed")
            hit[-1].line = output.strip().splitlines()[-1] if code == 2 else ""
        deadline = time.monotonic() + _ORPHAN_S
        while left := [c for p, _, c in _table() if str(run.root) in c or _holds(p, run.root)]:
            if time.monotonic() > deadline:
                raise SystemExit(f"{config}: orphans are left: {left}")
            time.sleep(0.1)
        done += hit
        with open(log, "a") as f:
            f.writelines(json.dumps(asdict(k)) + "\n" for k in hit)
        for k in hit:
            print(
                f"{k.policy} {k.run}: {k.process} in {k.stage}, g{k.generation}, {k.after} s: {k.ended} {k.line}",
                flush=True,
            )
        if code == 0:
            return done
        if code == 2 and not hit:
            raise SystemExit(f"{config}: failed undisturbed\n{output[-4000:]}")


# ---- comparison


def losses(run: RunDir, plain: RunDir) -> list[str]:
    """What differs from the undisturbed run; empty when nothing was lost."""
    wrong = []
    if run.generations() != plain.generations():
        return [f"generations {run.generations()} instead of {plain.generations()}"]
    student, wanted = ({p.name: p.read_bytes() for p in r.export.glob("*.safetensors")} for r in (run, plain))
    if not wanted or student != wanted:
        wrong.append("the student differs")
    seen: Counter[int] = Counter()
    for g in plain.generations():
        a, b = (Dataset.open(r.generation(g).rollouts, "rollouts").read_all() for r in (run, plain))
        pairs = Counter(zip(a["prompt_index"].to_pylist(), a["path"].to_pylist(), strict=True))
        if pairs != Counter((i, p) for i in range(PROMPTS) for p in (0, 1)):
            wrong.append(f"generation {g}: prompts lost or repeated")
        if not a.select(["sample_id", "response_ids"]).equals(b.select(["sample_id", "response_ids"])):
            wrong.append(f"generation {g}: other answers")
        seen.update(a["sample_id"].to_pylist())
    if max(seen.values()) > 1:
        wrong.append("a sample stands in two generations")
    steps, wanted_steps = ([(r["step"], r["generation"], r["loss"]) for r in read_metrics(x.metrics)
                            if r["kind"] == "train"] for x in (run, plain))  # fmt: skip
    if steps != wanted_steps:
        wrong.append("steps or losses in metrics.jsonl differ")
    results = [{p.name: {k: v for k, v in json.loads(p.read_text()).items() if k != "fingerprint"}
                for p in x.evaluations.glob("*.json")} for x in (run, plain)]  # fmt: skip
    if results[0] != results[1]:
        wrong.append("evaluations differ")
    if left := [p.name for p in run.root.rglob(".tmp-*")]:
        wrong.append(f"half-written files are left: {left}")
    return wrong


def table(kills: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    names = ("executor", "stage worker", "rollout worker", "node 1")
    by_stage: dict[str, Counter[str]] = {}
    for k in kills:
        by_stage.setdefault(k["stage"], Counter())[k["process"]] += 1
    lines = ["| stage under way | " + " | ".join(names) + " | kills |", "|---|" + "---:|" * (len(names) + 1)]
    for stage in sorted(by_stage, key=lambda s: -sum(by_stage[s].values())):
        counts = by_stage[stage]
        lines.append(f"| {stage} | " + " | ".join(str(counts[n]) for n in names) + f" | {sum(counts.values())} |")
    total = Counter(k["process"] for k in kills)
    lines.append("| **all** | " + " | ".join(str(total[n]) for n in names) + f" | **{len(kills)}** |")
    lines += ["", "| policy | runs | kills | generation 0 | generation 1 | lost |", "|---|---:|---:|---:|---:|---|"]
    for policy in (p for p in POLICIES if any(r["policy"] == p for r in runs)):
        hit = [k for k in kills if k["policy"] == policy]
        mine = [r for r in runs if r["policy"] == policy]
        lost = "; ".join(w for r in mine for w in r["lost"]) or "nothing"
        lines.append(
            f"| {policy} | {len(mine)} | {len(hit)} | {sum(k['generation'] == 0 for k in hit)} | "
            f"{sum(k['generation'] == 1 for k in hit)} | {lost} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the campaign")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--per-stage", type=int, default=4, help="at most so many kills a stage, generation and run")
    parser.add_argument("--minutes", type=float, default=1e9, help="no kill after so long; the run at hand is finished")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, rng, started = args.out.resolve(), random.Random(args.seed), time.monotonic()
    make_inputs(out / "inputs")
    plain: dict[str, RunDir] = {}
    result = out / "result.json"
    before = json.loads(result.read_text()) if result.is_file() else {"runs": [], "kills": []}
    runs, kills = before["runs"], before["kills"]
    enough = len(kills) + args.kills
    while len(kills) < enough and time.monotonic() - started < 60 * args.minutes:
        policy = args.policies[len(runs) % len(args.policies)]
        if policy not in plain:
            plain[policy] = RunDir(out / f"{policy}-plain")
            disturb(
                write_config(out / "inputs", plain[policy].root, policy),
                plain[policy],
                policy,
                -1,
                0,
                0,
                rng,
                out / "kills.jsonl",
            )
        number = next(n for n in range(10**6) if not (out / f"{policy}-{n:03d}").exists())
        run = RunDir(out / f"{policy}-{number:03d}")
        hit = disturb(
            write_config(out / "inputs", run.root, policy),
            run,
            policy,
            number,
            enough - len(kills),
            args.per_stage,
            rng,
            out / "kills.jsonl",
        )
        lost = losses(run, plain[policy])
        kills += [asdict(k) for k in hit]
        if len(kills) >= _MANY and not any(k["process"] == "stage worker" for k in kills):
            raise SystemExit(f"{len(kills)} kills and none of a stage's worker; has its command line changed?")
        runs.append({"policy": policy, "run": number, "kills": len(hit), "lost": lost})
        print(
            f"run {number} ({policy}): {len(hit)} kills, lost: {lost or 'nothing'}; {len(kills)} kills, "
            f"{(time.monotonic() - started) / 60:.1f} min so far",
            flush=True,
        )
        result.write_text(json.dumps({"runs": runs, "kills": kills}, indent=1) + "\n")
        (out / "result.md").write_text(table(kills, runs))
    print(table(kills, runs))
    sys.exit(any(r["lost"] for r in runs))


if __name__ == "__main__":
    main()
