"""Text from outside (prompts, answers, file names, configs of checkpoints) made harmless for terminals and pages.

Escape sequences recolour a terminal, move its cursor or set its title; bidirectional overrides let a line read as what
it is not; a NUL ends a page for some readers. Each such character is replaced by a visible stand-in, so that one sees
that it was there. Joiners inside words and emoji stay: scripts need them and they cannot leave their cluster.
"""

from __future__ import annotations

import re

# C0 (but tab and line feed), DEL, C1; line and paragraph separators; bidirectional marks, embeddings, overrides and
# isolates; invisible fillers, annotations and tags; byte order marks; surrogates, which no encoder takes.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_BREAKS = re.compile(r"[ \t]*[\t\n\r\v\f\x85\u2028\u2029]+[ \t]*")


def visible(text: str) -> str:
    """The text with each control character replaced: ``␛`` for ESC, ``‹U+202E›`` beyond ASCII; tabs and line feeds
    stay."""
    return _HIDDEN.sub(_stand_in, text)


def one_line(text: str) -> str:
    """As ``visible``, with line breaks and tabs turned into spaces: one line of a log or message."""
    return visible(_BREAKS.sub(" ", text)).rstrip()


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"‹U+{code:04X}›"
