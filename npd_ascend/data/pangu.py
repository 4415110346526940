"""openPangu-Embedded's chat format, and how to tell its tokenizers.

Every turn is ``[unused9]<role>：<text>[unused10]``; a system turn, empty if need be, always comes first.
"""

from __future__ import annotations

import json
from pathlib import Path

PANGU_TEMPLATE = (
    "{%- set names = {'system': '系统', 'user': '用户', 'assistant': '助手', 'tool': '工具', 'function': '方法'} -%}"
    "{{- bos_token -}}"
    "{%- if not messages or messages[0]['role'] != 'system' -%}{{- '[unused9]系统：[unused10]' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in names -%}{{- raise_exception('unknown role ' ~ message['role']) -}}{%- endif -%}"
    "{{- '[unused9]' ~ names[message['role']] ~ '：' ~ message['content'] ~ '[unused10]' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[unused9]助手：' -}}{%- endif -%}"
)

TURN_START, TURN_END = "[unused9]", "[unused10]"
THINK_START, THINK_END = "[unused16]", "[unused17]"
ROLES = {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具", "function": "方法"}
MODEL_FILE, _CLASS = "tokenizer.model", "PanguTokenizer"


def is_pangu(folder: Path) -> bool:
    """Whether ``tokenizer_config.json`` asks for openPangu's class, which ``pangu_tokenizer.py`` replaces."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = config.get("auto_map", {}).get("AutoTokenizer") or [None]
        given = (config.get("tokenizer_class"), named if isinstance(named, str) else named[0])
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return False
    return any(isinstance(name, str) and name.split(".")[-1] == _CLASS for name in given)
