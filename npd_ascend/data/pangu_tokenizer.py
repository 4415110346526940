"""openPangu-Embedded's tokenizer, read from ``tokenizer.model`` without the Python code that its checkpoints bring.

The released folders hold a SentencePiece model and a class ``PanguTokenizer`` (``tokenization_openpangu.py``) that
transformers runs only when remote code is trusted. This is a class of the same behaviour on the same base class and
the same library, so ids and texts are the same by construction:

* A text is cut at the added tokens (``<s>``, ``[unused9]``, ...; the longest that fits), and each piece between them
  goes through SentencePiece by itself, with whatever prefix space the model was trained with.
* ``add_bos_token`` puts the model's own BOS before a text that is encoded with special tokens. The released chat
  template writes no BOS: it comes from here (``data/template.py``).
* Only BOS, EOS, padding and unknown count as special when a text is decoded, so the marks of thinking stay visible.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

from npd_ascend.data.pangu import MODEL_FILE


class PanguTokenizer(PreTrainedTokenizer):
    """See the module; the arguments are the keys of ``tokenizer_config.json`` with the released class's defaults.

    Raises:
        ValueError: the file is no SentencePiece model, or sampling of pieces is asked for (ids would be random).
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = "</s>",
        sp_model_kwargs: dict[str, Any] | None = None,
        add_bos_token: bool | str = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ):
        if sp_model_kwargs:
            raise ValueError(f"sp_model_kwargs {sp_model_kwargs} in tokenizer_config.json are not supported; empty it")
        try:
            self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        except (OSError, RuntimeError):
            raise ValueError(
                f"{MODEL_FILE} is no SentencePiece model; a pointer of git-lfs? Fetch it with git lfs pull"
            ) from None
        self.vocab_file = vocab_file
        self.add_bos_token = str(add_bos_token).lower() == "true"
        self.add_eos_token = bool(add_eos_token)
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            add_bos_token=self.add_bos_token,
            add_eos_token=self.add_eos_token,
            **kwargs,
        )

    # ---- vocabulary

    @property
    def vocab_size(self) -> int:
        return self.sp_model.get_piece_size()

    @property
    def bos_token_id(self) -> int | None:
        """The model's own BOS, whatever ``bos_token`` says, as in the released class."""
        return self.sp_model.bos_id()

    @cached_property
    def _pieces(self) -> dict[str, int]:
        size = self.vocab_size
        return dict(zip(self.sp_model.id_to_piece(list(range(size))), range(size), strict=True))

    def get_vocab(self) -> dict[str, int]:
        return {**self._pieces, **self.added_tokens_encoder}

    # ---- text to ids

    def encode_many(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """Ids of many texts at once, as calling the tokenizer gives them, in a small part of the time."""
        added = self.added_tokens_decoder.values()
        if self.split_special_tokens or any(t.lstrip or t.rstrip or t.single_word for t in added):
            found: list[list[int]] = self(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"]
            return found
        marks = self.added_tokens_encoder
        longest_first = sorted(marks, key=len, reverse=True)
        cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if marks else None
        parts = [[p for p in (cut.split(text) if cut else [text]) if p] for text in texts]
        runs = iter(self.sp_model.encode([p for row in parts for p in row if p not in marks], num_threads=-1))
        rows = [[i for p in row for i in ((marks[p],) if p in marks else next(runs))] for row in parts]
        return [self.build_inputs_with_special_tokens(row) for row in rows] if special else rows

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces: list[str] = self.sp_model.encode(text, out_type=str)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        bos = [self.bos_token_id] if self.add_bos_token and self.bos_token_id is not None else []
        return bos + token_ids_0 + (token_ids_1 or []) + [self.eos_token_id] * self.add_eos_token

    # ---- ids to text

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Special tokens as they stand, what lies between them through SentencePiece (bytes become characters)."""
        special, out = set(self.all_special_tokens), ""
        run: list[str] = []
        for token in tokens:
            if token in special:
                out, run = out + (self.sp_model.decode(run) if run else "") + token, []
            else:
                run.append(token)
        return out + (self.sp_model.decode(run) if run else "")

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = False,
        **kwargs: Any,
    ) -> str:
        return super()._decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            spaces_between_special_tokens=spaces_between_special_tokens,
            **kwargs,
        )

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{MODEL_FILE}"
        path.write_bytes(self.sp_model.serialized_model_proto())
        return (str(path),)
