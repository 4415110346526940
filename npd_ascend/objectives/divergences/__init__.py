"""Divergences between teacher and student over the stored support; each file registers one."""
