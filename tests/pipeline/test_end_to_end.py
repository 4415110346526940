"""Whole runs with the real engines on tiny models: outputs, resume after kills, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import npd_ascend
from npd_ascend import open_run
from npd_ascend.pipeline.runner import Runner, Running
from npd_ascend.pipeline.steps import Step
from npd_ascend.progress import ProgressTail
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.mindspore, pytest.mark.timeout(900)]
pytest.importorskip("mindspore")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """An undisturbed run: (run directory, configuration file, output)."""
    root = tmp_path_factory.mktemp("runs") / "plain"
    config = tiny.config(root, report={"monitors": ["examples.curves_as_csv:curves"]})
    code, out = tiny.run(config)
    assert code == 0, out
    return RunDir(root), config, out


def weights(run: RunDir) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.export.glob("*.safetensors")}


def processes_of(root: Path) -> list[str]:
    """Command lines of live processes that name the run directory or have a file there open, as workers their log."""
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            text = (p / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            files = [os.readlink(f) for f in (p / "fd").iterdir()]
        except OSError:
            continue
        if int(p.name) != os.getpid() and (str(root) in text or any(f.startswith(f"{root}/") for f in files)):
            found.append(text)
    return found


def test_everything_is_there(finished):
    run, _, out = finished
    assert run.report.read_text().lower().startswith("<!doctype html>") and "report:" in out
    assert weights(run) and (run.export / "config.json").is_file() and (run.export / "tokenizer.json").is_file()
    kinds = {r["kind"] for r in read_metrics(run.metrics)}
    assert {"train", "lag", "refresh", "stage", "evaluate"} <= kinds
    assert [p.stem for p in sorted(run.evaluations.glob("*.json"))] == ["end", "refresh-1", "start"]
    assert run.read_state()["status"] == "finished" and not processes_of(run.root)
    assert list(run.compiled.glob("*/seals.json")) and not list(run.compiled.glob(".*"))
    rows = [r for r in read_metrics(run.metrics) if r["kind"] == "stage"]
    for row in (r for r in rows if r["stage"].startswith(("annotate", "train"))):
        if row["generation"] == 0:
            assert row["start"] > 0 and row["compile"] > 0
        else:
            assert "start" not in row and "compile" not in row  # the worker has lived on, and compiles nothing


def test_the_monitor_got_every_step_and_evaluation_once(finished):
    run, _, _ = finished
    (file,) = run.root.glob("monitors/*/*.csv")
    got = [line.split(",") for line in file.read_text().splitlines()]
    rows = [r for r in read_metrics(run.metrics) if r["kind"] == "train"]
    assert [(int(s), float(v)) for s, tag, v in got if tag == "loss/total"] == [(r["step"], r["loss"]) for r in rows]
    middle = max(r["step"] for r in rows if r["generation"] == 0)
    assert [int(s) for s, tag, _ in got if tag == "accuracy"] == [0, middle, rows[-1]["step"]]


def test_evaluations_of_two_checkpoints_are_kept_apart(finished, tiny, tmp_path):
    run, config, _ = finished
    for checkpoint in (run.export, tiny.folder / "student"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "npd_ascend.cli",
                "evaluate",
                str(checkpoint),
                "--config",
                str(config),
                "--out",
                str(tmp_path / "out"),
            ],
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert f"checkpoint {checkpoint.resolve()}" in done.stdout
    found = {f.parent.name: json.loads(f.read_text()) for f in tmp_path.glob("out/*/result.json")}
    assert len(found) == 2
    for name, result in found.items():
        assert name.startswith(Path(result["checkpoint"]).name) and name.endswith(result["checkpoint_id"][:8])
    by_path = {r["checkpoint"]: r["accuracy"] for r in found.values()}
    end = json.loads((run.evaluations / "end.json").read_text())
    assert by_path[str(run.export.resolve())] == end["accuracy"]


def test_no_prompt_lost_repeated_or_mixed(finished):
    run, _, _ = finished
    seen = set()
    for g in (0, 1):
        table = Dataset.open(run.generation(g).rollouts, "rollouts").read_all()
        pairs = sorted(zip(table["prompt_index"].to_pylist(), table["path"].to_pylist(), strict=True))
        assert pairs == [(i, p) for i in range(24) for p in (0, 1)]
        seen |= set(table["sample_id"].to_pylist())
        decisions = Dataset.open(run.generation(g).selection, "selection").read_all()
        assert decisions["sample_id"].to_pylist() == table["sample_id"].to_pylist()
    assert len(seen) == 2 * 48


def test_one_refresh_costs_one_pass_and_lag_is_zero_after_it(finished):
    run, _, _ = finished
    rows = read_metrics(run.metrics)
    for g in (0, 1):
        for stage in ("rollout", "annotate_teacher", "annotate_student", "select", "pack", "train"):
            assert [r["stage"] for r in rows if r["kind"] == "stage" and r["generation"] == g].count(stage) == 1, stage
    lags = [r for r in rows if r["kind"] == "lag"]
    for g in (0, 1):
        first, *_, last = [r for r in lags if r["generation"] == g]
        assert first["forward"] == first["reverse"] == 0.0
        assert last["forward"] > 0 and last["reverse"] > 0
    steps = [r["step"] for r in rows if r["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_running_again_changes_nothing_and_starts_no_engine(finished, tiny):
    run, config, _ = finished

    def times():
        names = ("prompts", "generations", "evaluations", "export", "checkpoints", "logs")
        return {
            p: p.stat().st_mtime_ns
            for n in names
            for p in (run.root / n).rglob("*")
            if p.is_file() and p.name != "progress.jsonl"
        }  # begun anew with each command

    before, size = times(), len(read_metrics(run.metrics))
    code, out = tiny.run(config)
    assert code == 0, out
    # A stage's process, or a rollout worker, would have written to its log.
    assert before == times() and len(read_metrics(run.metrics)) == size


def test_read_by_other_programs(finished):
    run, _, _ = finished
    found = open_run(run.root)
    assert found.export == run.export and list(found.evaluations()) == ["start", "refresh 1", "end"]
    for generation in found.generations:
        rollouts, scores = generation.table("rollouts"), generation.table("scores_teacher", ["nll"])
        top, offsets = generation.topk()
        assert (
            np.diff(offsets).tolist()
            == rollouts["tokens"].to_pylist()
            == [len(x) for x in rollouts["response_ids"].to_pylist()]
        )
        means = [-top.sampled[a:b].mean() for a, b in zip(offsets, offsets[1:], strict=False)]
        np.testing.assert_allclose(means, scores["nll"].to_numpy(), atol=0.05)  # log-probs are stored rounded


def test_example_of_the_python_interface(finished):
    """On a run that is done already: nothing is left to do, and its results are printed."""
    run, config, _ = finished
    settings = [f"{section}={json.dumps(values)}" for section, values in yaml.safe_load(config.read_text()).items()]
    done = subprocess.run(
        [sys.executable, "examples/distil_mini.py", *settings],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # the run's monitor is one of the examples
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-6:]
    assert [line.split()[0] for line in said] == ["start", "refresh", "end", "generation", "generation", "student:"]
    assert said[3] == "generation 0: trained on 48 of 48 answers" and said[5] == f"student: {run.export}"
    assert len((ROOT / "examples" / "distil_mini.py").read_text().splitlines()) <= 30


def test_other_settings_are_refused_with_the_names(finished, tiny):
    run, config, _ = finished
    code, out = tiny.run(config, "--set", "select.upper=0.5")
    assert code == 2
    line = out.strip().splitlines()[-1]
    assert line.startswith("error: ") and "select.upper = None, now 0.5" in line and "--redo" in line


def test_dry_run_writes_nothing(finished, tiny, tmp_path):
    code, out = tiny.run(tiny.config(tmp_path / "new"), "--dry-run")
    assert code == 0, out
    assert "g001 annotate_teacher" in out and "epochs: 2.0" in out and "this machine" in out
    assert not (tmp_path / "new").exists()
    _, config, _ = finished
    code, out = tiny.run(config, "--dry-run")
    assert code == 0 and "to do" not in out


def wait_for(process, run: RunDir, stage: str, generation: int) -> bool:
    """Until a stage of a generation is at work; False when the run ended before."""
    job = run.jobs / f"g{generation:03d}-{stage}.json"  # written when the stage begins
    tail = ProgressTail(run.logs / "progress.jsonl")
    begun = {"begin", "progress"}  # a stage of a tenth of a second tells of no progress
    while process.poll() is None:
        events = tail.poll()
        if stage == "rollout":
            # Rollouts of several generations share one progress file: the journal says which is at work.
            if list((run.generation(generation).rollouts).glob("*.journal")):
                return True
        elif job.exists() and any(e["event"] in begun and stage.split("_")[0] in e["stage"] for e in events):
            return True
        elif job.exists() and time.time() - job.stat().st_ctime > 8:
            return True
        time.sleep(0.02)
    return False


def test_killed_again_and_again_ends_with_the_same_student(finished, tiny, tmp_path):
    """SIGKILL of the command in each kind of stage; then the same command. Bit for bit the undisturbed result."""
    plain, _, _ = finished
    run = RunDir(tmp_path / "killed")
    config = tiny.config(run.root)
    for stage, generation in (("rollout", 0), ("annotate_teacher", 0), ("train", 0), ("train", 1)):
        process = tiny.start(config)
        met = wait_for(process, run, stage, generation)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        assert met, (stage, generation, out)
        deadline = time.monotonic() + 60
        while processes_of(run.root) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_of(run.root)
    code, out = tiny.run(config)
    assert code == 0, out
    for g in (0, 1):
        a, b = (Dataset.open(r.generation(g).rollouts, "rollouts").read_all() for r in (plain, run))
        assert a.select(["sample_id", "response_ids"]).equals(b.select(["sample_id", "response_ids"]))
    assert weights(run) == weights(plain)
    losses = [[r["loss"] for r in read_metrics(x.metrics) if r["kind"] == "train"] for x in (plain, run)]
    assert losses[0] == losses[1]


def test_sigterm_stops_in_order(tiny, tmp_path):
    run = RunDir(tmp_path / "stopped")
    process = tiny.start(tiny.config(run.root))
    assert wait_for(process, run, "rollout", 0)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert "the same command goes on" in out and "Traceback" not in out
    assert not processes_of(run.root) and run.read_state()["status"] == "stopped"


def test_a_second_run_in_the_same_directory_is_refused(tiny, tmp_path):
    run = RunDir(tmp_path / "busy")
    run.lock()
    code, out = tiny.run(tiny.config(run.root))
    assert code == 2 and "another run is at work" in out


def flip(path: Path) -> None:
    """One bit, as a disk does it: the time of the file stays what it was."""
    times = path.stat()
    data = np.fromfile(path, np.uint8)
    data[-5] ^= 4
    data.tofile(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_damage_is_found_and_mended(finished, tiny, tmp_path, monkeypatch):
    """Flipped bits in the teacher's top-k, in a snapshot that is about to be loaded, and at last in the export: made
    again, and the same student comes out."""
    plain, _, _ = finished
    run = RunDir(tmp_path / "damaged")
    config = tiny.config(run.root)
    shutil.copytree(plain.root, run.root)
    run.config.write_text(plain.config.read_text().replace(str(plain.root), str(run.root)))
    shutil.rmtree(run.generation(1).train)
    shutil.rmtree(run.export)
    for checkpoint in run.checkpoints.iterdir():
        if json.loads((checkpoint / "state.json").read_text())["generation"] == 1:
            shutil.rmtree(checkpoint)
    path, snapshot = run.generation(1).topk / "shard-00001.topk", run.generation(0).next_snapshot / "model.safetensors"
    flip(path)
    launched: list[str] = []
    launch = Runner.launch

    def flipping(self: Runner, step: Step) -> Running:
        if step.name == "g001-train" and step.name not in launched:
            flip(snapshot)
        launched.append(step.name)
        return launch(self, step)

    monkeypatch.setattr(Runner, "launch", flipping)
    done = npd_ascend.run(config, quiet=True)
    # Training of generation 1 meets the snapshot, then the top-k; generation 0 exports the snapshot again.
    assert [n for n in launched if "train" in n] == ["g001-train", "g000-train", "g001-train", "g001-train"]
    assert path.read_bytes() == (plain.generation(1).topk / "shard-00001.topk").read_bytes()
    assert weights(run) == weights(plain) and done.export == run.export and done.state["status"] == "finished"
    flip(run.export / "model.safetensors")
    code, out = tiny.run(config)
    assert code == 0 and "export is damaged: made again" in out and weights(run) == weights(plain)


def test_lag_policy_with_lead(tiny, tmp_path):
    """kl: the first generation ends by lag; its snapshot answers while training goes on for ``lead`` epochs."""
    run = RunDir(tmp_path / "kl")
    config = tiny.config(run.root, sync={"policy": "kl", "refreshes": 1, "epsilon": 1e-9, "lag_every": 2, "lead": 0.5},
                         evaluate={"prompts": []})  # fmt: skip
    code, out = tiny.run(config)
    assert code == 0, out
    done = json.loads(run.generation(0).done.read_text())
    assert done["reason"] == "lag" and done["progress"] < 2
    assert done["progress"] - done["snapshot_progress"] >= 0.5 - 1e-6
    assert weights(run)
