"""``npd doctor``: is everything there that a run needs, and what to do about what is not."""

from npd_ascend.ops.doctor.finding import Finding, render
from npd_ascend.ops.doctor.registry import examine

__all__ = ["Finding", "examine", "render"]
