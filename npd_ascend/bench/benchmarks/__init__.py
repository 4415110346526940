"""One benchmark a file, called by the name of the file."""
