"""log(e^a + e^b)."""

from collections.abc import Callable
from typing import Any


def log_mixture(a: Any, b: Any, log: Callable[[Any], Any]) -> Any:
    """Elementwise log(e^a + e^b) without overflow; ``log`` is the engine's logarithm."""
    high = a.maximum(b)
    return high + log((a - high).exp() + (b - high).exp())
