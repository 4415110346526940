"""What the answers of a generation are worth; needs no engine."""
