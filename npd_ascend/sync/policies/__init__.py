"""One sync policy a file, called by the name of the file."""
