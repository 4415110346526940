"""What training minimises: a weighted sum of terms, token weights, and the chunked head + loss.

Only ``chunked`` and ``support`` import MindSpore; the registries, and with them ``--dry-run``, need no engine.
"""
