"""What is read out of the compiler's output, carried on to other depths, and said of it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from npd_ascend.config import load_config
from npd_ascend.errors import UserError
from npd_ascend.ops.ascend import standins
from npd_ascend.ops.ascend.check import compile_deep
from npd_ascend.ops.ascend.depths import depths, extrapolate
from npd_ascend.ops.ascend.graphs import distinct_ranks, graphs
from npd_ascend.ops.ascend.output import Collective, Phase, read_collectives, read_log
from npd_ascend.ops.ascend.run import Compiled
from npd_ascend.ops.ascend.verdict import MARGIN, as_json, judge

HEAD = "[INFO] DEVICE(20532,7fb06da7ec40,python):2026-11-29-17:48:18.105.134 [mindspore/ccsrc/plugin/"
KERNEL = (
    HEAD + "ascend/kernel_executor/ascend_kernel_executor.cc:175] GenerateKernelMod] kernel opname:{}, kernel type:{}"
)
MOVED = (
    HEAD + "cpu/cpu_device_context.cc:727] RebuildKernelSelectBackoffOp] Backoff and rebuild kernel on CPU "
    "{} for node: recompute_Default/forward-PackedLoss/net-CausalLM/core_attention-ScaledFlash/{}-op2, node "
    "attr: input[Tensor Int64 DefaultFormat,] output[Tuple Int64 DefaultFormat"
)
TOLD = HEAD + "ascend/kernel_executor/kernel_select_ascend.cc:750] CollectOpSelectedType] TopK select aclop kernel"


def log(*lines):
    return [f"{line}\n" for line in lines]


def test_kernels_by_phase_and_kind():
    found = read_log(
        log(
            KERNEL.format("MatMul", "opapi_kernel"),
            "npd-phase: micro-batch",
            KERNEL.format("MatMul", "opapi_kernel"),
            TOLD,
            KERNEL.format("TopK", "acl_kernel"),
            KERNEL.format("Reshape", "rt_kernel"),
            MOVED.format("successfully", "TensorToTuple"),
            MOVED.format("successfully", "RealTupleGetItem"),
            "npd-phase: step",
            KERNEL.format("MatMul", "opapi_kernel"),
            KERNEL.format("MatMul", "opapi_kernel"),
            KERNEL.format("AllReduce", "hccl_kernel"),
            KERNEL.format("Unique", "aicpu_kernel"),
            MOVED.format("successfully", "Svd"),
            MOVED.format("failed", "Eig"),
        )
    )
    assert found["micro-batch"].kernels == {
        "aclnn": {"MatMul": 1},
        "acl": {"TopK": 1},
        "runtime": {"Reshape": 1},
        "host": {"TensorToTuple": 1, "RealTupleGetItem": 1},
    }
    step = found["step"]
    assert step.kernels == {
        "aclnn": {"MatMul": 2},
        "hccl": {"AllReduce": 1},
        "aicpu": {"Unique": 1},
        "none": {"Svd": 1, "Eig": 1},
    }
    assert (step.count("none"), step.count("acl")) == (2, 0)


def test_a_kind_that_is_not_known_counts_as_none():
    assert read_log(log("npd-phase: a", KERNEL.format("X", "new_kernel")))["a"].kernels == {"none": {"X": 1}}


ROWS = """index,group,comm_rank,primitive,src_rank,dest_rank,root_rank,input_shape,input_type,output_shape,output_type,\
input_size,output_size
"19","npd_0_1_2","0 1","AllReduce","","","","(1, 1024, 256)","Float32","(1, 1024, 256)","Float32","1048576","1048576"
"65","npd_0_2_2","0 2","AllToAll","","","","(2, 1024, 192)","BFloat16","(2, 1024, 192)","BFloat16","786432","786432"
"90","npd_0_1_2","0 1","AllReduce","","","","(1024, 1, 256)","Float32","(1024, 1, 256)","Float32","1048576","1048576"
"91","npd_0_2_4","0 2 4 6","AllGather","","","","(3)","Float32","(3)","Float32","12","12"
"""


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_collectives_of_each_phase(tmp_path, order):
    """Whichever graph was compiled first, and without those of a graph that is compiled for its memory."""
    (tmp_path / "rank_0/execute_order").mkdir(parents=True)
    (tmp_path / "rank_0/execute_order/comm_execute_order.csv").write_text(ROWS)
    hccl = {"a": ["AllReduce", "AllToAll", "AllReduce"], "b": ["AllGather"], "-": ["AllReduce"]}
    phases = read_log(
        log(
            *[
                line
                for name in (*order, "-")
                for line in (f"npd-phase: {name}", *(KERNEL.format(kind, "hccl_kernel") for kind in hccl[name]))
            ]
        )
    )
    read_collectives(tmp_path, phases)
    assert phases["a"].collectives == [Collective("AllReduce", 2, 1048576, 2), Collective("AllToAll", 2, 786432, 1)]
    assert phases["b"].collectives == [Collective("AllGather", 4, 12, 1)]
    assert not phases["-"].collectives
    del phases["b"]
    with pytest.raises(ValueError, match="4 collectives in the order of execution, in the log {'a': {'AllReduce': 2"):
        read_collectives(tmp_path, phases)


def phase(layers, bucket):
    return Phase(
        {"aclnn": Counter({"MatMul": 3 + 4 * layers, "Exp": 1})},
        [Collective("AllReduce", 2, 512, 2 * layers)] + [Collective("AllReduce", 8, bucket, 2)] * bool(bucket),
        10**9 + layers * 10**7,
    )


def test_depth_is_a_straight_line():
    found = extrapolate({"a": phase(2, 100)}, {"a": phase(5, 160)}, (2, 5), 26)["a"]
    assert found.kernels == {"aclnn": {"MatMul": 107, "Exp": 1}}
    assert found.memory == 10**9 + 26 * 10**7
    assert found.collectives == [Collective("AllReduce", 2, 512, 52), Collective("AllReduce", 8, 580, 2)]


@pytest.fixture
def pangu():
    """Graphs of the paper's run; its models are nowhere."""
    return {g.stage: g for g in graphs(load_config(Path("configs/openpangu_1b_from_7b.yaml")))}


