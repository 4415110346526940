"""Things that a configuration calls by name: one class for filters, loss terms, checkers, sync policies and all others.

A name is one of

* a file of the registry's own folder: ``delta_ifd`` is ``select/filters/delta_ifd.py``. Only that file is imported;
* an entry point that an installed package declares in the registry's group, e.g. ``npd_ascend.filters``;
* ``module:function`` (or ``module:Class``) of the user's own code.

Where the registry takes an argument, it follows behind one more colon: ``jsd:0.5``, ``my_package.losses:alpha:0.5``. So
the text before the first colon is looked up among the known names first; only when it is none of them, it is a module.
A module of one's own that is called like a known name must therefore live in a package (``mine.jsd:loss``).

Nothing of a user's is imported unless the configuration names it: known names are names of files and of entry points.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from npd_ascend.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name.

    A file enters what it defines under its own name, usually with a decorator of the registry's module::

        FILTERS: Registry[Filter] = Registry("filter", "select.filter", "npd_ascend.select.filters")


        def register(name, needs=()):
            return FILTERS.decorator(lambda judge: Filter(name, frozenset(needs), judge), name)

    Args:
        what: what an entry is called in messages.
        key: setting that names one.
        package: package whose modules are the known names; it is the group of entry points too, with the first and
            last part of its name (``npd_ascend.filters``).
        wrap: makes an entry of a function that has not entered itself (in ``module:function`` and entry points);
            None: such a function is refused.
        takes_argument: whether an argument may follow the name.
    """

    def __init__(
        self, what: str, key: str, package: str, wrap: Callable[[Any], T] | None = None, takes_argument: bool = False
    ):
        self.what, self.key, self.package = what, key, package
        self.group = f"{package.partition('.')[0]}.{package.rpartition('.')[2]}"
        self._wrap, self._takes_argument = wrap, takes_argument
        self._entries: dict[Any, T] = {}
        self._files: dict[tuple[str, str], T] = {}

    def enter(self, item: Any, name: str, entry: T) -> None:
        """Enters what a module defines.

        Args:
            item: function or class, as ``module:function`` would find it.
            name: for an item of the registry's own folder: the name of its file.
            entry: what ``find`` answers with.
        """
        self._entries[item] = entry
        self._files[item.__module__, name] = entry

    def decorator(self, make: Callable[[Any], T], name: str) -> Callable[[Any], Any]:
        """A decorator that enters ``make(item)`` and leaves the item as it is."""

        def enter(item: Any) -> Any:
            self.enter(item, name, make(item))
            return item

        return enter

    def names(self) -> list[str]:
        """Names of the files of its folder; nothing of them is imported."""
        return list(_files(tuple(importlib.import_module(self.package).__path__)))

    def known(self) -> list[str]:
        """All names: those of its folder, then those of installed packages."""
        return [*self.names(), *self._installed()]

    def all(self) -> dict[str, T]:
        """The entries of its folder by name."""
        return {name: self._of_file(name) for name in self.names()}

    def get(self, name: str, key: str = "") -> T | None:
        """The entry of a known name; None: it is none. Unlike ``find``, it serves for names that come from files of
        others: whatever these say, nothing is imported that is not installed as an entry of this kind.

        Args:
            name: a name without argument.
            key: setting or file that gives it, when not the usual one.

        Raises:
            UserError: an import that fails, or something of another kind.
        """
        if name in self.names():
            return self._of_file(name)
        point = self._installed().get(name)
        return None if point is None else self._own(point.value, name, key or self.key)

    def find(self, text: str, key: str = "") -> T:
        """The entry of that name.

        Args:
            text: the name.
            key: setting that gives it, when not the usual one.

        Raises:
            UserError: unknown name (with the nearest), an import that fails, something of another kind, or an
                argument.
        """
        return self.parse(text, key)[0]

    def parse(self, text: str, key: str = "") -> tuple[T, str]:
        """The entry of that name, and the argument behind it, empty when there is none.

        Raises:
            UserError: as ``find``; an argument only where the registry takes none.
        """
        key = key or self.key
        head, _, rest = text.partition(":")
        function, _, argument = rest.partition(":")
        entry = self.get(head, key)
        if entry is not None:
            argument = rest
        elif function.isidentifier() and all(part.isidentifier() for part in head.split(".")):
            entry = self._own(f"{head}:{function}", text, key)
        else:
            raise UserError(
                f"{key}: there is no {self.what} {text!r}; {self._hint(head)}known: "
                f"{', '.join(self.known())}, or module:function of your own"
            )
        if argument and not self._takes_argument:
            raise UserError(f"{key} {text!r}: a {self.what} takes no argument; leave out ':{argument}'")
        return entry, argument

    def _hint(self, name: str) -> str:
        return nearest(name, self.known(), cutoff=0.3)

    def _installed(self) -> dict[str, EntryPoint]:
        """Entry points of the group; the folder's own names go before them."""
        from importlib.metadata import entry_points  # reads the list of all installed packages

        own = self.names()
        return {point.name: point for point in entry_points(group=self.group) if point.name not in own}

    def _of_file(self, name: str) -> T:
        module = f"{self.package}.{name}"
        importlib.import_module(module)
        try:
            return self._files[module, name]
        except KeyError:
            raise UserError(
                f"{module} does not enter a {self.what} {name!r}: a file of that folder enters one under "
                "the name of the file"
            ) from None

    def _own(self, path: str, text: str, key: str) -> T:
        """The entry of an object that is not in the folder."""
        item = load(path, f"{key} {text!r}", self._hint(path.partition(":")[0]))
        try:
            entry = self._entries.get(item)
        except TypeError:  # cannot be a key, so it has not entered itself
            entry = None
        if entry is not None:
            return entry
        if self._wrap is None or not callable(item) or isinstance(item, type):
            raise UserError(
                f"{key} {text!r}: that is no {self.what} but a {type(item).__name__}; a {self.what} is "
                f"made as in the files of {self.package}"
            )
        return self._wrap(item)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that is nearest to an unknown one, as a question with a space behind it; empty where none is near.

    Args:
        name: the unknown one.
        known: all others.
        cutoff: how alike they must be, 0 to 1; see ``difflib.get_close_matches``.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}? " if near else ""


@lru_cache(maxsize=64)
def _files(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules in some folders."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")))


def load(path: str, where: str, hint: str = "") -> Any:
    """What ``module:function`` names.

    Args:
        path: ``module:function``.
        where: begins the message of an error: setting and value.
        hint: goes into the message when there is no such module.

    Raises:
        UserError: no such module, one whose import fails, or nothing of that name in it.
    """
    module, _, function = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module}.".startswith(f"{e.name}."):
            raise UserError(f"{where}: importing {module} fails: {e}") from None
        raise UserError(
            f"{where}: there is no module {e.name!r}; {hint}is its package installed, or its folder in PYTHONPATH?"
        ) from None
    except Exception as e:  # whatever a module does while it is imported
        raise UserError(f"{where}: importing {module} fails: {type(e).__name__}: {e}") from None
    try:
        return getattr(found, function)
    except AttributeError:
        near = difflib.get_close_matches(function, vars(found), n=1)
        raise UserError(
            f"{where}: module {module} has no {function!r}" + (f"; did you mean {near[0]}?" if near else "")
        ) from None
