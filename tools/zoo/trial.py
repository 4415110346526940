"""What is tried on a member: doctor, a run of two generations, its refresh, its export, and serving that export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.models.tensorfile import entries
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics
from zoo.members import Member
from zoo.models_of import PROMPT

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("doctor", "run", "refresh", "export", "serving")
PROMPTS, MOST = 8, 12
NLL_GAP = 1e-3
"""vLLM against MindFormers, mean NLL of an answer; vLLM against transformers, log-prob of a token; nats, float32."""
MOVED = 10 * NLL_GAP
"""So far the refresh must have moved the log-probs of some answer, or old weights could pass for new ones."""
REFUSED, WRONG = "refused", "WRONG"


@dataclass
class Findings:
    """Outcome of each stage: ``ok``, ``refused`` as expected, or what went wrong; figures beside it."""

    cells: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether every stage came out as it should."""
        return not any(c.startswith(WRONG) for c in self.cells.values())


class Wrong(Exception):
    """A stage's outcome is not the expected one."""


def expect(holds: bool, what: str) -> None:
    """Raises ``Wrong`` unless it holds."""
    if not holds:
        raise Wrong(what)


def attempt(member: Member, folder: Path) -> Findings:
    """Builds a member in an empty folder and takes it as far as it should come."""
    member.build(folder)
    trial, found = Trial(member, folder), Findings()
    for stage in STAGES:
        try:
            found.cells[stage] = getattr(trial, stage)()
        except (Wrong, UserError) as e:
            found.cells[stage] = f"{WRONG}: {e}"
            break
        if found.cells[stage].startswith(REFUSED) and stage == "run":
            break
    found.cells = {s: found.cells.get(s, "") for s in STAGES}
    found.figures = trial.figures
    return found


