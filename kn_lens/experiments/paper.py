"""What Dai et al. (2022) report, on bert-base-cased and ParaRel: the values that stand beside ours."""

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
"""Figures 4 and 5: mean over relations of the change of own facts, by factor and kind of neurons."""
