"""From a user's turn to token ids and back: what a chat template puts around prompts and answers.

Nothing here knows a model family. The header before an answer and the end of a turn are found by rendering
conversations with and without them and comparing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npd_ascend.data.render import TemplateFault, render
from npd_ascend.data.tokenizer import encode
from npd_ascend.errors import UserError

Messages = list[dict[str, Any]]

_PROBE = "ping"
_ANSWER = "QZXANSWERXZQ"  # letters only, so that no template trims or escapes it


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
            raise UserError("data.template is chat but the tokenizer has no chat template; set data.template: raw, "
                            "or add chat_template to its tokenizer_config.json")
        if not eos:
            raise UserError("the tokenizer has no end-of-sequence token: no answer could ever end; set eos_token in "
                            "its tokenizer_config.json")
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

    def render(self, conversations: Sequence[Messages]) -> list[str]:
        """Text of conversations up to the place where the answer begins."""
        if self.chat:
            return self._render_all(conversations, generation=True)
        return [c[-1]["content"] for c in conversations]

    def prompts(self, heads: list[str]) -> list[list[int]]:
        """Token ids of rendered conversations."""
        if self.chat:
            rows = encode(self.tokenizer, heads)
            return [row if row[:1] == self._bos else self._bos + row for row in rows]
        rows = encode(self.tokenizer, heads, special=True)
        return [row[:-1] if len(row) > 1 and row[-1] in self.eos else row for row in rows]

    def answers(self, conversations: Sequence[Messages], heads: Sequence[str], prompt_ids: Sequence[list[int]],
                texts: Sequence[str]) -> list[list[int]]:
        """Token ids of answers as they follow their prompts, end token included.

        The whole conversation is tokenised and cut where its prompt ends, so that a tokenizer which treats the
        start of a text apart (SentencePiece) sees what a model would; where the cut does not fall between two
        tokens, the answer is tokenised by itself, which is what generation continues from.
        """
        if not self.chat:
            return [ids + self.end_ids for ids in encode(self.tokenizer, list(texts))]
        wholes = self._render_all([[*c, {"role": "assistant", "content": t}]
                                   for c, t in zip(conversations, texts, strict=True)], generation=False)
        rests = [whole[len(head):] if whole.startswith(head) else text + self._tail
                 for head, whole, text in zip(heads, wholes, texts, strict=True)]
        full = self.prompts([head + rest for head, rest in zip(heads, rests, strict=True)])
        cut = [row[len(prompt):] if row[: len(prompt)] == prompt else None
               for row, prompt in zip(full, prompt_ids, strict=True)]
        alone = iter(encode(self.tokenizer, [rest for rest, row in zip(rests, cut, strict=True) if row is None]))
        return [self._close(row if row is not None else next(alone)) for row in cut]

    def _render(self, messages: Messages, generation: bool) -> str:
        return self._render_all([messages], generation)[0]

    def _render_all(self, conversations: Sequence[Messages], generation: bool) -> list[str]:
        try:
            return render(self.tokenizer, conversations, generation)
        except TemplateFault as e:
            roles = ", ".join(str(m.get("role")) for m in conversations[e.index])
            raise UserError(f"the chat template refuses a conversation of roles {roles}: {e}") from None

    # ---- what the template puts around an answer

    def _derive_tail(self) -> str:
        whole = self._render([{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _ANSWER}],
                             generation=False)
        if _ANSWER not in whole:
            raise UserError("the chat template does not show the assistant's answer; set data.template: raw")
        return whole[whole.rindex(_ANSWER) + len(_ANSWER):]

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
            return prompt[len(before):]
        return encode(self.tokenizer, [with_header[len(without):]])[0]
