"""Graphs of another process: found with one's own weights, never somebody else's, never damaged ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mindspore")

import mindspore as ms  # noqa: E402

from npd_ascend.models import compile_cache  # noqa: E402
from npd_ascend.models.compile_cache import Graphs  # noqa: E402
from npd_ascend.store.atomic import read_sealed  # noqa: E402
from npd_ascend.store.identity import digest, seals_hold  # noqa: E402

pytestmark = pytest.mark.mindspore
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from pathlib import Path
import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from npd_ascend.models import compile_cache
from npd_ascend.models.compile_cache import Graphs

class Net(nn.Cell):
    def __init__(self, value, power):
        super().__init__()
        self.w, self.power = Parameter(np.float32([value]), name="w"), power

    def construct(self, x):
        return ops.tanh(x * self.w) ** self.power

ms.set_context(mode=0)
folder, weight, out = Path(sys.argv[1]), float(sys.argv[2]), []
x = np.float32([0.1, 0.2, 0.3])
for order in sys.argv[3:]:  # power and length of the input
    power, length = map(int, order.split("x"))
    net = Net(weight, power)
    out.append([power, Graphs("test", folder, {"power": power})(net, ms.Tensor(x[:length])).asnumpy().tolist()])
print(json.dumps([out, compile_cache._Engine.of(folder).finds]))
"""
RANK = """
import json, sys
from pathlib import Path
import numpy as np
from mindspore import Tensor, nn, ops
from npd_ascend.config.job import Device
from npd_ascend.models.compile_cache import Graphs, _Engine
from npd_ascend.models.parallel.mesh import DeviceMesh

class Sum(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x * 1.0)

class Own(nn.Cell):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def construct(self, x):
        return x * self.factor

folder, out = map(Path, sys.argv[1:])
mesh = DeviceMesh(Device())
if not mesh.schedules:
    graphs = Graphs("test", folder, {})
    total = graphs(Sum(), Tensor(np.float32([mesh.rank + 1]))).asnumpy().tolist()
    own = graphs(Own(10.0 * (mesh.rank + 1)), Tensor(np.float32([1.0]))).asnumpy().tolist()
    result = {"sum": total, "kept": own, "finds": _Engine.of(folder).finds}
    out.with_name(f"{out.name}-{mesh.rank}.json").write_text(json.dumps(result))
"""


