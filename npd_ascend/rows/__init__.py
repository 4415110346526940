"""Samples into rows of fixed length: packing, order, collation. Plain numpy, for annotate, pack and train."""
