"""Look-up by name: files of a folder, entry points, ``module:function``, and what each refuses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from npd_ascend.errors import UserError
from npd_ascend.registry import Registry


@dataclass(frozen=True)
class Entry:
    name: str
    function: object


_BUILT_IN = """
from shelter import registers
@registers({name!r})
def anything(x):
    return {name!r}, x
"""


@pytest.fixture
def shelter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package ``plug.kinds`` with the files ``jsd`` and ``kl``, its registry in a module ``shelter``, and a folder
    of the user's own on the path."""
    folder = tmp_path / "plug" / "kinds"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("")
    for name in ("jsd", "kl"):
        (folder / f"{name}.py").write_text(_BUILT_IN.format(name=name))
    (folder / "_helper.py").write_text("raise RuntimeError('nobody asked for this file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = type(sys)("shelter")
    monkeypatch.setitem(sys.modules, "shelter", module)

    def make(**options: object) -> Registry[Entry]:
        made: Registry[Entry] = Registry("kind", "some.kind", "plug.kinds", **options)
        module.registers = lambda name: made.decorator(lambda f: Entry(name, f), name)
        return made

    make.folder, make.root = folder, tmp_path
    yield make
    for name in [n for n in sys.modules if n.split(".")[0] in ("plug", "own", "own_broken", "jsd", "installed_kind")]:
        del sys.modules[name]


def test_a_file_of_the_folder_is_a_name_and_only_that_file_is_imported(shelter):
    kinds = shelter()
    assert kinds.names() == ["jsd", "kl"] and "plug.kinds.jsd" not in sys.modules
    found = kinds.find("jsd")
    assert found.name == "jsd" and found.function(3) == ("jsd", 3)
    assert "plug.kinds.kl" not in sys.modules
    assert {name: entry.name for name, entry in kinds.all().items()} == {"jsd": "jsd", "kl": "kl"}


def test_unknown_names_get_the_nearest_one_and_the_list(shelter):
    with pytest.raises(UserError) as e:
        shelter().find("jds")
    assert str(e.value) == (
        "some.kind: there is no kind 'jds'; did you mean jsd? known: jsd, kl, or module:function of your own"
    )
    with pytest.raises(UserError, match="^other.key: there is no kind ''"):
        shelter().find("", "other.key")


def test_arguments_do_not_clash_with_modules(shelter):
    (shelter.root / "own.py").write_text(_BUILT_IN.format(name="mine"))
    (shelter.root / "jsd.py").write_text("raise RuntimeError('a known name is no module')")
    kinds = shelter(takes_argument=True)
    assert [
        (entry.name, argument)
        for entry, argument in map(
            kinds.parse, ("jsd", "jsd:0.5", "jsd:half", "own:anything", "own:anything:0.25", "own:anything:a:b")
        )
    ] == [("jsd", ""), ("jsd", "0.5"), ("jsd", "half"), ("mine", ""), ("mine", "0.25"), ("mine", "a:b")]
    with pytest.raises(UserError, match="there is no kind 'jds:0.5'; did you mean jsd?"):
        kinds.parse("jds:0.5")
    with pytest.raises(UserError, match="no module 'jds'; did you mean jsd?"):
        kinds.parse("jds:half")


@pytest.mark.parametrize("text", ["jsd:0.5", "jsd:half", "own:anything:0.5"])
def test_a_registry_without_arguments_refuses_them(shelter, text):
    (shelter.root / "own.py").write_text(_BUILT_IN.format(name="mine"))
    with pytest.raises(UserError, match=f"^some.kind {text!r}: a kind takes no argument; leave out ':"):
        shelter().find(text)


def test_nothing_of_a_user_is_imported_unless_named(shelter):
    (shelter.root / "own.py").write_text(_BUILT_IN.format(name="kl"))
    kinds = shelter()
    kinds.all()
    with pytest.raises(UserError):
        kinds.find("own")
    assert "own" not in sys.modules
    assert kinds.find("own:anything").name == "kl"
    assert kinds.find("kl").function(1) == kinds.find("own:anything").function(1)
    assert kinds.find("kl") is not kinds.find("own:anything"), "one's own entry does not take a known name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing:f", "some.kind 'missing:f': there is no module 'missing'"),
        ("own.deeper:f", "there is no module 'own.deeper'|importing own.deeper fails"),
        ("own_broken:f", "importing own_broken fails: ZeroDivisionError: division by zero"),
        ("own:anythin", "module own has no 'anythin'; did you mean anything?"),
        ("own:NUMBER", "that is no kind but a int"),
        ("own:Plain", "that is no kind but a type"),
        ("own:plain", "that is no kind but a function; a kind is made as in the files of plug.kinds"),
        ("own:LIST", "that is no kind but a list"),
        ("..:f", "there is no kind '..:f'"),
        ("own:f()", "there is no kind 'own:f\\(\\)'"),
        ("a b:f", "there is no kind 'a b:f'"),
    ],
)
def test_one_line_says_what_is_wrong(shelter, text, message):
    (shelter.root / "own.py").write_text(
        _BUILT_IN.format(name="mine") + ("NUMBER, LIST = 3, []\nclass Plain: pass\ndef plain(x): return x\n")
    )
    (shelter.root / "own_broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=message) as e:
        shelter().find(text)
    assert "\n" not in str(e.value)


def test_a_missing_import_of_the_users_module_is_told_apart(shelter):
    (shelter.root / "own_broken.py").write_text("import not_installed_anywhere")
    with pytest.raises(UserError, match="importing own_broken fails: No module named 'not_installed_anywhere'"):
        shelter().find("own_broken:f")


def test_plain_functions_where_they_say_all(shelter):
    (shelter.root / "own.py").write_text("def plain(x): return x + 1\nNUMBER = 3\nclass Plain: pass\n")
    kinds = shelter(wrap=lambda f: Entry(f.__name__, f))
    assert kinds.find("own:plain").function(1) == 2
    for other in ("own:NUMBER", "own:Plain"):
        with pytest.raises(UserError, match="that is no kind"):
            kinds.find(other)


def test_entry_points_of_installed_packages(shelter):
    info = shelter.root / "installed_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[plug.kinds]\nfar = installed_kind:anything\njsd = installed_kind:other\n")
    (shelter.root / "installed_kind.py").write_text(_BUILT_IN.format(name="far"))
    kinds = shelter(takes_argument=True)
    with pytest.raises(UserError, match="did you mean far. known: jsd, kl, far, or"):
        kinds.find("farr")
    assert kinds.find("jsd").name == "jsd" and "installed_kind" not in sys.modules, "the folder goes first"
    entry, argument = kinds.parse("far:0.5")
    assert (entry.name, argument) == ("far", "0.5") and "installed_kind" in sys.modules


def test_a_file_that_enters_nothing_is_named(shelter):
    (shelter.folder / "empty.py").write_text("")
    with pytest.raises(UserError, match="plug.kinds.empty does not enter a kind 'empty'"):
        shelter().find("empty")
