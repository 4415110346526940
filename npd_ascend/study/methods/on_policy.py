"""Strict on-policy distillation: NPD's loss on answers of the student as it is at each step."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import LiveMethod, live


@live("on_policy")
class OnPolicy(LiveMethod):
    """Differs from NPD in nothing but the age of the answers: same λ, same divergence over the same k."""

    changes: ClassVar[Settings] = {"select.filter": "none", "select.upper_quantile": None, "select.lower": "auto",
                                   "select.upper": "auto", "select.lower_quantile": None, "sync.refreshes": 0}
    whole_vocabulary = False
