"""Names, parameters, what a loss reads, and refusals."""

import pytest
from pydantic import ValidationError

from npd_ascend.config.schema import LossConfig
from npd_ascend.errors import UserError
from npd_ascend.objectives.inputs import LossInputs, ordered
from npd_ascend.objectives.registry import (
    TERMS,
    TOKEN_WEIGHTS,
    Term,
    asked,
    find_token_weight,
    input_names,
    reported,
    summands,
)


def test_names():
    of_models = {"cross_entropy", "forward_kl", "jsd", "reverse_kl", "skew_kl", "skew_reverse_kl"}
    of_policy = {"cispo", "dppo", "drift", "icepop", "kl_sampled", "ppo_clip", "reinforce", "tis"}
    assert set(TERMS.names()) == of_models | of_policy
    assert TOKEN_WEIGHTS.names() == ["none", "position_decay", "surprisal_gate", "teacher_confidence"]
    for registry in (TERMS, TOKEN_WEIGHTS):
        assert {name: entry.name for name, entry in registry.all().items()} == {n: n for n in registry.names()}


def of(**settings):
    return [(s.term.name, pytest.approx(s.scale), s.parameter) for s in summands(LossConfig(**settings))]


def test_default_is_the_papers_sum():
    assert of() == [("cross_entropy", 0.1, 0), ("forward_kl", 0.9, 0)]


def test_parameter_after_the_name():
    assert of(divergence="skew_kl", kd_weight=1)[1] == ("skew_kl", 1, 0.1)
    assert of(divergence="skew_kl:0.3", kd_weight=1)[1] == ("skew_kl", 1, 0.3)


def test_several():
    both = of(divergence="skew_kl:0.2 + skew_reverse_kl", topk_norm="both", kd_weight=0.25)
    assert both == [("cross_entropy", 0.75, 0), ("skew_kl", 0.25, 0.2), ("skew_reverse_kl", 0.25, 0.1)]
    with pytest.raises(UserError, match="no loss term"):
        of(divergence="skew_kl+")


def test_weighted_sum():
    """Cross-entropy comes first, for the columns of the weights; what has weight 0 is left out."""
    got = of(terms={"jsd:0.2": 2, "forward_kl": -0.5, "cross_entropy": 0.3, "reverse_kl": 0}, topk_norm="tail")
    assert got == [("cross_entropy", 0.3, 0), ("jsd", 2, 0.2), ("forward_kl", -0.5, 0)]
    assert of(terms={"forward_kl": 1}) == [("cross_entropy", 0, 0), ("forward_kl", 1, 0)]
    assert of(ce_labels="none")[0] == ("cross_entropy", 0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"terms": {"forward_kl": 1}, "kd_weight": 0.5},
        {"terms": {"forward_kl": 1}, "divergence": "jsd"},
        {"terms": {"cross_entropy": 1}, "ce_labels": "none"},
        {"terms": {"forward_kl": float("nan")}},
    ],
)
def test_one_form_at_a_time(settings):
    with pytest.raises(ValidationError):
        LossConfig(**settings)


def test_settings_survive_the_job_file():
    loss = LossConfig(terms={"forward_kl": 0.5, "cross_entropy": 0.5})
    assert LossConfig.model_validate_json(loss.model_dump_json()) == loss


@pytest.mark.parametrize("text", ["jsd:0", "jsd:1", "jsd:x", "jsd:nan", "jsd:-1"])
def test_bad_parameter(text):
    with pytest.raises(UserError, match="between 0 and 1"):
        of(divergence=text, topk_norm="tail")


def test_a_parameter_where_there_is_none():
    with pytest.raises(UserError, match="forward_kl takes no parameter"):
        of(divergence="forward_kl:0.3")


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="train.loss.divergence.*did you mean forward_kl"):
        of(divergence="forwardkl")
    with pytest.raises(UserError, match="train.loss.terms.*did you mean forward_kl"):
        of(terms={"forwardkl": 1})
    with pytest.raises(UserError, match="did you mean position_decay"):
        find_token_weight(LossConfig(token_weight="position"))


