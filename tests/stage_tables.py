"""The tables of a stage from made-up records, without a run."""

from types import SimpleNamespace

import pandas as pd

from kn_lens.runs.stage import Stage


def tables_of(stage: Stage, records: pd.DataFrame, *, n_resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """Return the tables that a stage makes of its records, where it needs nothing else of a run."""
    context = SimpleNamespace(
        all_records=lambda stage: records.copy(),
        relations=lambda: [],
        settings=SimpleNamespace(n_resamples=n_resamples, seed=seed),
    )
    return dict(stage.tables(context))
