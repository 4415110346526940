"""Figures of the paper (arXiv:2605.05940) that stand beside a run's own in the report."""

from __future__ import annotations

# Table 13: share of samples in each zone, early and late in training.
ZONES = {
    "paper, early": {"degenerate": 0.0260, "proximal": 0.9620, "disconnect": 0.0120},
    "paper, late": {"degenerate": 0.0377, "proximal": 0.9619, "disconnect": 0.0004},
}

# Section 3: the filter keeps 0 <= Δ-IFD <= δ.
DELTA = 0.8

# Table 19: (stage of this program, name in the paper, share of the total time); 365.79 hours of a node in all.
TIME = (
    ("rollout", "Rollout", 300 / 365.79),
    ("annotate_teacher", "Teacher annotation", 18 / 365.79),
    ("annotate_student", "Δ-IFD computation", 5 / 365.79),
    ("select", "Filtering", 0.04 / 365.79),
    ("pack", "Packing", 0.75 / 365.79),
    ("train", "Training", 42 / 365.79),
)

# Section C.1: KL(current‖generator) up to which the data count as near-policy.
LAG = 0.10
