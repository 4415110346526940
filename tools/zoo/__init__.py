"""Small checkpoints of many layouts, and what is tried on each: parts of ``checkpoint_zoo.py``, used by tests as well."""
