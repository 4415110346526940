import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.config.schema import SelectConfig
from npd_ascend.errors import UserError
from npd_ascend.select.decide import decide, summary, warning
from npd_ascend.select.registry import FILTERS, Filter, Scores, Verdict

VALUE = st.one_of(st.floats(-2, 2), st.just(float("nan")), st.just(float("inf")))


def test_all_filters_are_found():
    assert sorted(FILTERS.all()) == [
        "delta_ifd",
        "fire",
        "none",
        "ppl_weighted",
        "random",
        "student_ifd",
        "teacher_ifd",
    ]


def test_unknown_filter_names_the_nearest():
    with pytest.raises(UserError, match="no filter 'delta_idf'; did you mean delta_ifd"):
        FILTERS.find("delta_idf")
    with pytest.raises(UserError, match="known: delta_ifd, fire"):
        FILTERS.find("zzz")


@settings(max_examples=200)
@given(
    st.lists(st.tuples(VALUE, st.integers(0, 2), st.booleans()), min_size=1, max_size=25),
    st.booleans(),
    st.floats(-1, 0.5),
    st.floats(0.5, 1),
)
def test_equals_sample_by_sample(rows, keep_truncated, lower, upper):
    delta = np.array([v for v, _, _ in rows])
    nan = np.full(len(rows), np.nan)
    scores = Scores(
        np.array([t for _, t, _ in rows]), np.array([x for _, _, x in rows]), *[nan] * 6, delta, lambda name: nan
    )
    config = SelectConfig(lower=lower, upper=upper, keep_truncated=keep_truncated)

    def naive(value, tokens, truncated):
        if tokens == 0:
            return "empty"
        if truncated and not keep_truncated:
            return "truncated"
        if not np.isfinite(value):
            return "undefined"
        return "degenerate" if value < lower else "disconnect" if value > upper else "kept"

    expected = [naive(*row) for row in rows]
    if "kept" not in expected:
        with pytest.raises(UserError, match=f"keeps none of {len(rows)} samples"):
            decide(scores, FILTERS.find("delta_ifd"), config)
        return
    made = decide(scores, FILTERS.find("delta_ifd"), config)
    assert [made.reasons[r] for r in made.reason] == expected
    assert made.weight.tolist() == [float(e == "kept") for e in expected]
    table = summary(made, scores, config)
    assert sum(table["reasons"].values()) == len(rows) and table["kept"] == expected.count("kept")
    assert sum(z["count"] for z in table["zones"].values()) == len(rows)
    histogram = table["delta_ifd"]
    assert (sum(histogram["counts"]) if histogram else 0) == np.isfinite(delta).sum()
    json.dumps(table, allow_nan=False)


def test_weights_have_mean_one_over_the_kept(make_scores):
    scores = make_scores(tokens=[1, 1, 0, 1])
    odd = Filter("odd", (), lambda s, c: Verdict(None, weights=np.array([1.0, 2.0, 100.0, 3.0])))
    assert decide(scores, odd, SelectConfig()).weight.tolist() == [0.5, 1.0, 0.0, 1.5]


def test_low_keep_rate_is_warned_of_with_advice(make_scores):
    scores = make_scores(
        teacher_cond=[0.1] * 8 + [1.0] * 2,
        teacher_uncond=[1.0] * 10,
        student_cond=[0.5] * 10,
        student_uncond=[1.0] * 10,
    )
    config = SelectConfig()
    made = decide(scores, FILTERS.find("delta_ifd"), config)
    line = warning("delta_ifd", made, config)
    assert "keeps 20.0% of 10 samples" in line and "80.0% degenerate" in line and "select.lower: null" in line
    assert summary(made, scores, config)["low_keep_rate"] is True
    relaxed = SelectConfig(warn_keep_below=0.2)
    assert warning("delta_ifd", made, relaxed) is None
    assert summary(made, scores, relaxed)["low_keep_rate"] is False


def test_quantile_bounds_are_named_in_the_summary(make_scores):
    scores = make_scores(
        teacher_cond=np.linspace(0, 1, 11),
        teacher_uncond=[1.0] * 11,
        student_cond=[0.0] * 11,
        student_uncond=[1.0] * 11,
    )
    config = SelectConfig(lower=None, upper_quantile=0.9)
    table = summary(decide(scores, FILTERS.find("delta_ifd"), config), scores, config)
    assert table["bounds"] == {"lower": None, "upper": pytest.approx(0.9)} and table["kept"] == 10
