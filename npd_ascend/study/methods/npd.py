"""Near-Policy Distillation."""

from npd_ascend.study.method import Method, register


@register("npd")
class NPD(Method):
    """The task's configuration as it is."""
