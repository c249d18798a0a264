"""What to do about updates that have no effect, said alike by the commands and by the report."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

STRENGTH_ADVICE = "kn_lens.choose_lambdas measures the strengths that a model tolerates"
NO_SUCCESS = f"No update puts its new answer on top; try other lambdas, such as half or twice. {STRENGTH_ADVICE}."


def has_no_success(table6: "pd.DataFrame | None") -> bool:
    """Return whether a table of updates has the success of found neurons in the facts' own wordings, and it is 0."""
    if table6 is None:
        return False
    own = table6.loc[
        (table6["question"] == "own wording") & (table6["neuron_set"] == "found") & (table6["measure"] == "success")
    ]
    return bool(len(own)) and bool((own["value"] == 0).all())
