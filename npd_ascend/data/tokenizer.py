"""Loading a tokenizer from a checkpoint folder, offline and without running its code unless asked to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from npd_ascend.data.pangu import MODEL_FILE, PANGU_TEMPLATE, TURN_END, TURN_START, is_pangu
from npd_ascend.errors import UserError
from npd_ascend.models.hf_files import shared_tokenizer_config
from npd_ascend.store.atomic import read_object

_NEEDS_CODE = "trust_remote_code"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
COMPANIONS = ("merges.txt", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
"""Files that say more of a tokenizer but are none by themselves."""


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds any tokenizer file."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer as transformers loads it; openPangu's template is put in where one is missing.

    openPangu-Embedded's own class is replaced by one of the same behaviour, so that its checkpoints' code need not
    be trusted (and is not run where it is).

    Args:
        folder: Hugging Face folder with tokenizer files.
        trust_remote_code: run tokenizer code that the folder brings along.

    Returns:
        A ``PreTrainedTokenizerBase``, fast wherever the folder has a ``tokenizer.json``.

    Raises:
        UserError: no tokenizer there, it needs code that was not allowed, or its files are damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"tokenizer {folder}: no such folder")
    if not has_tokenizer(folder):
        raise UserError(
            f"tokenizer {folder}: none of {', '.join(TOKENIZER_FILES)} is there; set models.tokenizer "
            "to a folder that has them"
        )
    if is_pangu(folder) and not any((folder / name).is_file() for name in (MODEL_FILE, "tokenizer.json")):
        raise UserError(f"tokenizer {folder}: {MODEL_FILE} is missing; copy it from the checkpoint as it was released")
    tokenizer = _load(folder, trust_remote_code)
    if not tokenizer.chat_template and all(mark in tokenizer.get_vocab() for mark in (TURN_START, TURN_END)):
        tokenizer.chat_template = PANGU_TEMPLATE
    return tokenizer


def declared_stop_ids(folder: Path) -> list[int]:
    """Ids that end an answer by the checkpoint's generation_config.json and config.json; unreadable ones are none."""
    found: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = read_object(Path(folder) / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    return list(dict.fromkeys(i for i in found if isinstance(i, int) and not isinstance(i, bool) and i >= 0))


def eos_token_ids(folder: Path, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's own first, then those of generation_config.json and config.json."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*own, *declared_stop_ids(folder)]))


def template_text(tokenizer: Any) -> str | None:
    """The chat template, of several the one named ``default``; None where there is none."""
    template = tokenizer.chat_template
    return (template.get("default") if isinstance(template, dict) else template) or None


def tokenizer_size(tokenizer: Any) -> int:
    """All token ids are below this; unlike ``len(tokenizer)``, also where ids have gaps."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return max(ids.values()) + 1


def encode(tokenizer: Any, texts: list[str], special: bool = False) -> list[list[int]]:
    """Token ids of many texts at once; ``special`` adds what the tokenizer adds by itself (BOS)."""
    if not texts:
        return []
    if many := getattr(tokenizer, "encode_many", None):
        ids: list[list[int]] = many(texts, special)
    else:
        ids = tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
    return ids


def _load(folder: Path, trust_remote_code: bool) -> Any:
    # Without these, transformers announces that torch is absent and tokenizers that a process was forked.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if is_pangu(folder) and (folder / MODEL_FILE).is_file():
            from npd_ascend.data.pangu_tokenizer import PanguTokenizer

            return PanguTokenizer.from_pretrained(folder, local_files_only=True)
        return _by_class(folder, trust_remote_code)
    except Exception as e:  # the loaders raise whatever their parsers do
        if _NEEDS_CODE in str(e) and not trust_remote_code:
            raise UserError(
                f"tokenizer {folder}: it brings its own Python code; if you trust it, set "
                "models.trust_remote_code: true"
            ) from None
        detail = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"tokenizer {folder}: cannot be loaded ({detail}); its files may be incomplete") from None


def _by_class(folder: Path, trust_remote_code: bool) -> Any:
    """As the class that the folder names, or by ``tokenizer.json`` alone where that class is not to be had: it needs
    code that is not trusted, or is one of transformers 5."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    saved = read_object(folder / "tokenizer_config.json")
    options: dict[str, Any] = {"local_files_only": True}
    if isinstance(saved.get("extra_special_tokens"), list):  # as transformers 5 writes them
        tokens = shared_tokenizer_config(saved)["additional_special_tokens"]
        options |= {"extra_special_tokens": {}, "additional_special_tokens": tokens}
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, use_fast=True, **options)
    except ValueError as e:
        if not (folder / "tokenizer.json").is_file() or not any(
            reason in str(e) for reason in (_NEEDS_CODE, "not currently imported")
        ):
            raise
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of the class
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, **options)
    finally:
        logging.set_verbosity(verbosity)
