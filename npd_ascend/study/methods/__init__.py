"""The methods that can be compared, one a file, called by the name of the file."""
