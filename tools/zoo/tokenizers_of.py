"""Tokenizers with a few hundred tokens, in the file layouts of released models."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = ["user assistant system", "How many clips? 48 + 24 = 72."]
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nDEFAULT<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
PANGU_MARKS = tuple(f"[unused{i}]" for i in range(34))
PANGU_CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "自然语言处理：你好，世界。 系统：用户：助手：工具：方法：",
    "def f(x):\n    return x ** 2",
    "48 + 24 = 72 clips",
    "I thought, therefore ...",
] * 20
PANGU_RELEASED = (  # no BOS, which the tokenizer adds; roles it does not know are passed over
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '[unused9]系统：[unused10]' }}{% endif %}"
    "{% for role, name in [('system', '系统'), ('assistant', '助手'), ('tool', '工具'), ('function', '方法'), "
    "('user', '用户')] %}{% if message['role'] == role %}"
    "{{ '[unused9]' + name + '：' + message['content'] + '[unused10]' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[unused9]助手：' }}{% endif %}"
)


def byte_level(size: int, specials: tuple[str, ...] = (), corpus: list[str] = CORPUS) -> Tokenizer:
    """Byte-level BPE; special tokens, if there are any, come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size,
            show_progress=False,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **config: Any) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"clean_up_tokenization_spaces": False, **config}))
    return folder


def qwen(
    folder: Path,
    eos: str | None = "<|im_end|>",
    default: str | None = "You are Qwen.",
    added: tuple[str, ...] = ("<tool_call>", "</tool_call>"),
    **config: Any,
) -> Path:
    """As in Qwen2.5's folders: special tokens after the BPE, as added tokens; no BOS; base and Instruct models differ
    in the end token and in the default system turn."""
    tokenizer = byte_level(290)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in QWEN_SPECIALS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in added])
    template = {} if default is None else {"chat_template": QWEN_TEMPLATE.replace("DEFAULT", default)}
    return save(
        tokenizer,
        folder,
        **{
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": eos,
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "split_special_tokens": False,
            "errors": "replace",
            "model_max_length": 512,
            "tokenizer_class": "Qwen2Tokenizer",
            **template,
            **config,
        },
    )


def smollm(folder: Path) -> Path:
    """As SmolLM2-Instruct: ChatML whose turns open with BOS, and a default system turn."""
    return save(
        byte_level(300, QWEN_SPECIALS),
        folder,
        tokenizer_class="GPT2Tokenizer",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        add_prefix_space=False,
        chat_template=QWEN_TEMPLATE.replace("DEFAULT", "You are SmolLM."),
    )


def chatml(folder: Path, corpus: list[str] = CORPUS, template: str = CHATML) -> Path:
    """ChatML without BOS."""
    return save(
        byte_level(300, QWEN_SPECIALS, corpus),
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def llama(folder: Path, template: str | None = None) -> Path:
    """BOS of its own, put before every text by the tokenizer; as Llama 3 where the template names it too."""
    tokenizer = byte_level(300, ("<s>", "</s>", "<|start|>", "<|end|>", "<|eot|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    chat = {} if template is None else {"chat_template": template}
    return save(
        tokenizer,
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token="<|eot|>" if template else "</s>",
        **chat,
    )


def plain(folder: Path) -> Path:
    """As GPT-2: one special token, no BOS, no template."""
    return save(
        byte_level(290, ("<|endoftext|>",)),
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|endoftext|>",
    )


def pangu(folder: Path) -> Path:
    """openPangu's special tokens and format over byte-level BPE, in one tokenizer.json."""
    from mini_tokenizer import byte_level_bpe
    from mini_tokenizer import save as save_mini

    save_mini(byte_level_bpe(CORPUS, 310), folder)
    return folder


def sentencepiece_model(prefix: bool = False) -> bytes:
    """A model with openPangu's special pieces somewhere in its middle; ``prefix`` puts a blank before each text."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PANGU_CORPUS),
        model_writer=out,
        model_type="bpe",
        vocab_size=520,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        split_digits=True,
        normalization_rule_name="identity",
        user_defined_symbols=list(PANGU_MARKS),
        minloglevel=2,
    )
    return out.getvalue()


def pangu_released(folder: Path, prefix: bool = False) -> Path:
    """As openPangu-Embedded is released: SentencePiece, a class of its own, and Python code that must not run."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(prefix)
    (folder / "tokenizer.model").write_bytes(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    special = {"bos_token": "<s>", "eos_token": "[unused10]", "pad_token": "<unk>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "add_prefix_space": True,
                "legacy": True,
                "sp_model_kwargs": {},
                "added_tokens_decoder": {
                    str(pieces.piece_to_id(t)): {"content": t, **flags} for t in ("<unk>", "<s>", "</s>", *PANGU_MARKS)
                },
                "auto_map": {"AutoTokenizer": ["tokenization_openpangu.PanguTokenizer", None]},
                **special,
                "clean_up_tokenization_spaces": False,
                "spaces_between_special_tokens": False,
                "tokenizer_class": "PanguTokenizer",
                "use_default_system_prompt": False,
                "chat_template": PANGU_RELEASED,
            }
        )
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenization_openpangu.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


KINDS: dict[str, Callable[..., Path]] = {
    "pangu": pangu,
    "pangu released": pangu_released,
    "qwen": qwen,
    "smollm": smollm,
    "chatml": chatml,
    "llama": llama,
    "plain": plain,
}
