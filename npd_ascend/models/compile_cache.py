"""Compiled graphs kept between processes: a generation's stages compile what the one before has compiled already.

MindSpore's own cache (``enable_compile_cache``) keeps a graph as the front end leaves it, without weights; kernels
are chosen again. But it knows a graph by its number among those that this process compiles with the cache switched on,
and looks at source files only: two models, or two orders, that share its folder get each other's graphs. So it never
sees a folder with more in it than the one graph that is wanted. The graphs themselves stand in a folder each, whose
name is the hash of everything they depend on, a rank of several included, and which appears whole, with the hashes of
its files, or not at all.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.communication import get_rank

from npd_ascend.config.job import Device
from npd_ascend.models.spec import ModelSpec
from npd_ascend.progress import emit, spent
from npd_ascend.store.atomic import atomic_folder, read_sealed, write_sealed
from npd_ascend.store.identity import digest, file_sha256, seals_hold

_SEALS, _GRAPH, _SOURCES = "seals.json", "graph.mindir", "compile_dependency.hash"
_MEETING = {"MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT"}
"""Where ranks meet and what they are called there: another with every start, and no graph depends on it."""


def network_key(spec: ModelSpec, device: Device, **settings: Any) -> dict[str, Any]:
    """On what the graphs of a network depend; not on the type in which its checkpoint was written."""
    return {"spec": repr(replace(spec, dtype="")), "device": device.model_dump(mode="json"), **settings}


class Graphs:
    """Compiles a stage's cells, with the help of earlier processes where a folder is given.

    Whatever is wrong with that folder (damaged, full, read-only), the cells are compiled. Ranks under msrun may share
    it: each keeps its own graphs, which differ by rank.

    Args:
        stage: under which name the seconds are reported.
        folder: where graphs are kept; None: nowhere.
        key: on what the graphs of all cells depend, beside their classes, the shapes of their arguments, code, versions
            and environment, e.g. ``network_key``. JSON.
        compiling: held open while a graph is compiled.
    """

    def __init__(
        self,
        stage: str,
        folder: Path | None,
        key: dict[str, Any],
        compiling: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self._stage, self._folder, self._key, self._compiling = stage, folder, key, compiling
        self._done: set[tuple[int, Any]] = set()

    def __call__(self, cell: nn.Cell, *inputs: ms.Tensor | None) -> Any:
        """Calls a cell, and compiles it before when it has not seen such inputs."""
        self.compile(cell, *inputs)
        return cell(*inputs)

    def compile(self, cell: nn.Cell, *inputs: ms.Tensor | None) -> None:
        """Compiles a cell for inputs of these shapes and types, unless that is done."""
        form = tuple(None if x is None else (x.shape, str(x.dtype)) for x in inputs)
        if (id(cell), form) in self._done:
            return
        self._done.add((id(cell), form))
        start = time.monotonic()
        emit("compiling")
        with self._compiling():
            if self._folder is not None:
                name = digest([_surroundings(), _rank(), self._stage, type(cell).__qualname__, form, self._key])
                with suppress(OSError):
                    _Engine.of(self._folder).compile(self._folder / name, lambda: cell.compile(*inputs))
            cell.compile(*inputs)  # what is compiled already costs nothing
        _trim()
        spent(self._stage, "compile", time.monotonic() - start)


class _Engine:
    """MindSpore's cache, of which there is one a process; its folder cannot be changed once it is used.

    Attributes:
        number: graphs that have been compiled with it.
        finds: whether it still looks: after the first graph that it did not find, it does not.
    """

    _only: _Engine | None = None

    def __init__(self, folder: Path):
        self.root = folder / f".tmp-{os.getpid()}-{_rank()}-graphs"  # nodes may give their processes the same number
        self.number, self.finds = 0, True
        self._sources = b""

    @classmethod
    def of(cls, folder: Path) -> _Engine:
        """That of this process, working beside ``folder`` when there is none yet."""
        cls._only = cls._only or cls(folder)
        return cls._only

    def compile(self, place: Path, work: Callable[[], object]) -> None:
        """Does ``work``, which compiles one graph, with the one at ``place``, or leaves it there.

        Raises:
            OSError: it could not be kept.
        """
        inside = self.root / f"rank_{_rank()}" / "graph_cache"
        inside.mkdir(parents=True)
        try:
            role = os.environ.get("MS_ROLE", "")  # MindSpore's names begin with it
            graph, sources = inside / f"{role}compile_cache_{self.number}.mindir", inside / f"{role}{_SOURCES}"
            seals = read_sealed(place / _SEALS)
            if not seals_hold(place, seals):
                seals = None
            elif self.finds:
                shutil.copyfile(place / _GRAPH, graph)
                shutil.copyfile(place / _SOURCES, sources)
            ms.set_context(enable_compile_cache=True, compile_cache_path=str(self.root))
            try:
                work()
            except RuntimeError:
                return  # a cache that cannot be read or written; a fault of the cell itself comes again without it
            finally:
                ms.set_context(enable_compile_cache=False)
                self.number += 1
            self.finds = self.finds and seals is not None
            if sources.exists():  # written with the first graph only
                self._sources = sources.read_bytes()
            if seals is None or (self.finds and file_sha256(graph) != seals[_GRAPH]):
                with atomic_folder(place) as new:
                    shutil.copyfile(graph, new / _GRAPH)
                    (new / _SOURCES).write_bytes(self._sources)
                    write_sealed(new / _SEALS, {name: file_sha256(new / name) for name in (_GRAPH, _SOURCES)})
        finally:
            shutil.rmtree(self.root, ignore_errors=True)


def _trim() -> None:
    """Gives freed memory back to the system: glibc would keep what the compiler needed, 0.1 GB for 15 layers."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _rank() -> int:
    """Of this process among those that msrun started, which have formed their group by now."""
    return get_rank() if "MS_ROLE" in os.environ else 0


@cache
def _surroundings() -> list[Any]:
    """Of what all graphs are made: versions of the engine, content of this package, entry script, environment."""
    root = Path(__file__).parents[1]
    return [
        ms.__version__,
        version("mindformers"),
        sys.version,
        platform.machine(),
        sys.argv[0],
        {k: v for k, v in os.environ.items() if k.startswith("MS_") and k not in _MEETING},
        [file_sha256(p) for p in sorted(root.rglob("*.py"))],
    ]
