"""Training of one generation on packed rows."""
