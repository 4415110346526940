"""What a field of a setting or a job means for the identity of an output; marked once, where the field is defined.

A field without a mark counts as it is. A path without a mark does not count: it says where something is, not what.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """Marks without a parameter, for ``Annotated[int, SPEED]``."""

    SPEED = "changes how fast or where a stage works, or what is shown, never what it makes"
    OUTPUT = "names what is made"
    CHECKPOINT = "a Hugging Face folder: the content of its files counts"
    TOKENIZER = "a tokenizer's folder: the content of its files counts, and the stop ids that it declares"
    SPEECH = "a Hugging Face folder, of which its tokenizer counts, if it has one, and the stop ids that it declares"
    TEMPLATE = "the name of a chat template, or a path: the content there counts"
    FILE = "a file: its content counts"


SPEED, OUTPUT = Mark.SPEED, Mark.OUTPUT
CHECKPOINT, TOKENIZER, SPEECH, TEMPLATE, FILE = (Mark.CHECKPOINT, Mark.TOKENIZER, Mark.SPEECH, Mark.TEMPLATE, Mark.FILE)


@dataclass(frozen=True)
class Younger:
    """The setting came later than runs that are stored: at its default it does not count, so that theirs are still
    known."""


@dataclass(frozen=True)
class Holds:
    """A folder that holds a finished dataset of this kind: its fingerprint counts."""

    kind: str


@dataclass(frozen=True)
class Only:
    """The field counts for these stored quantities and for nothing else."""

    names: tuple[str, ...]

    def __init__(self, *names: str):
        object.__setattr__(self, "names", names)
