"""Who computes the runs of a study: this process, others on this machine, or Ray."""
