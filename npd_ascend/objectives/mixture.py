"""log(e^a + e^b)."""

from typing import Any

from npd_ascend.models.elementwise import log


def log_mixture(a: Any, b: Any) -> Any:
    """Elementwise log(e^a + e^b) without overflow."""
    high = a.maximum(b)
    return high + log((a - high).exp() + (b - high).exp())
