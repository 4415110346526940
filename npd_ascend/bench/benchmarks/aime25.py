"""AIME 2025: both examinations of the American Invitational Mathematics Examination."""

from npd_ascend.bench.aime import AIME
from npd_ascend.bench.registry import Source, register


@register("aime25")
class AIME25(AIME):
    """Avg@16."""

    title = "AIME25"
    sources = (Source("aime25/test.jsonl", "github.com/YuYingLi0/FiRe-OPD (data/aime25)", "none; text of the MAA"),)
