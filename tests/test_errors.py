"""The tree of exceptions: every class of the package is in it, read from the source (no engine is needed)."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import npd_ascend
from npd_ascend import errors, interrupt

PACKAGE = Path(npd_ascend.__file__).parent
ROOTS = {"NpdError", "Interruption"}


def exception_classes() -> dict[str, tuple[str, str]]:
    """Class -> (its base, module below the package), of every class that is an exception."""
    parents: dict[str, tuple[str, str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                parents[node.name] = (ast.unparse(node.bases[0]).rpartition(".")[2], module)

    def raised(name: str) -> bool:
        known = getattr(builtins, name, None)
        return (
            isinstance(known, type)
            and issubclass(known, BaseException)
            or (name in parents and raised(parents[name][0]))
        )

    return {name: place for name, place in parents.items() if raised(name)}


def drawn() -> dict[str, tuple[str, str]]:
    """The tree in the documentation of ``errors``: class -> (its base, module)."""
    found: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([ │]*(?:[├└]── )?)(\w+)(?: .*?(?:\(([\w.]+)\))?)?$", line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            if depth:
                found[match[2]] = (above[depth - 1], match[3] or "errors")
    return found


def test_every_exception_has_one_of_two_bases():
    classes = exception_classes()
    assert {"UserError", "Stopped", "_Refused"} <= set(classes)
    loose = {name: base for name, (base, _) in classes.items() if base not in classes and name not in ROOTS}
    assert not loose, "these derive neither from NpdError nor from Interruption"


def test_the_drawn_tree_is_the_real_one():
    public = {name: place for name, place in exception_classes().items() if not name.startswith("_")}
    assert drawn() == public


def test_bases():
    assert issubclass(errors.NpdError, Exception) and not issubclass(interrupt.Interruption, Exception)
    assert npd_ascend.NpdError is errors.NpdError and npd_ascend.Interruption is interrupt.Interruption
    assert errors.CorruptShard("d", 1, "x").exit_code == 3 and errors.MachineError("full").exit_code == 2
