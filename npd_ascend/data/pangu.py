"""openPangu-Embedded's chat format, for its tokenizers that come without a template.

Every turn is ``[unused9]<role>：<text>[unused10]``; a system turn, empty if need be, always comes first.
"""

from __future__ import annotations

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
