"""Which chat template renders the input of both models, where teacher and student bring different ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npd_ascend.data.render import TemplateFault, render
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import declared_stop_ids, eos_token_ids, load_tokenizer, template_text
from npd_ascend.errors import UserError

_USER: list[dict[str, str]] = [{"role": "user", "content": "ping"}]
_SYSTEM: list[dict[str, str]] = [{"role": "system", "content": "be brief"}, *_USER]
_NAMED = ("bos_token", "eos_token")


@dataclass(frozen=True)
class Speaker:
    """A checkpoint's tokenizer and the folder whose stop ids are the model's.

    Attributes:
        tokenizer: as loaded from ``folder``.
        folder: of the tokenizer, for messages.
        model: checkpoint folder.
    """

    tokenizer: Any
    folder: Path
    model: Path

    @property
    def stops(self) -> list[int]:
        """Ids that end an answer by any file of the checkpoint."""
        return list(dict.fromkeys([*eos_token_ids(self.folder, self.tokenizer), *declared_stop_ids(self.model)]))

    @property
    def ends_its_turns(self) -> bool:
        """Whether the model stops where its own template ends a turn; a base model does not.

        What the checkpoint declares weighs more than the tokenizer: some base models' tokenizers name the end of a turn
        that their models have never seen.
        """
        stops = declared_stop_ids(self.model) or self.stops
        try:
            return bool(stops) and Template(self.tokenizer, "chat", stops[:]).end_ids[-1] in stops
        except UserError:
            return False


@dataclass(frozen=True)
class Choice:
    """A chat template and where it comes from.

    Attributes:
        text: the template; None: prompts are taken as they stand.
        source: ``student``, ``teacher`` or the path that was given.
        why: one line on why this one, where there was a choice.
        tokens: special tokens that the template names, as its owner has them.
    """

    text: str | None
    source: str = "student"
    why: str = ""
    tokens: dict[str, str | None] = field(default_factory=dict)

    def apply(self, tokenizer: Any) -> None:
        """Makes a tokenizer render with this template."""
        tokenizer.chat_template = self.text
        for name, token in self.tokens.items():
            if getattr(tokenizer, name) != token:
                setattr(tokenizer, name, token)


def choose(
    setting: str, student: Speaker, teacher: Speaker | None, system: str | None = None, trust_remote_code: bool = False
) -> Choice:
    """The template for both models' input.

    ``auto``: the only one there is; of two that render alike, the student's; of two that differ, the teacher's if the
    student is a base model (its stop ids lack its template's end of turn: the teacher's log-probs are the target, and
    the student knows neither template), and the student's if they differ in the default system turn alone.

    Args:
        setting: ``data.chat_template``.
        student: its tokenizer, or the one that takes its place.
        teacher: None where it has no tokenizer.
        system: ``data.system``; a default system turn does not matter if every prompt brings one.
        trust_remote_code: of ``load_tokenizer``.

    Raises:
        UserError: the template asked for is not there, or the two models were trained in formats that differ.
    """
    if setting not in ("auto", "student", "teacher"):
        return _of_path(Path(setting), student, trust_remote_code)
    owners = {"student": student, **({"teacher": teacher} if teacher else {})}
    if setting != "auto":
        owner = owners.get(setting)
        if owner is None or not template_text(owner.tokenizer):
            raise UserError(
                f"data.chat_template is {setting}, but {owner.folder if owner else 'the teacher'} has no "
                "chat template; set data.chat_template to the other model or to a file"
            )
        return _of(setting, owner)
    having = [name for name, owner in owners.items() if template_text(owner.tokenizer)]
    if not having:
        return Choice(None)
    if len(having) == 1:
        alone = having[0] == "teacher" or teacher is not None
        return _of(having[0], owners[having[0]], "the other has none" if alone else "")
    assert teacher is not None
    alike = _render(student, _SYSTEM) == _render(teacher, _SYSTEM)
    if alike and (system is not None or _render(student, _USER) == _render(teacher, _USER)):
        return _of("student", student)
    if not student.ends_its_turns:
        return _of(
            "teacher",
            teacher,
            "the student's own differs, and it is a base model: the end of a turn is none of its stop tokens",
        )
    if alike:
        return _of("student", student, "the teacher's has another default system turn")
    raise UserError(
        f"teacher {teacher.folder} and student {student.folder} have different chat templates, and each "
        "was trained with its own; set data.chat_template to student or teacher, whichever is to render "
        "the input of both, or to a template's file"
    )


def _of(name: str, owner: Speaker, why: str = "") -> Choice:
    text = template_text(owner.tokenizer) or ""
    return Choice(text, name, why, {t: getattr(owner.tokenizer, t) for t in _NAMED if t in text})


def _of_path(path: Path, student: Speaker, trust_remote_code: bool) -> Choice:
    if path.is_dir():
        text = template_text(load_tokenizer(path, trust_remote_code))
        if not text:
            raise UserError(f"data.chat_template: the tokenizer of {path} has no chat template")
        return Choice(text, str(path))
    try:
        return Choice(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"data.chat_template {path}: cannot be read ({getattr(e, 'strerror', None) or e}); give auto, "
            "student, teacher, a template's file, or a tokenizer's folder"
        ) from None


def _render(owner: Speaker, conversation: list[dict[str, str]]) -> str:
    try:
        text = render(owner.tokenizer, [conversation], generation=True)[0]
        return text.removeprefix(owner.tokenizer.bos_token or "")  # BOS comes from the template or from the tokenizer
    except TemplateFault:  # a template may refuse a role; both must then refuse it
        return "refused"
