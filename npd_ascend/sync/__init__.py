"""Sync policies: when the snapshot that answers the prompts is renewed. Knows no engine and nothing of the store."""
