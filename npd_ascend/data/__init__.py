"""Prompt files in, token ids out: readers, tokenizer, chat template, the ``prepare`` stage."""
