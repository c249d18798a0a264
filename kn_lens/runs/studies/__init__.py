"""Studies: a run for each model, fact set and seed, in one directory."""
