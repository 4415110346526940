"""Monitors, one a file; see ``npd_ascend.monitors.registry``."""
