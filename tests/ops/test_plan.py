"""Estimates: tokens, FLOPs and hours against hand-written sums, and against the paper's own table."""

import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan import estimate, estimate_run, render
from npd_ascend.ops.plan.devices import CELLS, NPUS, find_npu
from npd_ascend.ops.plan.flops import decode_flops, forward_flops, kv_bytes, matrix_parameters
from npd_ascend.ops.plan.paces import ENDS, INPUTS, Rates, decode_step
from npd_ascend.ops.plan.workload import Workload, workload

PAPER_WORK = Workload(1.2e6, 300, 2000)


def test_flops_of_a_forward_pass_counted_layer_by_layer(shapes):
    spec = ModelSpec.from_folder(shapes["small"])
    h, q, kv, f, length = 64, 64, 32, 128, 10
    naive = 0
    for _ in range(2):
        for rows, columns in ((h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)):
            naive += 2 * length * rows * columns
        for _head in range(2):
            for t in range(length):
                naive += 2 * 2 * (t + 0.5) * 32  # scores and mixing over what a position sees, half of its own
    naive += 2 * 4 * h * 1000
    assert forward_flops(spec, 1, length, 4) == pytest.approx(naive)
    assert matrix_parameters(spec) + 1000 * h * 2 == pytest.approx(spec.parameters, rel=0.01)
    # Token by token costs what the pass costs.
    tokens = sum(decode_flops(spec, t + 0.5) for t in range(length))
    assert tokens == pytest.approx(forward_flops(spec, 1, length, length))


def test_kv_cache_of_the_published_1b(shapes):
    # 26 layers, 6 KV heads of 128, keys and values, two bytes.
    assert kv_bytes(ModelSpec.from_folder(shapes["pangu1b"])) == 26 * 2 * 6 * 128 * 2


def test_tokens_of_each_stage(config):
    e = estimate(config())
    # 100 prompts of a 73-byte line / 3.5 = 20.9 tokens, answers of 50, two generations, ten epochs.
    prompt = 73 / 3.5
    assert [s.stage for s in e.stages] == ["rollout", "annotate_teacher", "annotate_student", "train"]
    assert e.stage("rollout").tokens == pytest.approx(2 * 100 * 50)
    assert e.stage("annotate_teacher").tokens == pytest.approx(2 * 100 * (prompt + 2 * 50))
    assert e.stage("train").tokens == pytest.approx(10 * 100 * (prompt + 50))
    # k = 10 ids of 10 bits and steps of 7, 22 bits beside: 24 bytes a response token.
    assert e.stage("annotate_teacher").disk == 2 * 100 * 50 * 24


def test_training_takes_three_forward_passes(config):
    e = estimate(config(train={"epochs": 2}), workload=Workload(7, 30, 20))
    spec = ModelSpec.from_folder(config().models.student)
    assert e.stage("train").flops == pytest.approx(3 * 2 * forward_flops(spec, 7, 50, 7 * 20))


def test_sft_needs_no_teacher(config):
    e = estimate(config(train={"loss": {"kd_weight": 0}}, select={"filter": "none"}))
    assert [s.stage for s in e.stages] == ["rollout", "train"]


def test_reference_answers_need_no_rollout(config, tmp_path):
    data = {"prompts": [str(tmp_path / "p.jsonl")], "response_field": "response"}
    e = estimate(config(rollout={"source": "reference"}, sync={"refreshes": 0}, data=data))
    assert [s.stage for s in e.stages] == ["annotate_teacher", "annotate_student", "train"]


def test_student_nll_from_the_rollout_halves_its_pass(config):
    both = estimate(config()).stage("annotate_student").tokens
    half = estimate(config(annotate={"student_nll": "rollout"})).stage("annotate_student").tokens
    assert half == pytest.approx(2 * 100 * 50) and half < both


def test_more_paths_and_devices(config, paper):
    one, three = estimate(config()), estimate(config(rollout={"max_new_tokens": 100, "samples": 2}))
    assert three.stage("rollout").tokens == pytest.approx(3 * one.stage("rollout").tokens)
    four, eight, sixteen = (estimate(paper(), devices=n, workload=PAPER_WORK) for n in (4, 8, 16))
    for stage in ("rollout", "annotate_teacher", "train"):
        assert four.stage(stage).hours() == pytest.approx(eight.stage(stage).hours() * 2)
    # Rollouts and training are as wide as the configuration says, whatever there is.
    assert sixteen.stage("train").hours() == pytest.approx(eight.stage("train").hours())
    assert sixteen.stage("rollout").hours() == pytest.approx(eight.stage("rollout").hours())


def test_the_papers_table_19(paper):
    """1.2M prompts, 2.3k tokens a sample, 8 NPUs: rollout 300 h, annotation and IFD 18 + 5 h, training 42 h. Scoring
    and training lie within the range of measured paces or next to it; rollout took many times what engines take.
    """
    e = estimate(paper(), workload=PAPER_WORK)
    annotate = [e.stage("annotate_teacher").hours(end) + e.stage("annotate_student").hours(end) for end in ENDS]
    train = [e.stage("train").hours(end) for end in ENDS]
    assert annotate[0] < annotate[1] < annotate[2] < 23 < 1.2 * annotate[2]
    assert train[0] < 42 < train[2]
    assert 300 > 10 * e.stage("rollout").hours("slow")
    # What it would take: some ten sequences at a time, in eager mode.
    few = estimate(paper(rollout={"workers": 8, "memory_fraction": 0.9, "max_num_seqs": 10}), workload=PAPER_WORK)
    assert few.stage("rollout").hours("slow") == pytest.approx(300, rel=0.2)


