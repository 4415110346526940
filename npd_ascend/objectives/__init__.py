"""What training minimises: CE, divergences over the stored support, token weights, and the chunked head + loss.

Only ``chunked`` and ``support`` import MindSpore; the registries may be asked by rooms without an engine.
"""
