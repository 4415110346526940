"""One filter a file; each registers itself, and every file here is found by its being here."""
