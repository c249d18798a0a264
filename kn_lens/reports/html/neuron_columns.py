"""The columns by which tables of a run tell neurons apart."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

KEY_COLUMNS = ["layer", "expert", "index"]
"""What a neuron's key holds; NaN for the expert in a layer with one MLP."""


def neuron_cells(records: "pd.DataFrame", *names: str) -> "pd.DataFrame":
    """Return one row for each neuron of records of the stage ``neurons``: `KEY_COLUMNS` after the named columns."""
    cells = records.loc[:, [*names, *KEY_COLUMNS]].explode(KEY_COLUMNS).dropna(subset=["layer"])
    return cells.astype({"layer": int, "expert": float, "index": int})


def without_missing_experts(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table without the column ``expert`` where no neuron is one of an expert."""
    if "expert" in table and not table["expert"].notna().to_numpy().any():
        return table.drop(columns="expert")
    return table
