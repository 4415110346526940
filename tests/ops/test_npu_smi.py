"""``npu-smi info`` as users of A2 and A3 nodes have posted it."""

import pytest

from npd_ascend.ops.doctor.npu_smi import Chip, Occupant, parse


def test_a2(npu_smi):
    smi = parse(npu_smi("a2_busy"))
    assert smi.version == "25.2.0"
    assert [c.physical for c in smi.chips] == list(range(8))
    assert smi.chips[2] == Chip(2, 0, 2, "910B3", "OK", 41052, 65536)
    assert smi.processes == [Occupant(2, 0, 1333928, "", 37709)]


def test_a3_has_two_dies_a_card(npu_smi):
    smi = parse(npu_smi("a3"))
    assert [(c.npu, c.chip, c.physical) for c in smi.chips] == [(i // 2, i % 2, i) for i in range(16)]
    assert {c.name for c in smi.chips} == {"Ascend910"}
    assert [(p.npu, p.chip, p.pid) for p in smi.processes] == [(6, 0, 3085960), (6, 0, 3085961), (6, 1, 3085961)]


def test_a_sick_device(npu_smi):
    assert [c.health for c in parse(npu_smi("a2_alarm")).chips] == ["OK", "Alarm"]


@pytest.mark.parametrize("text", ["", "npu-smi: command not found", "|||\n| a | b |", "dcmi module initialize failed."])
def test_anything_else_is_nothing(text):
    smi = parse(text)
    assert (smi.version, smi.chips, smi.processes) == ("", [], [])
