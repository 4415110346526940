"""One answer checker a file, called by the name of the file."""
