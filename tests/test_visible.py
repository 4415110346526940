"""No character steers a terminal or a page, and text that people write stays as it is."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from npd_ascend import commands
from npd_ascend.errors import UserError
from npd_ascend.progress import Meter, message
from npd_ascend.visible import one_line, visible

HOSTILE = "a\x1b]0;title\x07\x1b[31mred\x00\x9b2J\u202egpj.exe\u2066x\u2069\r\x7f\ud800"


def steers(text: str) -> list[str]:
    """Characters that no terminal or page should get, found in another way than ``visible`` finds them."""
    return [
        c
        for c in text
        if (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\t\n")
        or unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN")
        and c not in "\u200c\u200d"
        and not unicodedata.category(c).startswith("C" + "n")
    ]


def test_every_character_of_unicode():
    kept = set(steers(visible("".join(map(chr, range(sys.maxunicode + 1))))))
    assert {f"{ord(c):04X}" for c in kept} <= {
        f"{n:04X}" for n in (*range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B))
    }  # marks inside shorthand and music, which stay there


def test_what_was_there_can_be_seen():
    assert visible("a\x1b[31m\x00\x7f\x85\u202e\ud800\ufeff") == "a␛[31m␀␡‹U+0085›‹U+202E›‹U+D800›‹U+FEFF›"
    assert one_line("a\r\n  b\tc\u2028d\n") == "a b c d"


@pytest.mark.parametrize("text", ["plain\n\ttext", "自然语言 日本語", "نص عربي שלום", "👩‍🔬🚀 é ½", "می‌خواهم", "▁x Ġy"])
def test_text_stays(text):
    assert visible(text) is text or visible(text) == text


def test_lines_and_errors_carry_none(capsys, monkeypatch):
    assert not steers(str(UserError(HOSTILE))) and "\n" not in str(UserError(HOSTILE + "\nb"))
    message(HOSTILE)
    with Meter(f"rollout {HOSTILE}", 3):
        pass
    commands._say(HOSTILE)
    with pytest.raises(SystemExit):
        commands._end(HOSTILE, 2)
    said = capsys.readouterr()
    assert not steers(said.out) and not steers(said.err)
    assert said.out.startswith("a␛]0;title␇␛[31mred␀") and said.err.count("gpj.exe") == 4
