"""AIME 2024: both examinations of the American Invitational Mathematics Examination."""

from npd_ascend.bench.aime import AIME
from npd_ascend.bench.registry import Source, register


@register("aime24")
class AIME24(AIME):
    """Avg@16."""

    title = "AIME24"
    sources = (Source("aime24/test.jsonl", "github.com/YuYingLi0/FiRe-OPD (data/aime24)", "none; text of the MAA"),)
