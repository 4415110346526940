"""Estimates: tokens, FLOPs and hours against hand-written sums, and against the paper's own table."""

import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan import estimate, estimate_run, render
from npd_ascend.ops.plan.devices import GOOD, NPUS, PAPER, find_npu
from npd_ascend.ops.plan.flops import decode_flops, forward_flops, kv_bytes, matrix_parameters
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
        assert four.stage(stage).hours(PAPER) == pytest.approx(eight.stage(stage).hours(PAPER) * 2)
    # Rollouts and training are as wide as the configuration says, whatever there is.
    assert sixteen.stage("train").hours(PAPER) == pytest.approx(eight.stage("train").hours(PAPER))
    assert sixteen.stage("rollout").hours(PAPER) == pytest.approx(eight.stage("rollout").hours(PAPER))


def test_the_papers_table_19(paper):
    """1.2M prompts, 2.3k tokens a sample, 8 NPUs: rollout 300 h, annotation and IFD 18 + 5 h, training 42 h."""
    e = estimate(paper(), workload=PAPER_WORK)
    annotate = e.stage("annotate_teacher").hours(PAPER) + e.stage("annotate_student").hours(PAPER)
    for hours, printed in ((e.stage("rollout").hours(PAPER), 300), (annotate, 23), (e.stage("train").hours(PAPER), 42)):
        assert printed / 2 < hours < printed * 2
    assert e.longest.stage == "rollout" and "rollout bounds the run" in e.advice[0]
    # Another split into prompt and answer stays in the same range.
    other = estimate(paper(), workload=Workload(1.2e6, 800, 1500))
    assert 150 < other.stage("rollout").hours(PAPER) < 600 and 21 < other.stage("train").hours(PAPER) < 84


def test_no_pace_beats_the_limit(paper):
    e = estimate(paper(), workload=PAPER_WORK)
    for s in e.stages:
        assert s.limit / s.devices / 3600 < s.hours(GOOD) < s.hours(PAPER)
        assert s.flops / s.devices / NPUS["910B2"].flops <= s.limit / s.devices * 1.0001


def test_decoding_is_bound_by_bandwidth_until_the_batch_is_large(paper):
    few = estimate(paper(), workload=PAPER_WORK).stage("rollout")
    assert few.bound == "memory bandwidth"
    # Weights are read once a step, so twice the batch is nearly twice as fast while they weigh more than the cache.
    short = Workload(1e5, 16, 16)
    slow, fast = (
        estimate(paper(rollout={"workers": 8, "memory_fraction": 0.9, "max_num_seqs": n}), workload=short)
        for n in (4, 8)
    )
    assert slow.stage("rollout").limit / fast.stage("rollout").limit == pytest.approx(2, rel=0.1)


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


def test_given_statistics_need_no_file(paper):
    w = workload(paper(), prompts=10, prompt_tokens=5, answer_tokens=7)
    assert (w.prompts, w.prompt_tokens, w.answer_tokens) == (10, 5, 7)
    with pytest.raises(UserError, match="none.jsonl: no such file; or give --prompts"):
        estimate_run(paper())


def test_text_says_what_bounds_and_what_does_not_fit(paper):
    text = render(estimate(paper(), workload=PAPER_WORK))
    assert "rollout bounds the run" in text and "train does not fit" in text and "with train.recompute: true" in text
    assert "Table 19" in text and "910B2" in text
