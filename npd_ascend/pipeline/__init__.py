"""The executor of recipes: steps and their fingerprints, stage processes, sync policies, resume."""
