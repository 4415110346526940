"""The methods that can be compared; each file registers one, or one family."""
