"""Inputs are found from the working directory and beside the configuration; outputs are not looked for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from npd_ascend.config import load_config
from npd_ascend.config.paths import input_keys
from npd_ascend.config.schema import Config
from npd_ascend.config.study import arms_of, load_study
from npd_ascend.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A configuration with its inputs beside it, and a working directory elsewhere."""
    home, work = tmp_path / "project" / "conf", tmp_path / "work"
    for folder in (home / "models" / "t", home / "models" / "s", home.parent / "shared", work):
        folder.mkdir(parents=True)
    (home / "p.jsonl").write_text("{}")
    (home.parent / "shared" / "map.json").write_text("{}")
    tree = {
        "run": {"dir": "runs/a"},
        "models": {"teacher": "models/t", "student": "models/s"},
        "data": {"prompts": ["p.jsonl"], "answer_field": "a", "chat_template": "student"},
        "evaluate": {"prompts": ["p.jsonl"], "checker_data": "../shared/map.json"},
    }
    (home / "c.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(work)
    return home


def test_all_paths_that_a_run_reads_are_known():
    assert set(input_keys(Config)) == {
        "models.teacher",
        "models.student",
        "models.tokenizer",
        "data.prompts",
        "data.chat_template",
        "evaluate.prompts",
        "evaluate.checker_data",
        "reward.parts.*.data",
    }


def test_inputs_beside_the_file_are_found_from_anywhere(project):
    c = load_config(project / "c.yaml", inputs=True)
    assert c.models.teacher == project / "models/t" and c.data.prompts == [project / "p.jsonl"]
    assert c.evaluate.checker_data == project.parent / "shared" / "map.json"
    assert c.run.dir == Path("runs/a") and c.data.chat_template == "student"


def test_the_working_directory_goes_before(project):
    Path("models/t").mkdir(parents=True)
    c = load_config(project / "c.yaml")
    assert c.models.teacher == Path("models/t") and c.models.student == project / "models/s"


def test_overrides_are_relative_to_the_working_directory(project):
    Path("here.jsonl").write_text("{}")
    assert load_config(project / "c.yaml", ["data.prompts=[here.jsonl]"], inputs=True).data.prompts == [
        Path("here.jsonl")
    ]
    with pytest.raises(UserError, match="data.prompts: other.jsonl is neither"):
        load_config(project / "c.yaml", ["data.prompts=[other.jsonl]"], inputs=True)


def test_an_absent_input_is_one_line_with_both_places(project):
    shutil.rmtree(project / "models" / "t")
    load_config(project / "c.yaml")  # a report may do without
    with pytest.raises(UserError) as e:
        load_config(project / "c.yaml", inputs=True)
    assert str(e.value) == (
        f"models.teacher: models/t is neither in the working directory ({Path.cwd()}) nor beside "
        f"the configuration ({project})"
    )


@pytest.mark.parametrize("name", ["hf:openai/gsm8k", "data/*.jsonl"])
def test_names_that_are_no_paths_are_left_to_their_reader(project, name):
    assert load_config(project / "c.yaml", [f"data.prompts=['{name}']"], inputs=True).data.prompts == [Path(name)]


def test_a_split_of_a_folder_is_found_by_its_folder(project):
    (project / "saved").mkdir()
    tree = yaml.safe_load((project / "c.yaml").read_text())
    tree["data"]["prompts"] = ["saved:train"]
    (project / "c.yaml").write_text(yaml.safe_dump(tree))
    assert load_config(project / "c.yaml", inputs=True).data.prompts == [Path(f"{project}/saved:train")]
    with pytest.raises(UserError, match="gone:train is neither"):
        load_config(project / "c.yaml", ["data.prompts=['gone:train']"], inputs=True)


def test_a_study_finds_its_tasks_and_what_they_set(project):
    (project / "q.jsonl").write_text("{}")
    (project / "study.yaml").write_text(
        yaml.safe_dump(
            {
                "study": {"dir": "studies/a", "seeds": [0]},
                "tasks": {"maze": {"config": "c.yaml", "set": {"data.prompts": ["q.jsonl"]}}},
                "groups": {"g": {"tasks": ["maze"], "arms": {"a": {"set": {"models.student": "models/t"}}}}},
            }
        )
    )
    study = load_study(project / "study.yaml")
    (arm,) = arms_of(study, lambda method, where: {})
    assert arm.config.data.prompts == [project / "q.jsonl"] and arm.config.models.student == project / "models/t"
    assert arm.config.models.teacher == project / "models/t" and study.study.dir == Path("studies/a")


def test_the_shipped_mini_configuration_works_from_elsewhere(tmp_path):
    """Its paths are relative to the repository, so a copy of it beside the assets is tried."""
    shutil.copy(ROOT / "configs" / "mini.yaml", tmp_path / "mini.yaml")
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "npd_ascend.cli", "run", "../mini.yaml", "--dry-run"],
        text=True,
        capture_output=True,
        cwd=tmp_path / "work",
    )
    assert done.returncode == 0 and "g001 train" in done.stdout, done.stderr
