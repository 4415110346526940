"""Chat templates, which come with checkpoints, rendered where they can be stopped.

transformers runs them in Jinja's sandbox: no attribute of Python is within their reach. But the sandbox bounds neither
time nor memory: a ``range`` may have 100,000 steps and loops may be nested, ``'a' * 10**10`` is ten gigabytes and is
computed while the template is compiled, ``10**10**10`` does not return from C, so that no signal handler and no hook
in this process could end it. Therefore one process of its own renders (``python -m npd_ascend.data.render``), with a
limit of memory set by the kernel; it is asked through a pipe, and killed when an answer takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from npd_ascend.data.bounded import limit_memory, start
from npd_ascend.errors import NpdError, UserError

SECONDS = 10.0
"""Most for one conversation; a template takes less than a millisecond for a usual one."""
MAX_TEXT = 16 << 20
"""Most characters of one rendered conversation."""
_MEMORY = 1 << 30
_START_S = 180.0  # imports on a busy machine
_IDLE_S = 60.0


class TemplateFault(NpdError):
    """A template refuses a conversation, or is faulty.

    Attributes:
        index: which conversation.
    """

    def __init__(self, index: int, text: str):
        super().__init__(text)
        self.index = index


def render(
    tokenizer: Any,
    conversations: Sequence[list[dict[str, Any]]],
    generation: bool,
    tools: Sequence[list[Any] | None] | None = None,
) -> list[str]:
    """What ``tokenizer.apply_chat_template(..., tokenize=False)`` gives for each conversation, within bounds.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        conversations: messages with role and content.
        generation: end with the header of the assistant's turn.
        tools: of each conversation, or None; None: there are none.

    Raises:
        TemplateFault: the template is faulty or refuses a conversation.
        UserError: it takes more than ``SECONDS`` for one or makes more than ``MAX_TEXT`` of it.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as e:
        raise TemplateFault(0, str(e)) from None
    special = {k: list(map(str, v)) if isinstance(v, list) else str(v) for k, v in tokenizer.special_tokens_map.items()}
    whose = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    count = len(conversations)
    if not count:  # a request without an answer would not be waited for, and the next one could go unseen
        return []
    return _RENDERER.ask(
        {
            "template": template,
            "special": special,
            "generation": generation,
            "conversations": list(conversations),
            "tools": list(tools) if tools else [None] * count,
        },
        count,
        f"the chat template of {whose}",
    )


class _Gone(NpdError):
    """The process has ended."""


class _Renderer:
    """The process that renders; started when needed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._rest = b""
        self._owner = 0

    def ask(self, request: dict[str, Any], count: int, what: str) -> list[str]:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                return self._ask(line, count, what)
            except _Gone:  # it leaves when it has been idle
                self._stop()
            try:
                return self._ask(line, count, what)
            except _Gone:
                self._stop()
                raise UserError(
                    f"{what} ends the process that renders it; set data.template: raw, or mend the template"
                ) from None

    def _ask(self, line: bytes, count: int, what: str) -> list[str]:
        child = self._running()
        assert child.stdin is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
        except OSError:
            raise _Gone from None
        texts = []
        for index in range(count):
            answer = self._line(SECONDS)
            if answer is None:
                self._stop()
                raise UserError(
                    f"{what} takes more than {SECONDS:g} s for one conversation; set data.template: raw, "
                    "or mend the template"
                )
            said = json.loads(answer)
            if "limit" in said:
                self._stop()  # what it has not said yet is not wanted
                raise UserError(f"{what} {said['limit']}; set data.template: raw, or mend the template")
            if "error" in said:
                self._skip(count - index - 1)
                raise TemplateFault(index, said["error"])
            texts.append(said["text"])
        return texts

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # a fork does not share its parent's
            self._child, self._owner = None, os.getpid()
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        self._child = start("npd_ascend.data.render", errors=subprocess.DEVNULL)
        if self._line(_START_S) is None:
            self._stop()
            raise UserError(
                f"the process for chat templates does not start within {_START_S:g} s; is transformers "
                f"installed beside {sys.executable}?"
            )
        return self._child

    def _skip(self, count: int) -> None:
        """Passes over answers to the same request."""
        if not all(self._line(SECONDS) for _ in range(count)):
            self._stop()

    def _line(self, seconds: float) -> bytes | None:
        """The next line of answer; None when there is none in time."""
        assert self._child is not None and self._child.stdout is not None
        fd, end = self._child.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            more = os.read(fd, 1 << 20)
            if not more:
                raise _Gone
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _stop(self) -> None:
        child, self._child, self._rest = self._child, None, b""
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        pass  # what it still held for the dead process

    def close(self) -> None:
        """Ends the process."""
        if self._owner == os.getpid():
            self._stop()


_RENDERER = _Renderer()
atexit.register(_RENDERER.close)


# ---- the other side


def main() -> None:
    """Answers requests, one JSON line a conversation, until its input ends or nothing comes for a while."""
    from transformers.utils.chat_template_utils import render_jinja_template

    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    limit_memory(_MEMORY)
    _write(out, {"ready": True})
    while select.select([sys.stdin], [], [], _IDLE_S)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        asked = json.loads(line)
        for conversation, tools in zip(asked["conversations"], asked["tools"], strict=True):
            try:
                found = render_jinja_template(
                    conversations=[conversation],
                    tools=tools,
                    chat_template=asked["template"],
                    add_generation_prompt=asked["generation"],
                    **asked["special"],
                )
                text = found[0][0]
                said = (
                    {"text": text}
                    if len(text) <= MAX_TEXT
                    else {"limit": f"makes more than {MAX_TEXT >> 20} MB of one conversation"}
                )
            except MemoryError:
                said = {"limit": f"takes more than {_MEMORY >> 30} GB of memory for one conversation"}
            except Exception as e:  # jinja's errors, and whatever a template raises by itself
                said = {"error": (str(e).strip() or type(e).__name__).splitlines()[0][:300]}
            _write(out, said)


def _write(fd: int, value: dict[str, Any]) -> None:
    data = memoryview(json.dumps(value).encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
