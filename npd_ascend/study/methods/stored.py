"""Methods whose data is made before training: ordinary runs with another source and loss."""

from npd_ascend.study.method import stored

_FIXED = {"sync__refreshes": 0, "select__filter": "none", "select__lower": "auto", "select__upper": "auto",
          "select__lower_quantile": None, "select__upper_quantile": None}

stored("npd")
"""The task's configuration as it stands."""
stored("sft", rollout__source="reference", train__loss__kd_weight=0.0, train__loss__ce_labels="reference", **_FIXED)
"""CE on the data's answers."""
stored("supkd", rollout__source="reference", train__loss__ce_labels="reference", **_FIXED)
"""(1 − λ) CE + λ top-k KL on the data's answers (Hinton et al. 2015; Sanh et al. 2019)."""
stored("seqkd", rollout__source="teacher", train__loss__kd_weight=0.0, **_FIXED)
"""CE on the teacher's answers (Kim & Rush, arXiv:1606.07947)."""
stored("off_policy", **_FIXED)
"""The initial student's answers, never renewed, none left out: NPD without filter and update."""
