"""Token weights; each file registers one."""
