"""A judge of one's own, asked over HTTP."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import Attempt, register

_MOST = 1 << 20
_LATER = {408, 425, 429, 500, 502, 503, 504}
"""What may be another time: the request was too early, too often, or met a fault of the service."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A service that moves is named by its new address, not followed: responses go nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@register("http")
def http(
    attempt: Attempt, data: Any = None, *, url: str, timeout: float = 60.0, retries: int = 4, wait: float = 1.0
) -> float:
    """What the service answers with: POST of ``{"id", "prompt", "response", "answer"}`` gives ``{"reward": number}``.

    ``id`` is a hash of the three others, by which a service may know what it has judged already.

    Args:
        attempt: the response.
        data: not used.
        url: of the service, http or https.
        timeout: seconds for one try.
        retries: after tries that a later one may mend (no connection, no answer, 408, 425, 429, 5xx).
        wait: seconds before the second try, doubled for each one after it.

    Raises:
        UserError: the service does not answer, refuses, or answers with something else.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"reward http: url {url!r} must begin with http:// or https://")
    asked = {"prompt": attempt.prompt, "response": attempt.response, "answer": attempt.answer}
    identity = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    body = json.dumps({"id": identity, **asked}).encode()
    for tried in range(retries + 1):
        if tried:
            time.sleep(wait * 2 ** (tried - 1))
        try:
            return _value(_post(url, body, timeout), url)
        except urllib.error.HTTPError as e:
            why = f"HTTP {e.code}"
            if e.code not in _LATER:
                raise UserError(f"reward http: {url} refuses with {why}; mend the service or the url") from None
        except (OSError, urllib.error.URLError) as e:
            why = str(getattr(e, "reason", e))
    raise UserError(
        f"reward http: {url} does not answer ({why}, {retries + 1} tries); start the service and give the same command "
        "again: what was judged is kept"
    )


def _post(url: str, body: bytes, timeout: float) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with _OPENER.open(request, timeout=timeout) as answer:
        read: bytes = answer.read(_MOST)
    return read


def _value(answer: bytes, url: str) -> float:
    try:
        return float(json.loads(answer)["reward"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"reward http: {url} answered {answer[:60]!r}; expected a JSON object with a number 'reward'"
        ) from None
