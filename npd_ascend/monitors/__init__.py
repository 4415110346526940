"""Curves of a run for other programs, while it runs: ``registry`` says what a monitor is, ``feed`` serves it."""
