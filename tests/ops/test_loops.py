"""Other loops beside NPD: against sums by hand, limits that must hold, and the text."""

import math
from dataclasses import replace

import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan import compare_loops
from npd_ascend.ops.plan.against import against
from npd_ascend.ops.plan.devices import find_npu
from npd_ascend.ops.plan.flops import decode_flops, forward_flops, kv_bytes, weight_bytes
from npd_ascend.ops.plan.loops import LOOPS, PAPER_HOURS, Setting, batch_rollout, full_rollout, score, train
from npd_ascend.ops.plan.paces import INPUTS, Rates, decode_step
from npd_ascend.ops.plan.workload import Workload

CENTRAL = Rates.at("central")


@pytest.fixture
def s(shapes):
    return Setting(
        ModelSpec.from_folder(shapes["pangu1b"]),
        ModelSpec.from_folder(shapes["pangu7b"]),
        find_npu("910B2"),
        8,
        Workload(50_000, 100, 400),
        1.0,
        0,
        256,
    )


def test_a_decode_step_is_the_longest_of_three(s):
    spec, npu = s.student, s.npu
    assert decode_step(spec, npu, 1, 100, CENTRAL).seconds == pytest.approx(0.55e-3 * 26)  # 14.3 ms, as measured
    bound = decode_step(spec, npu, 512, 2000, CENTRAL).seconds
    assert bound == pytest.approx((weight_bytes(spec) + 512 * 2000 * kv_bytes(spec)) / (1.6e12 * 0.55))
    no_floor = replace(CENTRAL, launch_ms=0.0, bandwidth=1e9)
    assert decode_step(spec, npu, 64, 10, no_floor).seconds == pytest.approx(
        64 * decode_flops(spec, 10) / (353.9e12 * 0.5)
    )


def test_a_batch_waits_for_its_longest_answer(s):
    """At the launch floor every step costs the same, so the time is the longest answer's; found by a naive sum."""
    floor = replace(CENTRAL, launch_ms=1000.0, prefill=1e9)
    sigma = math.sqrt(math.log(1 + 0.6**2))
    for batch in (1, 8, 64):
        mean = math.log(400) - sigma**2 / 2
        low, high = 0.0, 1e6  # the length that one of batch + 1 answers exceeds
        for _ in range(200):
            middle = (low + high) / 2
            below = 0.5 * (1 + math.erf((math.log(middle) - mean) / sigma / math.sqrt(2)))
            low, high = (middle, high) if below < 1 - 1 / (batch + 1) else (low, middle)
        assert batch_rollout(s, batch, floor) == pytest.approx(low * 26, rel=1e-6)
    same = replace(floor, length_spread=1e-6)
    assert batch_rollout(s, 64, same) == pytest.approx(400 * 26, rel=1e-3)


def test_a_full_engine_is_steps_plus_a_drain(s):
    same = replace(CENTRAL, length_spread=1e-6, prefill=1e9)
    got = full_rollout(s, 8 * 256 * 3, same)
    step = decode_step(s.student, s.npu, 256, 100 + 200, same).seconds
    assert got == pytest.approx(3 * 400 * step, rel=0.02)


def test_scoring_and_training_by_hand(s):
    peak = 353.9e12
    want = (forward_flops(s.teacher, 10, 500, 4000) + forward_flops(s.teacher, 10, 400, 4000)) / (peak * 0.5) / 8
    assert score(s, s.teacher, 10, CENTRAL, unconditioned=True) == pytest.approx(want)
    passes = 3 * forward_flops(s.student, 10, 500, 4000)
    assert train(s, 10, CENTRAL, 0.5) == pytest.approx(2 * passes / (peak * 0.47) / 8)


def test_what_must_hold_between_loops(s):
    cost = {name: loop(s, CENTRAL) for name, loop in LOOPS.items()}
    assert cost["gkd"].rollout == pytest.approx(cost["on_policy"].rollout / 2)
    assert cost["gkd"].train == cost["on_policy"].train == cost["supkd"].train
    assert cost["npd"].train == cost["sft"].total
    # One step that holds all prompts, packed and with nothing to hand over, is NPD's rollout without a full engine.
    wide = replace(CENTRAL, step_prompts=s.work.prompts)
    assert LOOPS["on_policy"](s, wide).rollout == pytest.approx(
        full_rollout(replace(s, engine_batch=int(s.work.prompts)), s.work.prompts, wide)
    )
    two = LOOPS["npd"](replace(s, refreshes=1), CENTRAL)
    assert two.rollout == pytest.approx(2 * cost["npd"].rollout) and two.train == cost["npd"].train
    ten = replace(s, epochs=10.0)
    assert LOOPS["npd"](ten, CENTRAL).rollout == cost["npd"].rollout
    assert LOOPS["on_policy"](ten, CENTRAL).rollout == pytest.approx(10 * cost["on_policy"].rollout)
    assert LOOPS["npd"](replace(s, unconditioned=False), CENTRAL).score < cost["npd"].score
    assert LOOPS["npd"](replace(s, horizon=0.5), CENTRAL).total < 0.6 * cost["npd"].total


def test_text(s):
    text = against(s, ["gkd", "npd", "gkd", "distillm2"])
    lines = [line.split() for line in text.splitlines()]
    table = {line[0]: line for line in lines if line and line[0] in LOOPS}
    assert list(table) == ["npd", "gkd", "distillm2"] and "none of which is fitted" in text
    assert table["gkd"][7] == f"{LOOPS['gkd'](s, CENTRAL).total / LOOPS['npd'](s, CENTRAL).total:.2f}"
    assert f"{PAPER_HOURS['gkd']:g} h, x 4.42" in text
    assert all(any(line and line[0] == name for line in lines) for name in INPUTS)
    with pytest.raises(UserError, match="--against gdk: there is no such loop; did you mean gkd[?] known: distillm2, "):
        against(s, ["gdk"])


def test_of_a_configuration(paper):
    text = compare_loops(
        paper(train={"data_parallel": 8, "epochs": 1}),
        ["on_policy"],
        prompts=1000,
        prompt_tokens=100,
        answer_tokens=300,
    )
    assert "1,000 prompts of 100 tokens, answers of 300, 1 epochs, 0 refresh(es), 8 x 910B2" in text
