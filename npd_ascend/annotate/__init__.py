"""Packed prefill of rollouts: the teacher's top-k and the mean NLLs of both models."""
