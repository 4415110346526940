"""The network class, and weights between Hugging Face folders and it."""
