"""Instruction-following difficulty, its gap between teacher and student, and the zones of that gap."""

from __future__ import annotations

import numpy as np

from npd_ascend.arrays import Array

MIN_NLL = 1e-6
"""An unconditioned NLL below this (nats a token) has no meaningful ratio: the sample's IFD is undefined."""

ZONES = ("degenerate", "proximal", "disconnect", "undefined")
DELTA = 0.8
"""δ of NPD (arXiv:2605.05940), its best upper bound of Δ-IFD."""


def ifd(nll_cond: Array, nll_uncond: Array, form: str) -> Array:
    """How much the prompt helps a model to predict the response; above 1 it does not help.

    ``loss_ratio``: L(y|x) / L(y), NPD eq. (3) and Cherry (Li et al. 2024, arXiv:2308.12032, eq. 4).
    ``ppl_ratio``: exp(L(y|x) − L(y)), Superfiltering (Li et al. 2024, arXiv:2402.00530).

    Args:
        nll_cond: [N] float64, mean NLL of the response given the prompt, nats a token.
        nll_uncond: [N] float64, the same without the prompt.
        form: ``loss_ratio`` or ``ppl_ratio``.

    Returns:
        [N] float64; NaN where an NLL is not finite or ``nll_uncond`` is below ``MIN_NLL``.
    """
    defined = np.isfinite(nll_cond) & np.isfinite(nll_uncond) & (nll_uncond >= MIN_NLL)
    out = np.full(len(nll_cond), np.nan)
    c, u = nll_cond[defined], nll_uncond[defined]
    if form == "loss_ratio":
        out[defined] = c / u
    elif form == "ppl_ratio":
        with np.errstate(over="ignore"):
            out[defined] = np.exp(c - u)
    else:
        raise ValueError(f"unknown form of IFD: {form}")
    return out


def delta_ifd(ifd_teacher: Array, ifd_student: Array) -> Array:
    """Δ-IFD = IFD of the teacher − IFD of the student that answered, NPD eq. (4). [N] float64, NaN where undefined."""
    with np.errstate(invalid="ignore"):
        delta = ifd_teacher - ifd_student
    return np.where(np.isfinite(delta), delta, np.nan)


def zone_of(delta: Array, upper: float = DELTA) -> Array:
    """Zone of each sample as a number into ``ZONES`` (NPD section 3.3).

    degenerate: Δ < 0, the teacher is surer of the answer than the student, which is short or trivial.
    proximal: 0 <= Δ <= δ, what the student can learn from. disconnect: Δ > δ, the teacher is lost.

    Args:
        delta: [N] Δ-IFD.
        upper: δ.

    Returns:
        [N] int8.
    """
    zone = np.full(len(delta), ZONES.index("undefined"), np.int8)
    zone[delta < 0] = ZONES.index("degenerate")
    zone[(delta >= 0) & (delta <= upper)] = ZONES.index("proximal")
    zone[delta > upper] = ZONES.index("disconnect")
    return zone