def test_depths_that_a_host_can_hold(pangu):
    train = pangu["train"]
    assert depths(train, 1e12) == [26] and depths(train, 1e9) == [1, 2]
    shallow, deep = depths(train, 9e9)
    assert shallow == 2 < deep < 26
    assert depths(pangu["annotate teacher"], 9e9) == [34]


def test_graphs_of_a_configuration(pangu):
    assert list(pangu) == ["annotate teacher", "annotate student", "train"]
    assert all(g.built_in for g in pangu.values())
    train = pangu["train"]
    assert (train.size, train.row_length, train.settings["recompute"], train.settings["k"]) == (8, 32768, True, 10)
    assert train.spec.tie_embeddings and train.spec.parameters == 1_155_912_192
    assert pangu["annotate teacher"].settings["k"] == 10 and pangu["annotate student"].settings["k"] == 0
    assert train.cut_to(3).layers == 3 and train.layers == 26 and train.key != train.cut_to(3).key


def test_ranks_that_see_padding_compile_for_themselves():
    """Four slices of 25: 100 ids fill all of them, 80 leave the last one short, 40 the second."""
    assert distinct_ranks(4, 25, 100) == [0] and distinct_ranks(1, 100, 80) == [0]
    assert distinct_ranks(4, 25, 80) == [0, 3] and distinct_ranks(4, 25, 40) == [0, 1]
    cut = [g for g in graphs(load_config(Path("configs/7b_from_72b.yaml"))) if g.stage == "annotate teacher"]
    assert [(g.rank, g.size) for g in cut] == [(0, 4), (3, 4)]


def test_a_model_that_is_nowhere_and_not_known(tmp_path):
    with pytest.raises(UserError, match="not one of the checkpoints whose shape is known .*openPangu-Embedded-1B"):
        graphs(load_config(Path("configs/openpangu_1b_from_7b.yaml"), [f"models.student={tmp_path / 'mine'}"]))


def made(graph, memory=5 * 2**30, **kernels):
    counts = {kind: Counter(ops) for kind, ops in {"aclnn": {"MatMul": 7}, **kernels}.items()}
    return Compiled(graph, [graph.layers], {"micro-batch": Phase(counts, [], memory)})


def levels(c):
    return [f.level for f in judge(c)]


def test_verdict(pangu):
    g = pangu["train"]
    assert levels(made(g)) == ["ok", "ok"]
    assert levels(made(g, acl={"TopK": 1}, host={"TensorToTuple": 3})) == ["ok", "ok"]
    assert levels(made(g, host={"TensorToTuple": 2, "RealTupleGetItem": 1024})) == ["ok", "ok", "warning"]
    for kind in ("none", "aicpu"):
        *_, last = judge(made(g, **{kind: {"Svd": 2}}))
        assert last.level == "error" and "2 Svd" in last.what
    limit = 58 * 2**30
    assert levels(made(g, limit - MARGIN)) == ["ok", "ok"]
    *_, last = judge(made(g, limit - MARGIN + 2**20))
    assert last.level == "error" and "lower bound" in last.what and "58.0 GB" in last.what


def test_what_does_not_compile(pangu):
    (f,) = judge(Compiled(pangu["train"], [26], {}, failed="TypeError: no such kernel"))
    assert f.level == "error" and "TypeError: no such kernel" in f.what and "rank 0 of 8" in f.what
    assert "report" in f.remedy
    (f,) = judge(Compiled(pangu["train"], [26], {}, failed="row_length 512: too short", refused=True))
    assert f.level == "error" and f.what.endswith("row_length 512: too short") and "--set" in f.remedy


def test_json_and_text_say_when_they_extrapolate(pangu):
    """And a graph is compiled at two depths where one host cannot hold it."""
    asked = []

    def compile_at(graph, python, cann, tell):
        asked.append(graph.layers)
        return Compiled(graph, [graph.layers], {"micro-batch": phase(graph.layers, 0)}, seconds=1.0, host=graph.layers)

    c = compile_deep(pangu["train"], Path("python"), None, 9e9, build=compile_at)
    assert asked == depths(pangu["train"], 9e9) and c.extrapolated and c.memory == 10**9 + 26 * 10**7
    found = json.loads(json.dumps(as_json(c)))
    assert found["extrapolated"] and found["compiled_layers"] == asked and found["layers"] == 26
    assert found["phases"]["micro-batch"]["kernels"]["aclnn"]["MatMul"] == 107
    assert f"extrapolated from {asked[0]} and {asked[1]}" in judge(c)[0].what
    whole = compile_deep(pangu["train"], Path("python"), None, 1e12, build=compile_at)
    assert not whole.extrapolated and whole.memory == c.memory


def test_without_a_compiler(tmp_path, monkeypatch):
    """One line, and nothing half-made."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="gcc, nm, strings .* install gcc and binutils, or CANN"):
        standins.build(tmp_path, "2.9.0", tmp_path / "cann")
    assert not list(tmp_path.iterdir())


def test_a_mindspore_without_the_plugin(tmp_path):
    with pytest.raises(UserError, match="built without the Ascend plugin"):
        standins.build(tmp_path, "2.9.0", tmp_path / "cann")
