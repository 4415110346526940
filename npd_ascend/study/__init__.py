"""Comparisons of methods over tasks and seeds: which arms there are, how each runs, what was measured."""
