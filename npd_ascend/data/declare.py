"""The files beside a student's weights: they say how it was spoken to in training, and in which tokens it ends.

Whoever loads the folder reads this in different places: transformers stops at ``eos_token_id`` of
generation_config.json, vLLM there and at the tokenizer's ``eos_token``, older programs at that of config.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from npd_ascend.config.job import Declaration
from npd_ascend.data.tokenizer import COMPANIONS, TOKENIZER_FILES
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import write_bytes, write_json

_CODE = "tokenization_*.py"


def declare(folder: Path, by: Declaration, like: Path) -> None:
    """Makes a checkpoint folder speak of its training; weights are not touched.

    Args:
        folder: with ``config.json``; changed in place.
        by: what to say.
        like: checkpoint of which ``folder`` has the files; its tokenizer gives way where another one was used.

    Raises:
        UserError: a file of ``like`` or of the tokenizer is not readable as JSON.
    """
    if by.tokenizer.resolve() != like.resolve():
        _take_tokenizer(folder, by.tokenizer)
    stops: int | list[int] = by.stop_token_ids if len(by.stop_token_ids) > 1 else by.stop_token_ids[0]
    config = _update(folder / "config.json", {"eos_token_id": stops})
    # Where there is no generation_config.json, transformers takes these from config.json; a new one must have them all.
    given = {} if (folder / "generation_config.json").is_file() else config
    others = {k: given[k] for k in ("bos_token_id", "pad_token_id") if given.get(k) is not None}
    _update(folder / "generation_config.json", {**others, "eos_token_id": stops})
    if by.chat_template is None:
        return
    _update(folder / "tokenizer_config.json", {**by.special_tokens, "chat_template": by.chat_template})
    if (folder / "special_tokens_map.json").is_file():
        _update(folder / "special_tokens_map.json", by.special_tokens)
    if (folder / "chat_template.jinja").is_file():  # has the last word where there is one
        write_bytes(folder / "chat_template.jinja", by.chat_template.encode())


def _take_tokenizer(folder: Path, source: Path) -> None:
    for name in (*TOKENIZER_FILES, *COMPANIONS):
        (folder / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for path in source.glob(_CODE):
        shutil.copyfile(path, folder / path.name)


def _update(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Puts values into a JSON object, which it returns; a file that is not there is made."""
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(old, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path.name}: not readable as JSON ({e})") from None
    write_json(path, {**old, **values})
    return {**old, **values}