def test_the_limit_bounds_every_end(paper):
    e = estimate(paper(), workload=PAPER_WORK)
    for s in e.stages:
        assert s.hours("limit") < s.hours("fast") <= s.hours() <= s.hours("slow")
        assert s.flops / s.devices / NPUS["910B2"].flops <= s.hours("limit") * 3600 * 1.0001
    assert e.hours() == pytest.approx(sum(s.hours() for s in e.stages))


def test_a_decode_step_by_hand(shapes):
    """The published steps of the 1B are met at batch 1 to 8; four devices that share a step take four device steps."""
    spec, npu = ModelSpec.from_folder(shapes["pangu1b"]), find_npu("910B2")
    central, slow = Rates.at("central"), Rates.at("slow")
    for batch in (1, 8):
        assert decode_step(spec, npu, batch, 500, central).seconds == pytest.approx(14.3e-3, rel=0.01)
        assert decode_step(spec, npu, batch, 500, slow).seconds == pytest.approx(30.6e-3, rel=0.01)
    step = decode_step(spec, npu, 256, 2000, central)
    assert step.moved == pytest.approx((2 * spec.parameters + 256 * 2000 * kv_bytes(spec)) / (1.6e12 * 0.55))
    assert step.seconds == step.moved and step.bound == "memory bandwidth"
    four = decode_step(spec, npu, 1, 500, central, tensor_parallel=4)
    assert four.launch == pytest.approx(4 * 14.3e-3, rel=0.01) and "launch" in four.bound


def test_rollout_hours_by_hand(paper):
    e = estimate(paper(), workload=PAPER_WORK)
    r, npu = e.stage("rollout"), NPUS["910B2"]
    spec = ModelSpec.from_folder(paper().models.student)
    steps = 1.2e6 * 2000 / 128  # of engines of 128 sequences
    step = decode_step(spec, npu, 128, 300 + 1000, Rates.at("central")).seconds
    prefill = forward_flops(spec, 1.2e6, 300, 1.2e6) / (npu.flops * 0.5)
    assert r.hours() == pytest.approx((steps * step + prefill) / 8 / 3600)


def test_decoding_is_bound_by_bandwidth_until_the_batch_is_large(paper):
    few = estimate(paper(), workload=PAPER_WORK).stage("rollout")
    assert few.bound == "memory bandwidth"
    # Weights are read once a step, so twice the batch is nearly twice as fast while they weigh more than the cache.
    short = Workload(1e5, 16, 16)
    fewer, more = (
        estimate(paper(rollout={"workers": 8, "memory_fraction": 0.9, "max_num_seqs": n}), workload=short)
        for n in (4, 8)
    )
    assert fewer.stage("rollout").hours("limit") / more.stage("rollout").hours("limit") == pytest.approx(2, rel=0.1)


def test_split_devices(config):
    split = config(
        rollout={"workers": 6, "max_new_tokens": 100},
        annotate={"row_length": 128},
        train={"data_parallel": 2, "global_batch": 8},
        device={"placement": {"rollout": 6, "train": 2}},
    )
    e = estimate(split)
    assert {s.stage: s.devices for s in e.stages} == {
        "rollout": 6,
        "annotate_teacher": 6,
        "annotate_student": 6,
        "train": 2,
    }
    assert "6 devices answer and annotate, 2 train" in render(e)


def test_devices():
    assert find_npu("Ascend910B3").name == "910B3" and find_npu("910B4-1").name == "910B4"
    assert find_npu("Ascend910").node == 16
    with pytest.raises(UserError, match="910B2"):
        find_npu("H100")


def test_every_figure_has_a_source_and_a_range():
    for name, cells in CELLS.items():
        assert set(cells) == {"flops", "memory", "bandwidth"}, name
        assert all(c.low <= c.central <= c.high and c.source for c in cells.values()), name
    for name, i in INPUTS.items():
        assert (i.slow <= i.central <= i.fast or i.slow >= i.central >= i.fast) and i.source, name
    # Cores x 16 x 16 x 16 multiply-adds x clock.
    peaks = {"910B2": 24 * 8192 * 1.8e9, "910B3": 20 * 8192 * 1.8e9, "910B4": 20 * 8192 * 1.5e9}
    assert all(NPUS[n].flops == pytest.approx(x, rel=1e-3) for n, x in peaks.items())
    assert find_npu("910B3", "high").flops == 313e12 and find_npu("910B3", "low").memory == 61 * 2**30


def test_given_statistics_need_no_file(paper):
    w = workload(paper(), prompts=10, prompt_tokens=5, answer_tokens=7)
    assert (w.prompts, w.prompt_tokens, w.answer_tokens) == (10, 5, 7)
    with pytest.raises(UserError, match="none.jsonl: no such file$"):
        workload(paper())
    assumed = estimate_run(paper(), device="910B2")  # a plan goes on without them, and says so
    assert (assumed.work.prompts, assumed.work.prompt_tokens) == (1000, 300)
    assert "none.jsonl: no such file: 1,000 prompts of 300 tokens assumed" in render(assumed)


def test_text_says_what_bounds_and_what_does_not_fit(paper):
    text = render(estimate(paper(), workload=PAPER_WORK))
    assert "train bounds the run" in text and "train does not fit" in text and "with train.recompute: true" in text
    for name in ("launch_ms", "bandwidth", "prefill", "train"):
        line = next(x for x in text.splitlines() if INPUTS[name].what in x)
        assert INPUTS[name].source in line and f" {INPUTS[name].settled_by} " in line
    assert "910B2: peak in bf16, TFLOPS" in text and max(map(len, text.splitlines())) < 240