def test_a_divergence_looks_at_the_teacher():
    with pytest.raises(UserError, match="train.loss.terms"):
        of(divergence="cross_entropy")


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_reverse_kl"])
@pytest.mark.parametrize("norm", ["teacher", "raw"])
def test_biased_combinations_are_refused(name, norm):
    with pytest.raises(UserError, match="tail or both"):
        of(divergence=name, topk_norm=norm)


def test_arguments_say_what_is_read():
    def term(label_logprobs, rollout_logprobs, advantages):
        return -advantages * (label_logprobs - rollout_logprobs)

    assert Term.of(term).reads == ("label_logprobs", "rollout_logprobs", "advantages")
    with pytest.raises(UserError, match="there is no input 'entropy'"):
        Term.of(lambda label_logprobs, entropy: label_logprobs, "mine")


@pytest.mark.parametrize(
    "settings,read",
    [
        ({"kd_weight": 0}, set()),
        ({}, {"teacher_ids", "teacher_logprobs"}),
        ({"divergence": "jsd", "topk_norm": "tail"}, {"teacher_ids", "teacher_logprobs", "parameters"}),
        ({"terms": {"cross_entropy": 1, "forward_kl": 0}}, set()),
        ({"terms": {"policy_terms:reinforce": 1}}, {"advantages"}),
        ({"terms": {"policy_terms:clipped": 1}}, {"advantages", "rollout_logprobs"}),
    ],
)
def test_only_what_is_asked_for(settings, read, policy_terms):
    loss = LossConfig(**settings)
    names = input_names(summands(loss))
    assert set(names) == {"labels", "weights"} | read and names == ordered(names)
    assert asked(loss) == set(names)
    assert asked(loss.model_copy(update={"token_weight": "surprisal_gate"})) == {*names, "rollout_logprobs"}


def test_constants_follow_the_name():
    def constants(text):
        return summands(LossConfig(terms={text: 1}))[1].constants

    assert constants("ppo_clip") == (0.2, 0.28) and constants("ppo_clip:0.1") == (0.1, 0.28)
    assert constants("ppo_clip:0.1:0.5") == (0.1, 0.5) and constants("tis:3") == (3.0,)
    for text in ("ppo_clip:a", "ppo_clip:0.1:0.2:0.3", "tis:-1", "icepop:nan:2", "dppo:inf"):
        with pytest.raises(UserError, match="numbers from 0 on with ':' between them"):
            constants(text)
    with pytest.raises(UserError, match="takes no parameter"):
        constants("reinforce:1")


def test_what_is_watched_is_there_once_and_weighs_nothing():
    found = summands(LossConfig(terms={"ppo_clip:0.1:0.3": 1, "drift": 0.001}))
    assert [s.reported for s in found] == ["ce", "term_ppo_clip", "term_drift", "policy_k3", "policy_gap",
                                           "policy_clip_share"]  # fmt: skip
    assert [s.scale for s in found[3:]] == [0] * 3 and found[-1].constants == (0.1, 0.3)


def test_means_go_together():
    with pytest.raises(ValueError, match="mean_length go together"):
        LossConfig(mean="constant")
    with pytest.raises(ValueError, match="mean_length go together"):
        LossConfig(mean_length=3)


def test_inputs_go_by_name():
    inputs = LossInputs(labels="l", weights="w", advantages="a")
    assert inputs.pack({"advantages", "weights", "labels"}) == ("l", "w", "a")
    with pytest.raises(ValueError, match="rollout_logprobs"):
        inputs.pack({"labels", "rollout_logprobs"})


def test_reports(policy_terms):
    two = LossConfig(divergence="skew_kl+skew_reverse_kl", topk_norm="tail")
    assert reported(summands(two), [5, 1, 2, 3]) == {"loss": 5, "ce": 1, "kd": 5}
    assert reported(summands(LossConfig(kd_weight=0)), [1, 1]) == {"loss": 1, "ce": 1, "kd": 0}
    policy = LossConfig(terms={"policy_terms:reinforce": 1})
    assert reported(summands(policy), [4, 1, 4]) == {"loss": 4, "ce": 1, "kd": 0, "term_reinforce": 4}
