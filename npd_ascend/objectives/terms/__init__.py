"""Terms of the loss; each file registers one."""
