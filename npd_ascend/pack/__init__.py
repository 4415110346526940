"""Kept samples into rows: one plan for each local epoch. Numpy alone."""
