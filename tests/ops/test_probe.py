"""On a CPU the plan speaks of this machine, by what was measured on it."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from npd_ascend.ops.plan import estimate_here, estimate_run, probe, render
from npd_ascend.ops.plan.probe import Probe, Speed, cached
from npd_ascend.ops.plan.workload import Workload

WORK = Workload(100, 20, 30)
FAST = Speed(prefill=1e-5, decode=1e-3, head=1e-6, update=1e-4, layers=2, batch=100)
PROBE = Probe(FAST, replace(FAST, prefill=4e-5, layers=4), 1.0, "x86_64, 2 cores")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cpu(config, **sections):
    return config(device={"target": "cpu"}, **sections)


def test_stages_take_what_the_probe_says(config):
    c = cpu(config)
    rates = PROBE.calibration(c)
    assert rates.seconds("rollout", 1000) == pytest.approx(12.0 + 0.3 * 2 + 1000 / 100 * (1e-3 + 0.006))
    teacher = 3.5 + 0.8 + 0.85 * 4
    again = 3.5 + 0.15 * (0.8 + 0.85 * 4)
    assert rates.seconds("annotate_teacher", 1000, 2) == pytest.approx(teacher + again + 1000 * 4.1e-5)
    per_token = 3 * 1.1e-5 + 1e-4 / (c.train.global_batch * c.pack.row_length)
    assert rates.seconds("train", 1e6) == pytest.approx(3.5 + 2 + 3 * 2 + 1e6 * per_token)
    # A machine twice as slow starts and compiles twice as slowly.
    assert replace(PROBE, slow=2.0).calibration(c).start("annotate_teacher", 1) == pytest.approx(2 * teacher)


def test_a_probe_takes_seconds_and_is_kept_for_the_dry_run(config):
    c = cpu(config)
    assert cached(c, WORK) is None
    begin = time.monotonic()
    found = probe(c, WORK)
    assert time.monotonic() - begin < 30
    assert cached(c, WORK) == found and found.slow > 0
    for speed in (found.student, found.teacher):
        assert 0 < speed.head < 1 and 0 < speed.prefill < 1 and 0 < speed.decode < 60 and speed.update > 0
    assert cached(cpu(config, rollout={"max_num_seqs": 3}), WORK) is None  # another decoding batch


def test_text_is_of_this_machine_in_seconds(config):
    c = cpu(config)
    before = render(estimate_here(c, WORK))
    assert "not measured" not in before and "npd plan CONFIG measures this machine" in before
    assert not os.path.exists(os.environ["XDG_CACHE_HOME"])  # a dry run writes nothing
    said = render(estimate_run(c, prompts=100, prompt_tokens=20, answer_tokens=30))
    for text in (before, said):
        assert "910B" not in text and "NPU" not in text and " h " not in text and "pace" not in text
    assert "on this machine" in said and " s" in said
    again = render(estimate_here(c, WORK))
    assert [x for x in again.splitlines() if x[:3] != "  -"] == [x for x in said.splitlines() if x[:3] != "  -"]


@pytest.mark.parametrize("load, busy", [(0.0, False), (64.0 * os.cpu_count(), True)])
def test_a_busy_machine_is_said_to_be(config, monkeypatch, load, busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    said = render(estimate_run(cpu(config), prompts=100, prompt_tokens=20, answer_tokens=30))
    assert ("busy with other work: load" in said) == busy


def test_a_named_device_is_still_planned_for(config):
    said = render(estimate_run(cpu(config), "910B3", prompts=100, prompt_tokens=20, answer_tokens=30))
    assert "910B3" in said and "fast to slow" in said


def test_a_configuration_for_npus_is_planned_in_hours(config):
    said = render(estimate_run(config(device={"target": "ascend"}), prompts=100, prompt_tokens=20, answer_tokens=30))
    assert "910B2" in said


def test_the_probe_imports_no_engine():
    code = "import sys, npd_ascend.ops.plan.probe; print({'mindspore', 'torch', 'vllm'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True).stdout.strip() == "set()"
