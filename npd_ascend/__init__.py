"""Near-Policy Distillation on Ascend NPUs (arXiv:2605.05940)."""

__version__ = "0.1.0"
