"""What two tokenizers have in common: distillation over logits means nothing if they number the tokens differently."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from npd_ascend.data.tokenizer import encode, tokenizer_size
from npd_ascend.errors import UserError

_PROBES = [
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces\tand\ttabs\n\n\nlines ",
    "3.14159 + 2,718 = 1e-5 %",
    "def f(x):\n    return {'a': [x ** 2]}\n",
    "自然语言处理：你好，世界。",
    "Größe, façade, naïve, Ωμέγα, ёлка",
    "نص عربي",
    "日本語テキスト",
    "한국어",
    "👩‍🔬🚀 ½ ﬁ Ａ",
    "\\frac{1}{2} \\boxed{42} #### 7",
]


@dataclass(frozen=True)
class Vocabulary:
    """Token ids that both models know.

    Attributes:
        size: ids below this; the widths of the logits may be larger, and differ.
        student_only, teacher_only: added tokens that the other tokenizer lacks (Qwen2 has 3, Qwen2.5 has 22), by text.
        begins: text of what the student's tokenizer alone, and what the teacher's alone, puts before a text.
    """

    size: int
    student_only: dict[str, int]
    teacher_only: dict[str, int]
    begins: tuple[str, str] = ("", "")

    @cached_property
    def strange(self) -> frozenset[int]:
        """Ids that the teacher does not know."""
        return frozenset(self.student_only.values())

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """That of one tokenizer."""
        return cls(tokenizer_size(tokenizer), {}, {})


def compare(ours: Any, theirs: Any, pair: str) -> Vocabulary:
    """The vocabulary that a student's and a teacher's tokenizer share.

    Args:
        ours: the student's.
        theirs: the teacher's.
        pair: names both, for messages.

    Raises:
        UserError: a token has two ids, or an id two tokens; one tokenizer has more than added tokens beyond the other;
            or they cut text differently.
    """
    a, b = (dict(sorted(t.get_vocab().items(), key=lambda entry: entry[1])) for t in (theirs, ours))
    only_a, only_b = ({t: i for t, i in x.items() if t not in y} for x, y in ((a, b), (b, a)))
    by_id = {i: t for t, i in b.items()}
    differing = [t for t, i in a.items() if t in b and b[t] != i]
    differing += [t for t, i in only_a.items() if i in by_id or t not in theirs.get_added_vocab()]
    differing += [t for t in only_b if t not in ours.get_added_vocab()]
    if differing:
        first = min(differing, key=lambda t: (min(a.get(t, 1 << 30), b.get(t, 1 << 30)), t))
        theirs_id, ours_id = a.get(first, "none"), b.get(first, "none")
        rival = f", where the other has {by_id[a[first]]!r}" if first in only_a and a[first] in by_id else ""
        raise UserError(
            f"{pair} have different vocabularies ({len(differing)} tokens differ, first {first!r}: id "
            f"{theirs_id} and {ours_id}{rival}); distillation over logits needs the same"
        )
    plain = [encode(t, _PROBES) for t in (theirs, ours)]
    for probe, x, y in zip(_PROBES, *plain, strict=True):
        if x != y:
            raise UserError(
                f"{pair} have the same tokens but cut text differently, e.g. {probe!r}; use one tokenizer for both"
            )
    begins = tuple(t.decode(_put_before(encode(t, _PROBES[:1], special=True)[0], plain[0][0])) for t in (ours, theirs))
    shared = max(i for t, i in b.items() if t in a) + 1
    return Vocabulary(shared, only_b, only_a, begins if begins[0] != begins[1] else ("", ""))


def _put_before(whole: list[int], text: list[int]) -> list[int]:
    """What comes before ``text`` in ``whole``."""
    return whole[: next((k for k in range(len(whole)) if whole[k : k + len(text)] == text), 0)]
