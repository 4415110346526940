"""One task a file, called by the name of the file."""
