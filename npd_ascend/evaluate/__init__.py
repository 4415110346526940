"""Checking answers, and how sure one may be of the accuracy found."""
