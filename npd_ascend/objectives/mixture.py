"""log(e^a + e^b) with tensor methods."""

from typing import Any


def log_mixture(a: Any, b: Any) -> Any:
    """Elementwise log(e^a + e^b) without overflow."""
    high = a.maximum(b)
    return high + ((a - high).exp() + (b - high).exp()).log()
