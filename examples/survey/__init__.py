"""A stage: what the answers of a generation look like."""