class Trial:
    """The stages, in order; each returns its cell or raises ``Wrong``.

    Attributes:
        figures: what was measured.
    """

    def __init__(self, member: Member, folder: Path):
        self.member, self.folder, self.run_dir = member, folder, RunDir(folder / "run")
        self.config = self._write_config()
        self.figures: dict[str, Any] = {}
        self._said = ""

    def doctor(self) -> str:
        """``npd doctor``: nothing to complain of, or the one line expected."""
        code, said = self._npd("doctor")
        refused = self.member.refused if self.member.doctor_refuses else None
        if refused is None:
            expect(code == 0, f"exit code {code}: {_errors(said) or said[-300:]}")
            return "ok" if self.member.refused is None else "ok (values are not read)"
        errors = _errors(said)
        expect(code == 2 and any(refused in e for e in errors), f"exit code {code}, {errors}; expected {refused!r}")
        self.figures["doctor said"] = next(e for e in errors if refused in e)
        return REFUSED

    def run(self) -> str:
        """``npd run``: to its end, or refused by the line that doctor says, with nothing half-written."""
        code, self._said = self._npd("run")
        refused = self.member.refused
        if refused is None:
            expect(code == 0, f"exit code {code}: {self._said.strip().splitlines()[-1:]}")
            expect("Traceback" not in self._said, "a traceback in its output")
            return "ok"
        last = [x for x in self._said.splitlines() if x.startswith("error: ")]
        expect(
            code == 2 and len(last) == 1 and refused in last[0] and "Traceback" not in self._said,
            f"exit code {code}, {last or self._said[-300:]}; expected {refused!r}",
        )
        self.figures["run said"] = _bare(last[0]).replace(f"{self.folder}/", "")
        if self.member.doctor_refuses:
            said = self.figures["doctor said"]
            expect(_bare(said) in _bare(last[0]), f"doctor said {said!r}, run {last[0]!r}")
        left = [str(p.relative_to(self.folder)) for p in self.run_dir.root.rglob("*") if _half(p)]
        expect(not left and not self.run_dir.export.exists(), f"half-written: {left or 'export'}")
        return REFUSED

    def refresh(self) -> str:
        """Both generations: vLLM and MindFormers say the same of the answers, which end; the second moved."""
        expect(self.run_dir.generations() == [0, 1], f"generations {self.run_dir.generations()}")
        expect("weights reloaded" in self._said, "no reload was reported")
        expect("started afresh" not in self._said, "the reload did not answer with the new weights")
        means, follow = [], self._end()
        for generation in (0, 1):
            g = self.run_dir.generation(generation)
            rows = Dataset.open(g.rollouts, "rollouts").read_all()
            answers, ours = rows["response_ids"].to_pylist(), rows["logprobs"].to_pylist()
            theirs = Dataset.open(g.student_scores, "scores").read_all(["nll"])["nll"].to_numpy()
            means.append(np.array([-np.mean(x, dtype=np.float64) for x in ours]))
            gap = self.figures[f"gap {generation}"] = float(np.abs(means[-1] - theirs).max())
            expect(len(answers) == PROMPTS and gap <= NLL_GAP, f"generation {generation}: NLLs {gap:.1e} apart")
            ended = sum(a[-1] == follow for a in answers)
            expect(ended == PROMPTS, f"generation {generation}: {ended} of {PROMPTS} answers end in {follow}")
        moved = self.figures["moved"] = float(np.abs(means[1] - means[0]).max())
        expect(moved >= MOVED, f"the refresh moved the answers' NLL by {moved:.1e} only")
        lags = [r["forward"] for r in read_metrics(self.run_dir.metrics) if r["kind"] == "lag"]
        expect(min(lags, default=1.0) == 0.0, "lag is not 0 right after the refresh")
        return "ok"

    def export(self) -> str:
        """Loads as a checkpoint, has the student's tensors in the type of the run, and says where its answers end."""
        export, student = self.run_dir.export, self.folder / "student"
        check_checkpoint(export)
        shapes = [{n: e.shape for n, e in entries(f).items()} for f in (export, student)]
        expect(shapes[0] == shapes[1], "its tensors are not the student's")
        kinds = {e.dtype for e in entries(export).values()}
        declared = json.loads((export / "config.json").read_text())["torch_dtype"]
        expect(kinds == {"F32"} and declared == "float32", f"its tensors are {kinds}, config.json says {declared}")
        end = self._end()
        for name in ("config.json", "generation_config.json"):
            stops = json.loads((export / name).read_text())["eos_token_id"]
            expect(end in (stops if isinstance(stops, list) else [stops]), f"{name} says {stops}, not {end}")
        tokenizer = load_tokenizer(export)
        template = Template(tokenizer, "auto", eos_token_ids(export, tokenizer))
        rows = self._asked()
        heads = template.render([[{"role": "user", "content": t}] for t in rows["text"].to_pylist()])
        expect(template.prompts(heads) == rows["prompt_ids"].to_pylist(), "its template renders other prompts")
        return "ok"

    def serving(self) -> str:
        """vLLM and transformers, given the export alone: the run's prompts, the same answers, ended."""
        found = self._serve()
        rows = self._asked()["prompt_ids"].to_pylist()
        worst = 0.0
        for k, (a, b) in enumerate(zip(found["vllm"], found["transformers"], strict=True)):
            for who, answer in (("vLLM", a), ("transformers", b)):
                expect(answer["prompt"] == rows[k], f"{who} reads {answer['prompt']}, training read {rows[k]}")
                expect(
                    answer["ids"][-1] == self._end() and len(answer["ids"]) < MOST,
                    f"{who} does not stop: {answer['ids']}",
                )
            expect(a["finish"] == "stop", f"vLLM ends an answer by {a['finish']}")
            expect(a["ids"] == b["ids"], f"vLLM answers {a['ids']}, transformers {b['ids']}")
            worst = max(worst, float(np.abs(np.subtract(a["logprobs"], b["logprobs"])).max()))
        self.figures["served apart"] = worst
        expect(worst <= NLL_GAP, f"log-probs {worst:.1e} apart")
        return "ok"

    # ---- helpers

    def _write_config(self) -> Path:
        f = self.folder
        (f / "prompts.jsonl").write_text(
            "".join(json.dumps({"prompt": PROMPT.format(i)}) + "\n" for i in range(PROMPTS))
        )
        path = f / "run.yaml"
        lr = 4e-3 / self.member.student.layers  # Adam changes each of the layers by as much
        path.write_text(
            yaml.safe_dump(
                {
                    "run": {"dir": str(f / "run"), "seed": 0},
                    "models": {"teacher": str(f / "teacher"), "student": str(f / "student")},
                    "data": {"prompts": [str(f / "prompts.jsonl")]},
                    "rollout": {"max_new_tokens": MOST, "shard_size": PROMPTS, "max_num_seqs": 8, "kv_cache_gib": 0.1},
                    "annotate": {"row_length": 256, "micro_batch": 2, "k": 4},
                    "select": {"lower": None, "upper": None},
                    "pack": {"row_length": 256},
                    "train": {"epochs": 2, "lr": lr, "min_lr": lr / 2, "global_batch": 1, "vocab_chunk_rows": 64},
                    "sync": {"refreshes": 1, "probe_samples": 4, "lag_every": 0},
                    "device": {"target": "cpu"},
                }
            )
        )
        return path

    def _npd(self, command: str) -> tuple[int, str]:
        return self._say(command, [sys.executable, "-m", "npd_ascend.cli", command, self.config])

    def _serve(self) -> dict[str, list[dict[str, Any]]]:
        rows = self._asked()
        own_class = not (self.run_dir.export / "tokenizer.json").is_file()
        tokenizer = load_tokenizer(self.run_dir.export)
        asked, answers = self.folder / "asked.json", self.folder / "answers.json"
        asked.write_text(
            json.dumps(
                {
                    "texts": rows["text"].to_pylist(),
                    "chat": bool(tokenizer.chat_template),
                    "most": MOST,
                    "ids": rows["prompt_ids"].to_pylist() if own_class else [],
                }
            )
        )
        command = [
            Environments.find().rollout,
            Path(__file__).with_name("serve.py"),
            self.run_dir.export,
            asked,
            answers,
        ]
        code, said = self._say("serve", command)
        expect(code == 0, f"serving failed: {said.strip().splitlines()[-1:]}")
        return json.loads(answers.read_text())

    def _say(self, name: str, command: list[Any]) -> tuple[int, str]:
        """Exit code and output of a command, which is kept in a file."""
        log = self.folder / f"{name}.out"
        with open(log, "wb") as out:
            code = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
        return code, log.read_text(errors="replace")

    def _asked(self) -> Any:
        return Dataset.open(self.run_dir.prompts, "prompts").read_all().slice(0, 4)

    def _end(self) -> int:
        """The token that ends an answer: that of the teacher's circle, which both models follow."""
        tokenizer = load_tokenizer(self.folder / "teacher")
        return Template(tokenizer, "auto", eos_token_ids(self.folder / "teacher", tokenizer)).end_ids[-1]


def _errors(said: str) -> list[str]:
    """The lines of doctor's output that are errors."""
    return [line.strip() for line in said.splitlines() if line.strip().lower().startswith("error")]


def _bare(line: str) -> str:
    """What a refusal says, without who says it."""
    return re.sub(r"^error:?\s+", "", line.strip(), flags=re.IGNORECASE)


def _half(path: Path) -> bool:
    """Whether a file or folder of a run is the beginning of one that never got finished."""
    return path.name.startswith(".tmp-") or path.suffix == ".journal"