@pytest.fixture
def start(tmp_path):
    """(folder, weight, orders) -> a process that compiles and computes them one after the other."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def go(folder, weight, *orders):
        process = subprocess.Popen(
            [sys.executable, script, folder, str(weight), *orders],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        return process, weight

    return go


def finds(process, weight):
    """Checks what a process computed; whether it found all graphs."""
    out = process.communicate()[0]
    assert process.returncode == 0
    results, found = json.loads(out.splitlines()[-1])
    for power, values in results:
        want = np.tanh(np.float32([0.1, 0.2, 0.3])[: len(values)] * weight) ** power
        np.testing.assert_allclose(values, want, rtol=1e-5)
    return found


def kept(folder):
    """{folder of a graph: when it was written}; all of them sound, and nothing beside them."""
    found = {}
    for place in folder.iterdir():
        assert seals_hold(place, read_sealed(place / "seals.json")), place
        found[place] = (place / "graph.mindir").stat().st_mtime_ns
    return found


@pytest.mark.slow
def test_other_processes_find_the_graphs_and_use_them_with_their_own_weights(tmp_path, start):
    folder = tmp_path / "compiled"
    both = [start(folder, 2.0, "2x3", "3x3", "2x2"), start(folder, 2.0, "2x3", "3x3", "2x2")]  # at the same time
    assert not all([finds(*one) for one in both])  # on a busy machine one may come after the other
    made = kept(folder)
    assert len(made) == 3  # one a graph and shape
    assert finds(*start(folder, 3.0, "3x3", "2x2", "2x3"))  # in another order, with another weight
    assert kept(folder) == made
    next(iter(made)).joinpath("graph.mindir").write_bytes(b"garbage")
    assert not finds(*start(folder, 2.0, "2x3", "3x3", "4x3", "2x2"))
    assert len(kept(folder)) == 4 and len(set(made.items()) & set(kept(folder).items())) == 2  # one again, one more


class Compiler:
    """Stands in for MindSpore: looks for the graph of its number, or writes it."""

    def __init__(self, monkeypatch):
        self.root, self.number, self.fail, self.log, self.content = None, 0, False, [], b"graph"
        self.patch = monkeypatch
        monkeypatch.setattr(compile_cache.ms, "set_context", self.set_context)
        monkeypatch.delenv("MS_ROLE", raising=False)
        self.restart()

    def set_context(self, enable_compile_cache, compile_cache_path=None):
        self.root = Path(compile_cache_path) if enable_compile_cache else None

    def restart(self):
        """Another process."""
        self.number = 0
        self.patch.setattr(compile_cache._Engine, "_only", None)

    def compile(self, *inputs):
        if self.root is None:
            self.log.append("plain")
            return
        if self.fail:
            raise RuntimeError("cannot write")
        folder = self.root / "rank_0/graph_cache"
        graph = folder / f"compile_cache_{self.number}.mindir"
        self.number += 1
        self.log.append(graph.read_bytes() if graph.exists() else None)
        if not graph.exists():
            graph.write_bytes(self.content)
            (folder / "compile_dependency.hash").write_bytes(b"hash")


@pytest.fixture
def compiler(monkeypatch):
    return Compiler(monkeypatch)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "sources", "no seals", "seals cut", "of another", "file"])
def test_what_is_damaged_is_never_offered_and_made_again(tmp_path, compiler, damage):
    folder = tmp_path / "compiled"
    Graphs("test", folder, {}).compile(compiler)
    (place,) = kept(folder)
    graph, seals = place / "graph.mindir", place / "seals.json"
    if damage == "cut":
        graph.write_bytes(b"gra")
    elif damage == "flipped":
        graph.write_bytes(b"grapi")
    elif damage == "gone":
        graph.unlink()
    elif damage == "sources":
        (place / "compile_dependency.hash").write_bytes(b"")
    elif damage == "no seals":  # as if a kill had left the files without what commits them
        seals.unlink()
    elif damage == "seals cut":
        seals.write_bytes(seals.read_bytes()[:-5])
    elif damage == "of another":
        compiler.content = b"other"
        Graphs("test", folder, {"another": 1}).compile(compiler)
        (other,) = set(kept(folder)) - {place}
        graph.write_bytes((other / "graph.mindir").read_bytes())
        compiler.content = b"graph"
    else:
        graph.rename(tmp_path / "graph")
        seals.unlink()
        (place / "compile_dependency.hash").unlink()
        place.rmdir()
        place.write_text("")
    for found in (None, b"graph"):
        compiler.restart()
        compiler.log.clear()
        Graphs("test", folder, {}).compile(compiler)
        assert compiler.log == [found, "plain"]


def test_graphs_are_compiled_whatever_becomes_of_the_folder(tmp_path, compiler):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, None):  # no folder can be made there
        compiler.restart()
        Graphs("test", folder, {}).compile(compiler)
    assert compiler.log == ["plain", "plain"]
    compiler.fail = True
    compiler.restart()
    Graphs("test", tmp_path / "compiled", {}).compile(compiler)
    assert compiler.log == ["plain"] * 3 and not list((tmp_path / "compiled").iterdir())


@pytest.mark.slow
def test_ranks_find_their_own_graphs(tmp_path, under_msrun):
    """Two starts at different addresses: the second finds, rank by rank, what the first has made."""
    folder = tmp_path / "compiled"

    def start(name):
        under_msrun(2, RANK, folder, tmp_path / name)
        return [json.loads((tmp_path / f"{name}-{r}.json").read_text()) for r in (0, 1)]

    made, found = start("made"), start("found")
    if not all(r["finds"] for r in found):  # one was not kept, as may happen; it is made again
        found = start("again")
    assert [r["sum"] for r in made] == [r["sum"] for r in found] == [[3.0], [3.0]]  # 1 from rank 0, 2 from rank 1
    assert [r["kept"] for r in made] == [r["kept"] for r in found] == [[10.0], [20.0]]  # other graphs
    assert [r["finds"] for r in made] == [False] * 2 and [r["finds"] for r in found] == [True] * 2
    assert len(kept(folder)) == 4  # two a rank


def test_a_cell_is_compiled_once_for_a_form_and_every_difference_is_another_graph(tmp_path, compiler):
    folder = tmp_path / "compiled"
    graphs = Graphs("test", folder, {"a": 1})
    forms = [
        (ms.Tensor(np.zeros(2, np.float32)),),
        (ms.Tensor(np.zeros(3, np.float32)),),
        (ms.Tensor(np.zeros(2, np.int32)),),
        (ms.Tensor(np.zeros(2, np.float32)), None),
        (),
    ]
    for form in (*forms, *forms):
        graphs.compile(compiler, *form)
    assert compiler.log == [None, "plain"] * 5
    Graphs("test", folder, {"a": 2}).compile(compiler)
    Graphs("other", folder, {"a": 1}).compile(compiler)
    Graphs("other", folder, {"a": 1}).compile(type("Another", (Compiler,), {})(compiler.patch))
    assert len(kept(folder)) == 8


def test_the_identity_follows_code_versions_environment_and_script(monkeypatch):
    def now():
        compile_cache._surroundings.cache_clear()
        return digest(compile_cache._surroundings())

    before = now()
    assert now() == before
    try:
        for change in (
            lambda m: m.setattr(compile_cache.ms, "__version__", "0"),
            lambda m: m.setattr(compile_cache, "version", lambda name: "0"),
            lambda m: m.setattr(compile_cache, "file_sha256", lambda path: "0"),
            lambda m: m.setattr(sys, "argv", ["other"]),
            lambda m: m.setenv("MS_DEV_JIT_SYNTAX_LEVEL", "0"),
        ):
            with monkeypatch.context() as m:
                change(m)
                assert now() != before
    finally:
        compile_cache._surroundings.cache_clear()
