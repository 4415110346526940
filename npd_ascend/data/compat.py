"""Whether teacher and student can be distilled into each other, and on what they agree: ids, template, stop ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from npd_ascend.config.schema import DataConfig
from npd_ascend.data.chat_template import Choice, Speaker, choose
from npd_ascend.data.pangu import is_pangu
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import COMPANIONS, TOKENIZER_FILES, has_tokenizer, load_tokenizer
from npd_ascend.data.vocabulary import Vocabulary, compare
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec

_FILES = (*TOKENIZER_FILES, *COMPANIONS)
_SHOWN = 4


@dataclass(frozen=True)
class Remark:
    """Something that the two models do not have in common, and what follows from it."""

    level: Literal["info", "warning"]
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Agreement:
    """How both models are spoken to.

    Attributes:
        tokenizer: the student's, with the chosen chat template.
        template: renders and tokenises with it; its ``eos`` are the stop ids of both models and the template's end of a
            turn: any of them ends an answer.
        vocabulary: the ids that both know.
        chosen: the chat template and its origin.
        remarks: where the models differ.
    """

    tokenizer: Any
    template: Template
    vocabulary: Vocabulary
    chosen: Choice
    remarks: list[Remark]

    @property
    def special_tokens(self) -> dict[str, str | None]:
        """What the tokenizer of a student that was trained so must say: the end of an answer, and what the template
        names. Empty where prompts are taken as they stand."""
        if not self.template.chat:
            return {}
        return {**self.chosen.tokens, "eos_token": self.tokenizer.convert_ids_to_tokens(self.template.end_ids[-1])}


def check_pair(
    teacher: Path,
    student: Path,
    tokenizer: Path | None = None,
    trust_remote_code: bool = False,
    settings: DataConfig | None = None,
) -> Agreement | None:
    """Checks that two checkpoints can be distilled into each other over token ids.

    The tokenizers must map the same text to the same ids. Stop ids may differ, and so may the widths of the logits, if
    both hold every shared token. Where chat templates differ, one must be settled on.

    Args:
        teacher: checkpoint folder; if it has no tokenizer files, its vocabulary cannot be compared.
        student: checkpoint folder.
        tokenizer: folder of the tokenizer, if it is not the student's own.
        trust_remote_code: run tokenizer code that the folders bring along.
        settings: the ``data`` section; its defaults if None.

    Returns:
        On what they agree; None where that was plain without loading a tokenizer.

    Raises:
        UserError: a folder or file is missing, or the two do not fit together; says in what.
    """
    teacher, student = Path(teacher), Path(student)
    source = Path(tokenizer) if tokenizer else student
    settings = settings or DataConfig(prompts=[])
    widths = {folder: ModelSpec.from_folder(folder).vocab_size for folder in (teacher, student)}
    # The quick way does not render, so it will do only where there is nothing to choose.
    size = _same_files(teacher, source) if settings.chat_template in ("auto", "student") else None
    both = None
    if size is not None:
        sizes = {teacher: size, student: size}
    else:
        both = agree(source, settings, student, teacher, trust_remote_code=trust_remote_code)
        shared = both.vocabulary
        own = max([shared.size - 1, *shared.student_only.values()]) + 1
        sizes = {teacher: shared.size, student: own}
    for folder, width in widths.items():
        if width < sizes[folder]:
            raise UserError(
                f"{folder}: its logits cover {width} ids but the tokenizer of {source} has "
                f"{sizes[folder]}; the checkpoint and the tokenizer do not belong together"
            )
    return both


def agree(
    tokenizer: Path,
    settings: DataConfig,
    student: Path | None = None,
    teacher: Path | None = None,
    needed: bool = True,
    trust_remote_code: bool = False,
) -> Agreement:
    """Loads the tokenizers and settles on token ids, chat template and stop ids.

    Args:
        tokenizer: the student's folder, or that of ``models.tokenizer``.
        settings: the ``data`` section.
        student: checkpoint folder, whose stop ids count; that of the tokenizer if None.
        teacher: checkpoint folder; None: there is none.
        needed: whether the run asks the teacher anything. If not, a teacher that does not fit is left aside; one that
            fits still has its say, so that a student trained on references reads what a distilled one reads.
        trust_remote_code: run tokenizer code that the folders bring along.

    Raises:
        UserError: the two do not fit together, there is no template as asked for, or nothing ends an answer.
    """
    own = load_tokenizer(tokenizer, trust_remote_code)
    ours, theirs = Speaker(own, tokenizer, student or tokenizer), None
    vocabulary = Vocabulary.of(own)
    if teacher is not None and has_tokenizer(teacher):
        try:
            its = own if teacher == tokenizer else load_tokenizer(teacher, trust_remote_code)
            vocabulary = compare(own, its, f"teacher {teacher} and student tokenizer {tokenizer}")
            theirs = Speaker(its, teacher, teacher)
        except UserError:
            if needed:
                raise
    raw = settings.template == "raw"
    chosen = Choice(None) if raw else choose(settings.chat_template, ours, theirs, settings.system, trust_remote_code)
    stops = {"student": ours.stops, **({"teacher": theirs.stops} if theirs else {})}
    if not raw:  # after the stop ids were taken: a template may bring its own end-of-sequence token
        chosen.apply(own)
    union = [i for i in dict.fromkeys(i for ids in stops.values() for i in ids) if i < vocabulary.size]
    template = Template(own, settings.template, union)
    remarks = [*_on_template(chosen, ours, theirs), *_on_stops(stops, template), *_on_vocabulary(vocabulary, theirs)]
    if teacher is not None and needed and theirs is None:
        remarks.append(
            Remark(
                "warning",
                f"{teacher} has no tokenizer files: cannot check that its token ids are those of {tokenizer}",
                "copy the tokenizer files that belong to it into its folder",
            )
        )
    return Agreement(own, template, vocabulary, chosen, remarks)


def _on_template(chosen: Choice, ours: Speaker, theirs: Speaker | None) -> list[Remark]:
    if not chosen.why or theirs is None:
        return []
    owner = {"student": ours, "teacher": theirs}[chosen.source]
    return [
        Remark(
            "info",
            f"chat template: the {chosen.source}'s ({owner.folder}) renders the input of both models; "
            f"{chosen.why} (data.chat_template)",
        )
    ]


def _on_stops(stops: dict[str, list[int]], template: Template) -> list[Remark]:
    """Where the models end in different tokens, or the template in one that a model does not know as an end."""

    def named(ids: Sequence[int]) -> str:
        return " or ".join(f"{template.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids[:_SHOWN]) or "none"

    end = template.end_ids[-1]
    strange = [model for model, ids in stops.items() if end not in ids] if template.chat else []
    sets = [set(ids) for ids in stops.values()]
    if not strange and all(s == sets[0] for s in sets):
        return []
    ends = [f"{model} {named(ids)}" for model, ids in stops.items()]
    ends += [f"chat template {named([end])}"] * template.chat
    text = (
        f"stop tokens differ: {', '.join(ends)}; each of them ends an answer, and the exported student lists them all."
    )
    if "student" in strange:
        text += (
            " The student does not stop at the template's end of turn yet: until it has learned to, answers may "
            "run to rollout.max_new_tokens."
        )
    if "teacher" in strange:
        text += " The teacher does not stop at the template's end of turn: the student may learn not to stop either."
    if not strange and not set.intersection(*sets):
        text += " The two models have no stop token in common."
    level: Literal["info", "warning"] = "warning" if strange or not set.intersection(*sets) else "info"
    remedy = "watch the share of truncated answers"
    remedy += ", or take another template (data.chat_template)" if "teacher" in strange else ""
    return [Remark(level, text, remedy if level == "warning" else "")]


def _on_vocabulary(vocabulary: Vocabulary, theirs: Speaker | None) -> list[Remark]:
    out = []
    for model, tokens in (("student", vocabulary.student_only), ("teacher", vocabulary.teacher_only)):
        if tokens:
            first = ", ".join(list(tokens)[:_SHOWN])
            more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
            text = f"only the {model}'s tokenizer has the added tokens {first}{more}: they are left out"
            out.append(Remark("info", text))
    if theirs is not None and any(vocabulary.begins):
        ours, other = (repr(b) if b else "nothing" for b in vocabulary.begins)
        text = (
            f"the student's tokenizer puts {ours} before a text, the teacher's {other}; both models' input begins "
            "as the student's"
        )
        out.append(Remark("warning", text, "set models.tokenizer if it should be otherwise"))
    return out


def _same_files(teacher: Path, student: Path) -> int | None:
    """Number of ids when both folders hold byte for byte the same tokenizer of a kind that is quick to read.

    This is the usual case, and it spares the seconds that importing transformers takes.
    """
    for name in _FILES:
        a, b = teacher / name, student / name
        if a.is_file() != b.is_file() or (a.is_file() and a.read_bytes() != b.read_bytes()):
            return None
    path = student / "tokenizer.json"
    if not path.is_file() or is_pangu(student):
        return None
    from tokenizers import Tokenizer

    try:
        return max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    except Exception as e:  # the Rust side raises bare exceptions
        raise UserError(f"tokenizer {path}: cannot be read ({str(e).splitlines()[0]})") from None
