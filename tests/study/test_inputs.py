import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from npd_ascend.errors import UserError
from npd_ascend.study.inputs import check_inputs


def arm(tmp_path, teacher="t", student="s"):
    """What is read of an arm; its checkpoints and prompts are made unless they are there."""
    for name in (teacher, student):
        (tmp_path / name).mkdir(exist_ok=True)
        if not (tmp_path / name / "config.json").exists():
            (tmp_path / name / "config.json").write_text(name)
            (tmp_path / name / "model.safetensors").write_bytes(b"weights of " + name.encode())
    (tmp_path / "p.jsonl").touch()
    config = SimpleNamespace(
        models=SimpleNamespace(teacher=tmp_path / teacher, student=tmp_path / student),
        data=SimpleNamespace(prompts=[tmp_path / "p.jsonl", Path("hf:org/name")]),
        evaluate=SimpleNamespace(prompts=[]),
    )
    return SimpleNamespace(config=config)


def test_the_same_models_pass_even_when_copied(tmp_path):
    one = arm(tmp_path)
    check_inputs(tmp_path, [one, one], begun=False)
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "copy").rename(tmp_path / "s")
    check_inputs(tmp_path, [one], begun=True)


@pytest.mark.parametrize("file", ["s/model.safetensors", "t/model.safetensors", "p.jsonl"])
def test_one_that_has_changed_is_refused_once_there_are_results(tmp_path, file):
    one = arm(tmp_path)
    check_inputs(tmp_path, [one], begun=False)
    (tmp_path / file).write_bytes(b"made anew")
    with pytest.raises(UserError, match=str(tmp_path / file.split("/")[0]) + " has changed since .* study.dir"):
        check_inputs(tmp_path, [one], begun=True)
    check_inputs(tmp_path, [one], begun=False)  # nothing depends on the old one
    check_inputs(tmp_path, [one], begun=True)


def test_what_was_not_asked_for_is_remembered(tmp_path):
    first, second = arm(tmp_path), arm(tmp_path, student="other")
    check_inputs(tmp_path, [first], begun=False)
    check_inputs(tmp_path, [second], begun=True)
    (tmp_path / "s" / "model.safetensors").write_bytes(b"made anew")
    check_inputs(tmp_path, [second], begun=True)
    with pytest.raises(UserError, match="has changed"):
        check_inputs(tmp_path, [first], begun=True)
