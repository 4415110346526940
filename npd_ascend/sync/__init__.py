"""Sync policies: when the snapshot that answers the prompts is refreshed. Knows no engine and nothing of the store."""
