"""Small checkpoints of many layouts, and what is tried on each; tests use them as well as ``checkpoint_zoo.py``."""
