"""Statistics of records, with bootstrap intervals over facts: what the tables of stages are made of."""

from kn_lens._core.bootstrap import (
    Statistic,
    bootstrap_table,
    bootstrap_tables,
    change_ratio,
    fact_mean,
    fact_share,
    perplexity,
    with_control,
)

__all__ = [
    "Statistic",
    "bootstrap_table",
    "bootstrap_tables",
    "change_ratio",
    "fact_mean",
    "fact_share",
    "perplexity",
    "with_control",
]
