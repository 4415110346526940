"""Processes that are given jobs and keep what is costly for the next one."""
