"""Which devices serve which stage, and which wishes are refused."""

from __future__ import annotations

import os

import pytest

from npd_ascend.config.load import parse_config
from npd_ascend.config.schema import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.nodes import Nodes, seconds
from npd_ascend.ops.placement import Placement

EIGHT = range(8)


def config(**sections) -> Config:
    tree = {"run": {"dir": "r"}, "models": {"teacher": "t", "student": "s"}, "data": {"prompts": ["p"]}}
    return parse_config({**tree, **sections}, "test")


def split(one: int, other: int, **sections) -> Config:
    return config(device={"placement": {"rollout": one, "train": other}}, **sections)


def test_shared_uses_all_devices_in_turn():
    p = Placement.of(config(), "ascend", EIGHT)
    assert p.rollout == p.train == tuple(EIGHT) and not p.split
    assert p.collide("rollout", "train") and p.collide("rollout", "rollout") and p.cores("train") is None
    assert p.environment("train", 0, 2) == {"ASCEND_RT_VISIBLE_DEVICES": "0,1"}
    assert "in turn" in p.describe()
    assert Placement.of(config(device={"count": 4}), "ascend", EIGHT).train == (0, 1, 2, 3)


def test_split_gives_each_side_its_own():
    p = Placement.of(split(6, 2), "ascend", [0, 1, 2, 3, 8, 9, 10, 11])
    assert (p.rollout, p.train) == ((0, 1, 2, 3, 8, 9), (10, 11))
    assert p.collide("rollout", "rollout") and not p.collide("rollout", "train")
    assert p.environment("rollout", 4, 2) == {"ASCEND_RT_VISIBLE_DEVICES": "8,9"}
    assert p.environment("train") == {"ASCEND_RT_VISIBLE_DEVICES": "10,11"}
    assert "10, 11 for training" in p.describe()


def test_cores_stand_in_for_devices_on_cpu():
    p = Placement.of(split(1, 1), "cpu", [4, 5])
    assert (p.cores("rollout"), p.cores("train")) == ((4,), (5,)) and not p.collide("rollout", "train")
    assert p.environment("train") == {"OMP_NUM_THREADS": "1"}
    shared = Placement.of(config(), "cpu")
    assert len(shared.train) == len(os.sched_getaffinity(0)) and shared.environment("train") == {}
    shared.check(config(rollout={"workers": 64}, sync={"lead": 1.0}))  # processes share the cores


@pytest.mark.parametrize("given,why", [
    (split(6, 1), "together 7, but the node has 8"), (config(device={"count": 9}), "device.count is 9 but 8"),
    (split(4, 4, rollout={"workers": 5}), r"rollout.workers 5 needs 5 devices but there are 4 .*placement.rollout"),
    (split(6, 2, rollout={"tensor_parallel": 4}), "tensor_parallel 4 does not divide the 6 devices"),
    (config(rollout={"workers": 5, "tensor_parallel": 2}), "workers 5 x tensor_parallel 2 needs 10 devices"),
    (config(annotate={"workers": 9}), "annotate.workers 9 needs 9 devices but there are 8"),
    (split(6, 2, train={"data_parallel": 4}), "train.data_parallel 4 needs 4 devices but there are 2"),
    (config(train={"data_parallel": 2, "context_parallel": 3, "tensor_parallel": 2, "global_batch": 64},
            pack={"row_length": 96}), "data_parallel 2 x context_parallel 3 x tensor_parallel 2 needs 12 devices"),
    (config(sync={"lead": 0.5}), "give each side its own"),
])  # fmt: skip
def test_refusals(given, why):
    with pytest.raises(UserError, match=why):
        Placement.of(given, "ascend", EIGHT).check(given)


def test_several_nodes():
    c = split(
        6,
        2,
        rollout={"workers": 12},
        annotate={"workers": 12},
        train={"data_parallel": 4, "global_batch": 64},
        sync={"lead": 0.5},
    )
    p = Placement.of(c, "ascend", EIGHT)
    p.check(c, 2)
    with pytest.raises(UserError, match="rollout.workers 12 needs 12"):
        p.check(c)
    odd = config(train={"data_parallel": 3, "global_batch": 63})
    with pytest.raises(UserError, match="which 2 nodes cannot share evenly"):
        Placement.of(odd, "ascend", EIGHT).check(odd, 2)


def test_nodes_of_the_environment():
    assert Nodes.from_environment({}) == Nodes.from_environment({"NODES": "1", "MASTER_PORT": "x"}) == Nodes()
    env = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9000"}
    assert Nodes.from_environment(env) == Nodes(2, 1, "10.0.0.1", 9000, "10.0.0.1:6379")
    for change, why in (
        ({"NODES": "two"}, "NODES is 'two'"),
        ({"NODE_RANK": "2"}, "not below"),
        ({"NODE_RANK": ""}, "NODE_RANK is ''"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "0"}, "expected a port"),
        ({"NPD_RAY_PORT": "-1"}, "NPD_RAY_PORT"),
    ):
        with pytest.raises(UserError, match=why):
            Nodes.from_environment({**env, **change})
    assert seconds("X", 2.0, {}) == 2.0 and seconds("X", 2.0, {"X": "0.5"}) == 0.5
    with pytest.raises(UserError, match="X is 'soon'"):
        seconds("X", 2.0, {"X": "soon"})
