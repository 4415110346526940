"""CLUEWSC: what a pronoun stands for, in Chinese; the public test set of FewCLUE (Xu et al., arXiv:2107.07498)."""

from npd_ascend.bench.registry import Chosen, Source, register
from npd_ascend.bench.rows import Row
from npd_ascend.errors import UserError

_LABELS = ("false", "true")


@register("cluewsc")
class CLUEWSC(Chosen):
    """By likelihood of 否 and 是, zero shots, with the question of OpenCompass and AISBench (``FewCLUE_cluewsc_ppl``).
    Chance is 50 %."""

    title = "CLUEWSC"
    sources = (
        Source(
            "cluewsc/test_public.json", "datasets/cluewsc of github.com/CLUEbenchmark/FewCLUE", "not stated there yet"
        ),
    )
    count = 976
    proven = False

    def asked(self, row: Row) -> str:
        target = row.fields.get("target")
        if not isinstance(target, dict) or not all(isinstance(target.get(f"span{i}_text"), str) for i in (1, 2)):
            raise UserError(f"{row.where}: no field 'target' with span1_text and span2_text")
        return f"{row.text('text')}\n此处，“{target['span2_text']}”是否指代“{target['span1_text']}”？"

    def choices(self, row: Row) -> list[str]:
        return ["否", "是"]

    def right(self, row: Row) -> int:
        label = row.text("label")
        if label not in _LABELS:
            raise UserError(f"{row.where}: label is {label[:20]!r}, expected false or true")
        return _LABELS.index(label)
