"""Interpreters and devices."""

import pytest

from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops import environments
from npd_ascend.ops.environments import chosen_npus, resolve_device


def test_ascend_is_refused_without_an_npu(config):
    with pytest.raises(UserError, match="no NPU is visible"):
        resolve_device(config(device={"target": "ascend"}).device)
    with pytest.raises(UserError, match="needs an NPU"):
        resolve_device(config(device={"target": "cpu", "dtype": "bfloat16"}).device)


def test_interpreter_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(tmp_path / "nope"))
    with pytest.raises(UserError, match="no such interpreter"):
        Environments.find()


@pytest.mark.parametrize("choice,want", [(None, [0, 1, 5]), ("", [0, 1, 5]), ("5,0", [5, 0]), (" 1 ", [1])])
def test_chosen_npus(choice, want):
    assert chosen_npus(choice, [0, 1, 5]) == want
    assert chosen_npus(choice, []) == []


@pytest.mark.parametrize("choice,why", [("0,2", "no NPU 2"), ("0-3", "expected numbers"), ("0,,1", "expected numbers")])
def test_bad_choice(choice, why):
    with pytest.raises(UserError, match=why):
        chosen_npus(choice, [0, 1, 5])


def test_kernels_are_deterministic_on_the_cpu_unless_asked_otherwise(config):
    for asked, want in ((None, True), (True, True), (False, False)):
        settings = config(device={"target": "cpu", "deterministic": asked}).device
        assert resolve_device(settings).deterministic is want


def test_kernels_are_not_deterministic_on_ascend_unless_asked(config, monkeypatch):
    monkeypatch.setattr(environments, "visible_npus", lambda: 8)
    for asked, want in ((None, False), (True, True), (False, False)):
        settings = config(device={"target": "ascend", "deterministic": asked}).device
        assert resolve_device(settings).deterministic is want
