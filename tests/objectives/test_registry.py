"""Names, parameters and refusals."""

import pytest

from npd_ascend.config.schema import LossConfig
from npd_ascend.errors import UserError
from npd_ascend.objectives.registry import (
    divergences,
    find_divergences,
    find_token_weight,
    token_weights,
)


def test_names():
    assert list(divergences()) == ["forward_kl", "jsd", "reverse_kl", "skew_kl", "skew_reverse_kl"]
    assert list(token_weights()) == ["none", "position_decay", "surprisal_gate", "teacher_confidence"]


def test_parameter_after_the_name():
    assert find_divergences(LossConfig(divergence="skew_kl"))[0][1] == 0.1
    assert find_divergences(LossConfig(divergence="skew_kl:0.3"))[0][1] == 0.3


def test_several():
    found = find_divergences(LossConfig(divergence="skew_kl:0.2 + skew_reverse_kl", topk_norm="both"))
    assert [(d.name, a) for d, a in found] == [("skew_kl", 0.2), ("skew_reverse_kl", 0.1)]
    with pytest.raises(UserError, match="no divergence"):
        find_divergences(LossConfig(divergence="skew_kl+"))


@pytest.mark.parametrize("text", ["jsd:0", "jsd:1", "jsd:x", "jsd:nan", "jsd:-1"])
def test_bad_parameter(text):
    with pytest.raises(UserError, match="between 0 and 1"):
        find_divergences(LossConfig(divergence=text, topk_norm="tail"))


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="did you mean forward_kl"):
        find_divergences(LossConfig(divergence="forwardkl"))
    with pytest.raises(UserError, match="did you mean position_decay"):
        find_token_weight(LossConfig(token_weight="position"))


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_reverse_kl"])
@pytest.mark.parametrize("norm", ["teacher", "raw"])
def test_biased_combinations_are_refused(name, norm):
    with pytest.raises(UserError, match="tail or both"):
        find_divergences(LossConfig(divergence=name, topk_norm=norm))
