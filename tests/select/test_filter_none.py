from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.decide import decide
from npd_ascend.select.registry import FILTERS


def test_keeps_all_but_empty_without_scores(make_scores):
    scores = make_scores(tokens=[3, 0, 2], truncated=[True, False, False])
    made = decide(scores, FILTERS.find("none"), SelectConfig(filter="none"))
    assert made.keep.tolist() == [True, False, True]
    assert made.weight.tolist() == [1, 0, 1]


def test_honours_keep_truncated(make_scores):
    scores = make_scores(tokens=[3, 0, 2], truncated=[True, False, False])
    made = decide(scores, FILTERS.find("none"), SelectConfig(filter="none", keep_truncated=False))
    assert [made.reasons[r] for r in made.reason] == ["truncated", "empty", "kept"]
