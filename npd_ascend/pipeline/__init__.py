"""The conductor: generations, sync policies, stage processes, resume."""
