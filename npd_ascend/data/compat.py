"""Whether teacher and student speak the same token ids: distillation over logits means nothing if they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npd_ascend.data.pangu import is_pangu
from npd_ascend.data.render import TemplateFault, render
from npd_ascend.data.tokenizer import TOKENIZER_FILES, has_tokenizer, load_tokenizer, tokenizer_size
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.progress import message

_FILES = (*TOKENIZER_FILES, "merges.txt", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
_PROBES = (
    "The quick brown fox jumps over the lazy dog.", "  two  spaces\tand\ttabs\n\n\nlines ", "3.14159 + 2,718 = 1e-5 %",
    "def f(x):\n    return {'a': [x ** 2]}\n", "自然语言处理：你好，世界。", "Größe, façade, naïve, Ωμέγα, ёлка",
    "نص عربي", "日本語テキスト", "한국어", "👩‍🔬🚀 ½ ﬁ Ａ", "\\frac{1}{2} \\boxed{42} #### 7",
)
_CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "ping"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ping"}],
)


def check_pair(teacher: Path, student: Path, tokenizer: Path | None = None,
               trust_remote_code: bool = False) -> None:
    """Checks that two checkpoints can be distilled into each other over token ids.

    The tokenizers must map the same text to the same ids, have the same begin and end tokens, and render chats
    alike. The widths of the two models' logits may differ, but only in padding: both must hold every token.

    Args:
        teacher: checkpoint folder; if it has no tokenizer files, its vocabulary cannot be compared and a warning
            says so.
        student: checkpoint folder.
        tokenizer: folder of the tokenizer, if it is not the student's own.
        trust_remote_code: run tokenizer code that the folders bring along.

    Raises:
        UserError: a folder or file is missing, or the two do not fit together; says in what.
    """
    teacher, student = Path(teacher), Path(student)
    source = Path(tokenizer) if tokenizer else student
    widths = {folder: ModelSpec.from_folder(folder).vocab_size for folder in (teacher, student)}
    size = _same_files(teacher, source)
    if size is None:
        ours = load_tokenizer(source, trust_remote_code)
        size = tokenizer_size(ours)
        if teacher != source and has_tokenizer(teacher):
            _compare(teacher, load_tokenizer(teacher, trust_remote_code), source, ours)
        elif teacher != source:
            message(f"{teacher} has no tokenizer files: cannot check that its token ids are those of {source}",
                    "warning")
    for folder, width in widths.items():
        if width < size:
            raise UserError(f"{folder}: its logits cover {width} ids but the tokenizer of {source} has {size}; the "
                            "checkpoint and the tokenizer do not belong together")


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


def _compare(teacher: Path, theirs: Any, student: Path, ours: Any) -> None:
    pair = f"teacher {teacher} and student tokenizer {student}"
    a, b = theirs.get_vocab(), ours.get_vocab()
    if a != b:
        differing = sorted((t for t in a.keys() | b.keys() if a.get(t) != b.get(t)),
                           key=lambda t: min(a.get(t, 1 << 30), b.get(t, 1 << 30)))
        first = differing[0]
        raise UserError(f"{pair} have different vocabularies ({len(differing)} tokens differ, first {first!r}: id "
                        f"{a.get(first, 'none')} and {b.get(first, 'none')}); distillation over logits needs the same")
    for kind in ("bos", "eos"):
        x, y = getattr(theirs, f"{kind}_token_id"), getattr(ours, f"{kind}_token_id")
        if x != y:
            raise UserError(f"{pair} have different {kind} tokens (ids {x} and {y}); if the student's is meant for "
                            "both, copy its tokenizer files into the teacher's folder")
    for probe in _PROBES:
        if theirs(probe, add_special_tokens=False)["input_ids"] != ours(probe, add_special_tokens=False)["input_ids"]:
            raise UserError(f"{pair} have the same tokens but cut text differently, e.g. {probe!r}; use one tokenizer "
                            "for both")
    if theirs.chat_template and ours.chat_template:
        for conversation in _CONVERSATIONS:
            if _render(theirs, conversation) != _render(ours, conversation):
                raise UserError(f"{pair} have different chat templates; if the student's is meant for both, copy its "
                                "tokenizer files into the teacher's folder")


def _render(tokenizer: Any, conversation: list[dict[str, str]]) -> str:
    try:
        text = render(tokenizer, [conversation], generation=True)[0]
        return text.removeprefix(tokenizer.bos_token or "")  # BOS comes from the template or from the tokenizer
    except TemplateFault:  # a template may refuse a role; both must then refuse it
        return "refused"
