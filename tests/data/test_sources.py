"""Which files a name stands for: folders, splits, data sets of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from npd_ascend.data.sources import expand, kind_of
from npd_ascend.errors import UserError

README = """---
license: mit
configs:
- config_name: other
  data_files: o/*.jsonl
- config_name: usual
  default: true
  data_files:
  - split: train
    path: ["u/a-*", u/b.jsonl]
  - split: test
    path: "**/t.jsonl"
---
# Data
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Lays out a snapshot of ``org/set`` in a hub cache; says where it is."""

    def lay(*names: str, readme: str | None = None, refs: bool = True, repository: str = "org/set") -> Path:
        home = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}"
        if refs:
            (home / "refs").mkdir(parents=True)
            (home / "refs" / "main").write_text("abc\n")
        root = home / "snapshots" / "abc"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("")
        if readme is not None:
            (root / "README.md").write_text(readme)
        return root

    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return lay


def found(root: Path, *names: str, split: str = "train") -> list[str]:
    return [p.relative_to(root).as_posix() for p in expand(list(names), split)]


def test_names_of_files_and_folders_say_what_they_are(cache):
    root = cache(
        "main/train-00000-of-00002.parquet",
        "main/train-00001-of-00002.parquet",
        "main/test.parquet",
        "socratic/train-00000-of-00001.parquet",
        ".hidden/train.jsonl",
        "main/dataset_infos.json",
        "x.py",
    )
    train = ["main/train-00000-of-00002.parquet", "main/train-00001-of-00002.parquet"]
    assert found(root, "hf:org/set") == found(root, "hf:org/set/main:train") == train
    assert found(root, "hf:org/set", split="test") == found(root, "hf:org/set:test") == ["main/test.parquet"]
    assert found(root, "hf:org/set/socratic", split="test") == ["socratic/train-00000-of-00001.parquet"]  # the only one


def test_readme_goes_first(cache):
    root = cache(
        "u/a-1.jsonl", "u/b.jsonl", "u/c.jsonl", "deep/er/t.jsonl", "o/dev.jsonl", "o/x/no.jsonl", readme=README
    )
    assert found(root, "hf:org/set") == ["u/a-1.jsonl", "u/b.jsonl"]
    assert found(root, "hf:org/set:test") == ["deep/er/t.jsonl"]
    assert found(root, "hf:org/set/other:validation") == ["o/dev.jsonl"]


@pytest.mark.parametrize("readme", ["---\nconfigs: 3\n---", "---\n: [\n---", "no head", "---\nconfigs:\n- 5\n---\n"])
def test_readme_that_says_nothing_of_files(cache, readme):
    root = cache("data/train.jsonl", "data/test.jsonl", readme=readme)
    assert found(root, "hf:org/set") == ["data/train.jsonl"]


def test_readme_leads_nowhere_else(cache, tmp_path):
    (tmp_path / "hub").mkdir(exist_ok=True)
    (tmp_path / "hub" / "secret.jsonl").write_text("{}")
    cache("a.jsonl", readme=README.replace("u/b.jsonl", "../../../secret.jsonl").replace("o/*", "/etc/*"))
    with pytest.raises(UserError, match="no files of a known kind"):
        expand(["hf:org/set"])


def test_snapshot_without_a_ref_and_links_to_nothing(cache):
    root = cache("train.jsonl", refs=False)
    (root / "train-2.jsonl").symlink_to("../../blobs/gone")
    assert found(root, "hf:org/set") == ["train.jsonl"]


def test_canonical_name_without_an_owner(cache):
    assert found(cache("train.jsonl", repository="squad"), "hf:squad") == ["train.jsonl"]


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["a/train.jsonl", "b/train.jsonl"], "hf:org/set", "its configurations are a, b; name one, e.g. hf:org/set/a"),
        (["a/train.jsonl", "b/train.jsonl"], "hf:org/set/c", "it has no 'c'; its configurations are a, b"),
        (
            ["one-00000-of-00001.jsonl", "two-00000-of-00001.jsonl"],
            "hf:org/set",
            "its splits are one, two; name one, e.g. hf:org/set:one",
        ),
        (["train.jsonl"], "hf:org/set:dev", "it has no 'dev'; its splits are train"),
        (["set.py"], "hf:org/set", "--revision refs/convert/parquet"),
        (["train.jsonl"], "hf:org/none", "hf download org/none --repo-type dataset"),
        (["train.jsonl"], "hf:", "expected hf:org/name"),
        (["train.jsonl"], "hf:org/../x", "expected hf:org/name"),
        (["train.jsonl"], "hf:a/b/c/d", "expected hf:org/name"),
    ],
)
def test_what_is_not_there_or_not_clear(cache, names, asked, said):
    cache(*names)
    with pytest.raises(UserError) as e:
        expand([asked])
    assert said in str(e.value) and str(e.value).startswith(asked.partition("set")[0]) and "\n" not in str(e.value)


def test_local_folder_in_the_layout_of_the_hub(tmp_path):
    for name in ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert found(tmp_path, str(tmp_path)) == ["data/train-00000-of-00001.parquet"]
    assert (
        found(tmp_path, f"{tmp_path}:test")
        == found(tmp_path, str(tmp_path), split="test")
        == ["data/test-00000-of-00001.parquet"]
    )


def test_splits_of_a_flat_folder(tmp_path):
    for name in ("train.jsonl", "valid.jsonl", "gsm8k_test.jsonl", "more.jsonl", "state.json"):
        (tmp_path / name).write_text("{}")
    assert len(expand([tmp_path])) == 4
    assert found(tmp_path, f"{tmp_path}:test") == ["gsm8k_test.jsonl"]
    assert found(tmp_path, f"{tmp_path}:train") == ["more.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("state.json", {"_data_files": [{"filename": "../x.arrow"}]}, "lists no data files"),
        ("state.json", {"_data_files": [{"filename": "data.arrow"}]}, "data.arrow: no such file"),
        ("dataset_dict.json", {"splits": ["../.."]}, "lists no splits"),
        ("dataset_dict.json", {"splits": ["a", "b"]}, "its splits are a, b; name one"),
        ("dataset_dict.json", [], "not readable as JSON"),
    ],
)
def test_saved_folder_that_is_damaged(tmp_path, name, content, said):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        expand([tmp_path])


def test_kinds():
    assert [kind_of(Path(n)) for n in ("a.JSONL", "a.json.gz", "a.csv.zst", "a.tsv", "a.parquet", "a.arrow")] == [
        "json",
        "json",
        "csv",
        "csv",
        "parquet",
        "arrow",
    ]
    assert [kind_of(Path(n)) for n in ("a.parquet.gz", "a.txt", "a.gz", "a", "json")] == [None] * 5
