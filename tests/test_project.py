"""What the project says of itself in several files is the same in all of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from npd_ascend.ops.doctor.pairs import MINDSPORE, ROLLOUT

ROOT = Path(__file__).parents[1]
PROJECT = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def requirements(name: str) -> dict[str, Requirement]:
    """Lines of a requirement file or of an extra, by name of the package."""
    path = ROOT / "requirements" / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix else EXTRAS[name]
    found = [Requirement(text) for line in lines if (text := line.partition(" #")[0].strip()) and text[0] != "#"]
    return {canonicalize_name(r.name): r for r in found}


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock file."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line[0] != "#"]
    assert all(len(pair) == 2 for pair in pairs) and pairs == sorted(pairs)
    return dict(pairs)


def module(path: str) -> Any:
    """A script of the site, which is no module of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# ---- packages


@pytest.mark.parametrize(
    ("lock", "given"),
    [
        ("mindspore.lock", ("mindspore.txt", "dev", "test")),
        ("rollout-cpu.lock", ("rollout-cpu.txt", "test")),
        ("docs.lock", ("docs.txt",)),
    ],
)
def test_lock_files_hold_what_is_required(lock, given):
    versions = locked(lock)
    asked = [r for name in given for r in requirements(name).values() if r.name != "npd-ascend"]
    if lock != "docs.lock":
        asked += [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{lock} lacks {name}: bash scripts/lock.sh"
        assert requirement.specifier.contains(versions[name]), f"{lock}: {name} {versions[name]}: bash scripts/lock.sh"
    text = (ROOT / "requirements" / lock).read_text()
    assert "+cpu" not in text and "://" not in text


@pytest.mark.parametrize(("extra", "file"), [("cpu-train", "mindspore.txt"), ("cpu-rollout", "rollout-cpu.txt")])
def test_extras_name_what_the_environments_are_made_of(extra, file):
    assert {n: r.specifier for n, r in requirements(extra).items()} == {
        n: r.specifier for n, r in requirements(file).items()
    }


def test_extras_of_ascend_are_the_versions_that_the_doctor_knows():
    train, images = requirements("ascend-train"), requirements("ascend-mindspore.txt")
    assert {"mindspore", "mindformers"} <= train.keys()
    assert all(images[n].specifier == r.specifier for n, r in train.items())
    rollout = {name: str(r.specifier).removeprefix("==") for name, r in requirements("ascend-rollout").items()}
    assert rollout.items() >= ROLLOUT["ascend"][0].packages.items()
    assert images["mindspore"].specifier.contains(MINDSPORE["ascend"].packages["mindspore"])


def test_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["npd_ascend"]
    assert "py.typed" in patterns and all(list((ROOT / "npd_ascend").glob(p)) for p in patterns)


# ---- checks


def test_hooks_run_the_locked_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    versions = locked("mindspore.lock")
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy"}
    pinned = {dep for hook in hooks.values() for dep in hook.get("additional_dependencies", [])}
    assert pinned == {f"ruff=={versions['ruff']}"}
    dev = requirements("dev")
    assert all(str(dev[name].specifier) == f"=={versions[name]}" for name in ("ruff", "mypy"))


def test_hosted_ci_runs_what_ci_runs():
    """Sound YAML, a shell command or an action in every step, and files that are there."""
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert set(flow[True]) == {"push", "pull_request"}  # YAML 1.1 reads "on" as a bool
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    assert all(("run" in s) != ("uses" in s) for s in steps) and all(j["runs-on"] for j in flow["jobs"].values())
    said = "\n".join(s["run"] for s in steps if "run" in s)
    scripts = re.findall(r"bash (\S+)", said)
    assert {"scripts/setup_env.sh", ".ci/run", "scripts/build_docs.sh"} == set(scripts)
    assert all((ROOT / script).is_file() for script in scripts)
    assert "ruff check ." in said and "ruff format --check ." in said and "secrets." not in str(flow)


# ---- documentation


def test_links_into_the_source_tree_become_text():
    hooks = module("docs/site/hooks.py")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="docs/extending.md"))
    files = SimpleNamespace(get_file_from_path=lambda path: path == "examples/confident.py" or None)
    for text, wanted in {
        "see [code](../npd_ascend/errors.py)": "see code",
        "[a](../examples/confident.py)": "[a](../examples/confident.py)",
        "[gone](../npd_ascend/gone.py)": "[gone](../npd_ascend/gone.py)",
        "[x](https://a.b/c)": "[x](https://a.b/c)",
        "![p](images/report.png)": "![p](images/report.png)",
        "[up](../../../etc)": "[up](../../../etc)",
    }.items():
        assert hooks.on_page_markdown(text, page, None, files) == wanted


def test_broken_links_of_a_site_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text('<h2 id="here">x</h2><a href="sub/">s</a><a href="#here">y</a><img src="p.png">')
    (tmp_path / "sub" / "index.html").write_text('<a href="../a.html#there">z</a><a href="https://a.b">o</a>')
    found = module("docs/site/check_links.py").broken(tmp_path)
    assert sorted(found) == ["a.html: p.png", "sub/index.html: ../a.html#there"]


def test_every_page_of_the_navigation_is_there():
    """Pages, and the modules that pages of the interface show."""
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 15 and all((ROOT / name).is_file() for name in named)
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            parts = name.split(".")
            places = [ROOT.joinpath(*parts[:n]) for n in (len(parts), len(parts) - 1)]
            assert any(p.with_suffix(".py").is_file() or (p / "__init__.py").is_file() for p in places), name
