"""Benchmarks: what they ask and how answers are scored, through lm-eval over the rollout workers; tables of the scores.

``registry.py``, ``rows.py``, ``results.py`` and ``table.py`` need no engine; ``harness.py`` and ``lm.py`` run in the
rollout environment.
"""
