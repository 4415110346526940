"""Which prompts a generation answers."""
