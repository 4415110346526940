"""Instructions that can be verified, by the checkers of IFEval (arXiv:2311.07911) as lm-eval keeps them."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import Attempt, register
from npd_ascend.tasks.worker import Workers

_SECONDS = 20.0
_WORKERS = Workers(
    "npd_ascend.tasks.rewards.ifeval:followed",
    "npd_ascend.tasks.rewards.ifeval:usable",
    "run scripts/setup_env.sh; its sentences need nltk's punkt_tab, in a folder that NLTK_DATA names",
)


@register("ifeval", needs_answer=True, check=_WORKERS.check)
def ifeval(attempt: Attempt, data: Any = None, *, loose: bool = False, share: bool = False) -> float:
    """All instructions are followed (prompt-level; strict, or loose).

    The answer is a JSON object with ``instruction_id_list`` and ``kwargs``, as in the data set.

    Args:
        attempt: the response.
        data: not used.
        loose: the best of the response without first or last line or asterisks counts.
        share: the share of instructions that are followed, instead of whether all are.
    """
    if attempt.answer is None:
        return 0.0
    try:
        wanted = json.loads(attempt.answer)
        ids, kwargs = list(wanted["instruction_id_list"]), [dict(k) for k in wanted["kwargs"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"answer {attempt.answer[:80]!r} is no JSON object with instruction_id_list and kwargs, which reward "
            "ifeval reads"
        ) from None
    asked = {"ids": ids, "kwargs": kwargs, "prompt": attempt.prompt, "response": attempt.response, "loose": loose}
    found = _WORKERS.ask(_SECONDS, **asked)
    if not found:
        return 0.0
    return sum(found) / len(found) if share else float(all(found))


def followed(ids: list[str], kwargs: list[dict[str, Any]], prompt: str, response: str, loose: bool) -> list[bool]:
    """In a worker: which of the instructions the response follows."""
    from lm_eval.tasks.ifeval import utils

    given = utils.InputExample(key=0, instruction_id_list=ids, prompt=prompt, kwargs=kwargs)
    test = utils.test_instruction_following_loose if loose else utils.test_instruction_following_strict
    return [bool(x) for x in test(given, response).follow_instruction_list]


def usable() -> None:
    """In a worker: lm-eval is there, and so is what it would otherwise fetch from the network."""
    if importlib.util.find_spec("lm_eval") is None:  # nltk alone, which others need too, takes seconds to import
        raise ImportError("there is no lm-eval")
    import nltk

    nltk.data.find("tokenizers/punkt_tab")
    importlib.import_module("lm_eval.tasks.ifeval.utils")
