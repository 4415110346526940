"""Interpreters, devices, and what the doctor says of them."""

import pytest

from npd_ascend.errors import UserError
from npd_ascend.ops.doctor import Finding, examine, render
from npd_ascend.ops.environments import Environments, resolve_device

def test_ascend_is_refused_without_an_npu(config):
    with pytest.raises(UserError, match="no NPU is visible"):
        resolve_device(config(device={"target": "ascend"}).device)
    with pytest.raises(UserError, match="needs an NPU"):
        resolve_device(config(device={"target": "cpu", "dtype": "bfloat16"}).device)


def test_doctor_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(tmp_path / "nope"))
    findings = examine()
    assert any(f.level == "error" and "NPD_MINDSPORE_PYTHON" in f.what for f in findings)
    with pytest.raises(UserError, match="no such interpreter"):
        Environments.find()


def test_doctor_sees_an_environment_without_packages(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"mindspore": "2.7.0", "mindformers": null, "numpy": "1.26"}\'\n')
    fake.chmod(0o755)
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(fake))
    lines = [f.what for f in examine() if f.level == "error" and f.what.startswith("mindspore environment")]
    assert lines == ["mindspore environment: mindspore 2.7.0, tested with 2.9.0*",
                     "mindspore environment: mindformers is missing"]  # fmt: skip


def test_render():
    text = render([Finding("ok", "a"), Finding("error", "b", "do c")])
    assert text == "ok       a\nERROR    b\n         -> do c"
