"""Values that Dai et al. (2022) report for bert-base-cased and ParaRel, shown beside those of a run."""

TABLE_2 = {
    ("neurons_per_fact", "found"): 4.13,
    ("neurons_per_fact", "baseline"): 3.96,
    ("shared_within", "found"): 1.23,
    ("shared_within", "baseline"): 2.85,
    ("shared_across", "found"): 0.09,
    ("shared_across", "baseline"): 1.92,
}
"""By statistic and kind of neurons."""

CHANGE_RATIO = {
    (0.0, "found"): -0.2903,
    (0.0, "baseline"): -0.0147,
    (2.0, "found"): 0.3117,
    (2.0, "baseline"): -0.0127,
}
"""Figures 4 and 5: mean over relations of the change of a fact's own probability, by factor and kind of neurons."""
