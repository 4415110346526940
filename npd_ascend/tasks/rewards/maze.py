"""A legal walk through the miniature's maze."""

from __future__ import annotations

from collections import deque
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import Attempt, register


@register("maze")
def maze(attempt: Attempt, data: Any = None) -> bool:
    """A legal walk from the prompt's first place to its second, within twice the shortest distance and 6 hops.

    ``data`` is ``{"neighbours": {place: [place, ...]}}``.
    """
    neighbours = data.get("neighbours") if isinstance(data, dict) else None
    if not isinstance(neighbours, dict):
        raise UserError(
            "reward maze needs a JSON file with the maze's 'neighbours': evaluate.checker_data, or data of its part in "
            "reward.parts"
        )
    ends = attempt.prompt.split()
    if len(ends) != 2 or not all(end in neighbours for end in ends):
        raise UserError(f"prompt {attempt.prompt!r} does not name two places of the maze; is it the right data?")
    here, goal = ends
    walk = attempt.response.split()
    distance = _distance(neighbours, here, goal)
    if distance is None or len(walk) > 2 * distance + 6:
        return False
    for there in walk:
        if there not in neighbours[here]:
            return False
        here = there
    return here == goal


def _distance(neighbours: dict[str, list[str]], start: str, goal: str) -> int | None:
    hops = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if here == goal:
            return hops[here]
        for there in neighbours[here]:
            if there not in hops:
                hops[there] = hops[here] + 1
                queue.append(there)
    return None
