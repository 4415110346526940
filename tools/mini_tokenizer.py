"""Small tokenizers with openPangu's special tokens, ids and chat template, so that mini runs take the real path."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from npd_ascend.data.pangu import PANGU_TEMPLATE, ROLES, THINK_END, THINK_START, TURN_END, TURN_START
from npd_ascend.store.atomic import atomic_folder, write_json

SPECIALS = ["<unk>", "<s>", "</s>", TURN_START, TURN_END, THINK_START, THINK_END]
PAD_ID, BOS_ID, EOS_ID = 0, 1, SPECIALS.index(TURN_END)
COLON = "："


def word_level(words: list[str]) -> Tokenizer:
    """One token a word, ids in the order given, after the special tokens, the roles and the colon."""
    vocab = [*SPECIALS, *ROLES.values(), COLON, *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(COLON, "isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS])
    return tokenizer


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of ``vocab_size`` tokens trained on ``texts``; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIALS,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json; replaces what stands in ``folder``."""
    with atomic_folder(folder) as out:
        tokenizer.save(str(out / "tokenizer.json"))
        write_json(
            out / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": TURN_END,
                "pad_token": "<unk>",
                "unk_token": "<unk>",
                "clean_up_tokenization_spaces": False,
                "model_max_length": 32768,
                "chat_template": PANGU_TEMPLATE,
            },
        )
