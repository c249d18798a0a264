"""Notes on tables of a run, in the same words in the commands and in the report: what to try, and what is left out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

STRENGTH_ADVICE = "kn_lens.choose_lambdas measures the strengths that a model tolerates"
NO_SUCCESS = f"No update puts its new answer on top; try other lambdas, such as half or twice. {STRENGTH_ADVICE}."

ONE_RELATION = "Left out, as all measured facts are of one relation"
"""Beginning of the notes on what needs facts of two relations."""
EFFECTS_ON_ANOTHER = "effects on a fact of another relation"
SCOPES = ("scope", "own", "other", EFFECTS_ON_ANOTHER)
QUESTIONS = ("question", "same relation", "other relations", "effects on facts of other relations")
ACROSS_RELATIONS = {"figures4_5": SCOPES, "dose_response": SCOPES, "table5": QUESTIONS, "table6": QUESTIONS}
"""Tables that compare facts of a relation with facts of others: the column, both of its values, and the contents."""


def one_relation_note(name: str, table: "pd.DataFrame") -> str:
    """Return a note that a table lacks what needs facts of two relations; an empty string if it lacks nothing.

    Args:
        name: the name of the table in the run.
        table: the table.
    """
    name = name.removesuffix("_by_relation")
    if name == "table2":
        across = table.loc[table["statistic"] == "shared_across", "value"]
        return f"{ONE_RELATION}: neurons that facts of different relations share." if across.isna().all() else ""
    if name not in ACROSS_RELATIONS:
        return ""
    column, within, across, contents = ACROSS_RELATIONS[name]
    values = set(table[column])
    return f"{ONE_RELATION}: {contents}." if within in values and across not in values else ""


def has_no_success(table6: "pd.DataFrame | None") -> bool:
    """Return whether a table of updates has the success of found neurons in the facts' own wordings, and it is 0."""
    if table6 is None:
        return False
    own = table6.loc[
        (table6["question"] == "own wording") & (table6["neuron_set"] == "found") & (table6["measure"] == "success")
    ]
    return bool(len(own)) and bool((own["value"] == 0).all())
