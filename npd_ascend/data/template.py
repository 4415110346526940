"""From a user's turn to token ids and back: what a chat template puts around prompts and answers.

Nothing here knows a model family. The header before an answer and the end of a turn are found by rendering
conversations with and without them and comparing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npd_ascend.data.render import TemplateFault, render
from npd_ascend.data.tokenizer import encode
from npd_ascend.errors import UserError

Messages = list[dict[str, Any]]
Tools = list[Any] | None

MAX_TURNS = 500
"""Most turns of the assistant in one reference: what comes before each is rendered by itself."""
_TURNS = 16
_PROBE = "ping"
_ANSWER = "QZXANSWERXZQ"  # letters only, so that no template trims or escapes it


class Unrenderable(UserError):
    """A template cannot take a conversation.

    Attributes:
        index: which of those that were given.
    """

    def __init__(self, index: int, text: str):
        super().__init__(text)
        self.index = index


@dataclass(frozen=True)
class Trajectory:
    """A prompt with a reference of several turns, or of one that calls a tool.

    Attributes:
        messages: the prompt.
        turns: the reference; its first and last turns are the assistant's.
        tools: that the assistant may call, or None.
        head: the prompt as rendered.
        prompt_ids: its tokens.
    """

    messages: Messages
    turns: Messages
    tools: Tools
    head: str
    prompt_ids: list[int]


class Template:
    """Renders prompts and answers with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        mode: ``chat``, ``raw``, or ``auto`` (chat when the tokenizer has a template).
        eos: ids that end an answer; the first is used where the template has no end of its own.

    A prompt begins with BOS where the tokenizer puts one before every text of its own accord (openPangu-Embedded's
    template has none: the tokenizer adds it) and the template has not done so already.

    Attributes:
        chat: whether the chat template is used.
        header_ids: context of an answer without its question: BOS, where prompts begin with it, and the header
            of the assistant's turn, which may itself open with BOS (SmolLM2). Never empty.
        eos: the given ids, and the template's own end of a turn where it is not among them.
        end_ids: tokens after the answer's text that belong to the answer: its end token.

    Raises:
        UserError: chat was asked for and there is no template, the template is faulty, or nothing ends an answer.
    """

    def __init__(self, tokenizer: Any, mode: str, eos: Sequence[int]):
        if mode == "chat" and not tokenizer.chat_template:
            raise UserError(
                "data.template is chat but the tokenizer has no chat template; set data.template: raw, "
                "or add chat_template to its tokenizer_config.json"
            )
        if not eos:
            raise UserError(
                "the tokenizer has no end-of-sequence token: no answer could ever end; set eos_token in "
                "its tokenizer_config.json"
            )
        self.tokenizer, self.eos = tokenizer, list(eos)
        self.chat = mode == "chat" or (mode == "auto" and bool(tokenizer.chat_template))
        bos = tokenizer.bos_token_id
        own = encode(tokenizer, [_PROBE], special=True)[0][:1] if bos is not None else []
        self._bos = own if own == [bos] else []
        self._tail = self._derive_tail() if self.chat else ""
        self._tail_ids = encode(tokenizer, [self._tail])[0] if self._tail else []
        self.end_ids = self._derive_end()
        self.header_ids = self._derive_header()

    # ---- rendering

    def render(self, conversations: Sequence[Messages], tools: Sequence[Tools] | None = None) -> list[str]:
        """Text of conversations up to the place where the answer begins.

        Raises:
            Unrenderable: the template refuses one.
        """
        if self.chat:
            return self._render_all(conversations, generation=True, tools=tools)
        return [c[-1]["content"] for c in conversations]

    def prompts(self, heads: list[str]) -> list[list[int]]:
        """Token ids of rendered conversations."""
        if self.chat:
            rows = encode(self.tokenizer, heads)
            return [row if row[:1] == self._bos else self._bos + row for row in rows]
        rows = encode(self.tokenizer, heads, special=True)
        return [row[:-1] if len(row) > 1 and row[-1] in self.eos else row for row in rows]

    def answers(
        self,
        conversations: Sequence[Messages],
        heads: Sequence[str],
        prompt_ids: Sequence[list[int]],
        texts: Sequence[str],
        tools: Sequence[Tools] | None = None,
    ) -> list[list[int]]:
        """Token ids of answers as they follow their prompts, end token included.

        The whole conversation is tokenised and cut where its prompt ends, so that a tokenizer which treats the
        start of a text apart (SentencePiece) sees what a model would; where the cut does not fall between two
        tokens, the answer is tokenised by itself, which is what generation continues from.
        """
        if not self.chat:
            return [ids + self.end_ids for ids in encode(self.tokenizer, list(texts))]
        wholes = self._render_all(
            [[*c, {"role": "assistant", "content": t}] for c, t in zip(conversations, texts, strict=True)],
            generation=False,
            tools=tools,
        )
        rests = [
            whole[len(head) :] if whole.startswith(head) else text + self._tail
            for head, whole, text in zip(heads, wholes, texts, strict=True)
        ]
        full = self.prompts([head + rest for head, rest in zip(heads, rests, strict=True)])
        cut = [
            row[len(prompt) :] if row[: len(prompt)] == prompt else None
            for row, prompt in zip(full, prompt_ids, strict=True)
        ]
        alone = iter(encode(self.tokenizer, [rest for rest, row in zip(rests, cut, strict=True) if row is None]))
        return [self._close(row if row is not None else next(alone)) for row in cut]

    def trajectories(self, items: Sequence[Trajectory]) -> list[tuple[list[int], list[int]]]:
        """Token ids of references of several turns, and what of them the assistant has not written.

        The whole conversation is rendered. A turn of the assistant begins where the conversation before it, rendered
        for generation, ends, and goes as far as its end token; what comes between two of them, the turns of tools and
        users with their headers and the header of the assistant's next turn, is masked. Nothing here asks that the
        template mark the assistant's turns.

        Returns:
            For each item its ids, end token included, and begin and end of each masked span, one pair behind the other.

        Raises:
            Unrenderable: the template refuses a conversation, leaves a turn out, or renders a turn in another way once
                others follow, so that the assistant's part is unknown.
        """
        parts = self._segments(items)
        flat = encode(self.tokenizer, [segment for segments in parts for segment in segments])
        whole = self.prompts([item.head + "".join(segments) for item, segments in zip(items, parts, strict=True)])
        out, at = [], 0
        for index, (item, segments, full) in enumerate(zip(items, parts, whole, strict=True)):
            tokens = flat[at : at + len(segments)]
            at += len(segments)
            if item.prompt_ids + [t for ids in tokens for t in ids] != full:
                tokens = self._in_context(item, segments)
            out.append(self._masked(index, tokens))
        return out

    def _segments(self, items: Sequence[Trajectory]) -> list[list[str]]:
        """Text of each reference, cut where a turn of the assistant begins."""
        wholes = self._render_all([item.messages + item.turns for item in items], False, [i.tools for i in items])
        out = []
        for index, (item, whole) in enumerate(zip(items, wholes, strict=True)):
            starts = [place for place, m in enumerate(item.turns) if m["role"] == "assistant"]
            if len(starts) > MAX_TURNS:
                raise Unrenderable(
                    index,
                    f"the reference has {len(starts)} turns of the assistant, at most "
                    f"{MAX_TURNS} are read; set data.reference_turns: last, or leave the row out",
                )
            cuts = [len(item.head), *self._cuts(index, item, whole, starts[1:]), len(whole)]
            if not whole.startswith(item.head) or any(a >= b for a, b in zip(cuts, cuts[1:], strict=False)):
                raise self._unstable(index, len(item.messages))
            segments = [whole[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
            self._check_shown(index, item, starts, segments)
            out.append(segments)
        return out

    def _cuts(self, index: int, item: Trajectory, whole: str, starts: list[int]) -> list[int]:
        """Where in ``whole`` these turns of a reference begin; of the texts before them a few are held at a time."""
        out = []
        for at in range(0, len(starts), _TURNS):
            some = [item.messages + item.turns[:place] for place in starts[at : at + _TURNS]]
            try:
                texts = self._render_all(some, True, [item.tools] * len(some))
            except Unrenderable as e:
                raise Unrenderable(index, str(e)) from None
            for place, text in zip(starts[at : at + _TURNS], texts, strict=True):
                if not whole.startswith(text):
                    raise self._unstable(index, len(item.messages) + place)
                out.append(len(text))
        return out

    @staticmethod
    def _unstable(index: int, message: int) -> Unrenderable:
        return Unrenderable(
            index,
            f"the chat template renders what comes before message {message + 1} in another way "
            "once others follow, so the assistant's tokens cannot be separated from those of tools and "
            "users; set data.reference_turns: last",
        )

    def _check_shown(self, index: int, item: Trajectory, starts: list[int], segments: list[str]) -> None:
        """A template that knows nothing of tools leaves their turns out without a word."""
        for place, message in enumerate(item.turns):
            segment = segments[sum(begin <= place for begin in starts) - 1]
            words = [c["function"]["name"] for c in message.get("tool_calls", ())]
            words += re.findall(r"\w+", message["content"])[:1] if message["role"] != "assistant" else []
            if not all(word in segment for word in words):
                what = "tool calls" if message.get("tool_calls") else f"turn of role {message['role'][:40]!r}"
                raise Unrenderable(
                    index,
                    f"the chat template leaves out the {what} in message "
                    f"{len(item.messages) + place + 1}; take a template that shows them "
                    "(data.chat_template), or set data.reference_turns: last",
                )

    def _in_context(self, item: Trajectory, segments: list[str]) -> list[list[int]]:
        """Tokens of each segment as they follow what comes before it, where they differ from those of the segment
        alone; as in ``answers``, a cut that falls inside a token makes one there."""
        text, ids, out = item.head, item.prompt_ids, []
        for segment in segments:
            text += segment
            whole = self.prompts([text])[0]
            out.append(whole[len(ids) :] if whole[: len(ids)] == ids else encode(self.tokenizer, [segment])[0])
            ids = ids + out[-1]
        return out

    def _masked(self, index: int, segments: list[list[int]]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        spans: list[int] = []
        for tokens in segments[:-1]:
            end = next((place + 1 for place, token in enumerate(tokens) if token in self.eos), None)
            if end is None:
                raise Unrenderable(
                    index,
                    "the chat template ends the assistant's turns in no stop token when others "
                    "follow, so they cannot be separated from those of tools and users; set "
                    "data.reference_turns: last",
                )
            spans += [len(ids) + end, len(ids) + len(tokens)] if end < len(tokens) else []
            ids += tokens
        return ids + self._close(segments[-1]), spans

    def _render(self, messages: Messages, generation: bool) -> str:
        return self._render_all([messages], generation)[0]

    def _render_all(
        self, conversations: Sequence[Messages], generation: bool, tools: Sequence[Tools] | None = None
    ) -> list[str]:
        try:
            return render(self.tokenizer, conversations, generation, tools)
        except TemplateFault as e:
            roles = ", ".join(str(m.get("role")) for m in conversations[e.index])
            raise Unrenderable(e.index, f"the chat template refuses a conversation of roles {roles}: {e}") from None

    # ---- what the template puts around an answer

    def _derive_tail(self) -> str:
        whole = self._render(
            [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _ANSWER}], generation=False
        )
        if _ANSWER not in whole:
            raise UserError("the chat template does not show the assistant's answer; set data.template: raw")
        return whole[whole.rindex(_ANSWER) + len(_ANSWER) :]

    def _derive_end(self) -> list[int]:
        # A turn may end in a token that the checkpoint does not list as an end (a base model with a chat template).
        for ends in (self.eos, self.tokenizer.added_tokens_decoder):
            for place, token in enumerate(self._tail_ids):
                if token in ends:  # what follows the end token (a line feed) is never generated
                    if token not in self.eos:
                        self.eos.append(token)
                    return self._tail_ids[: place + 1]
        return [self.eos[0]]

    def _close(self, ids: list[int]) -> list[int]:
        """Cuts what the template puts after the end token, or adds the end token where it puts none."""
        body = len(ids) - len(self._tail_ids)
        if body >= 0 and ids[body:] == self._tail_ids:
            return ids[:body] + self.end_ids
        if self.end_ids[-1] in ids:  # the tail's tokens melted with the answer's last one
            return ids[: len(ids) - ids[::-1].index(self.end_ids[-1])]
        return ids + self.end_ids

    def _derive_header(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        messages: Messages = [{"role": "user", "content": _PROBE}]
        prompt = self.prompts(self.render([messages]))[0]
        turn = self._answer_turn(messages, prompt) if self.chat else []
        # Where BOS opens every turn, that of the turn is the one at the start of the text.
        begins = bos is not None and prompt[:1] == [bos] and turn[:1] != [bos]
        # The first token of an answer needs some context even without BOS and header.
        return [bos] * begins + turn or [bos if bos is not None else self.eos[0]]

    def _answer_turn(self, messages: Messages, prompt: list[int]) -> list[int]:
        """What the template puts between the user's turn and the answer."""
        with_header, without = self._render(messages, True), self._render(messages, False)
        if not with_header.startswith(without) or with_header == without:
            return []
        before = self.prompts([without])[0]
        if prompt[: len(before)] == before:
            return prompt[len(before) :]
        return encode(self.tokenizer, [with_header[len(without) :]])[0]
