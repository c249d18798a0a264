"""The page of a comparison: runs side by side, from the tables of a ``Comparison``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from kn_lens._core.intervals import FEWEST
from kn_lens.reports import figures
from kn_lens.reports.compare.comparison import Comparison
from kn_lens.reports.compare.estimates import OF_EDITORS
from kn_lens.reports.descriptions import estimate_text, number_text
from kn_lens.reports.html.page import Column, Grid, grid
from kn_lens.reports.html.template import figures_json, rendered
from kn_lens.reports.html.wording import cell_label, model_name, table_title
from kn_lens.reports.style import description_of

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

FACT_SETS = ("known_by_all", "shared", "measured")
"""Sets of facts that all runs have in common, in the order of the page."""
PERCENTAGES = {
    "accuracy": ".1%",
    "known": ".1%",
    "mean_depth": ".0%",
    "suppress_at_subject": "+.1%",
    "circuit_at_read": ".0%",
    "query_depth": ".0%",
    "taken": ".0%",
    "degenerate": ".0%",
    "smallest_suffices": ".0%",
    "consistent": ".0%",
    **dict.fromkeys(OF_EDITORS, ".0%"),
}
CHANGES = {
    "suppress_own": "suppressed, own fact",
    "suppress_other": "suppressed, other fact",
    "amplify_own": "amplified, own fact",
    "amplify_other": "amplified, other fact",
}
"""Statistics that are changes of the answer's probability, with the labels of their figure."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A figure of the page."""

    name: str
    title: str
    caption: str
    figure: "Figure"


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison as HTML."""
    runs = comparison.runs["run"].tolist()
    panels = _panels(comparison)
    groups = []
    for fact_set in FACT_SETS:
        values = comparison.values
        rows = values.loc[(values["fact_set"] == fact_set) & values["neuron_set"].isin(["", "found"])]
        if len(rows):
            title = f"Facts {cell_label('fact_set', fact_set)}"
            groups.append({"title": title, "grid": _side_by_side(comparison, fact_set, rows, runs)})
    heading = " beside ".join(runs) if len(runs) == 2 else ", ".join(runs)
    n_shared = comparison.runs["shared"].iloc[0]
    return rendered(
        "comparison.html",
        {"core": {"figures": figures_json({panel.name: panel.figure for panel in panels})}},
        title=f"{heading} - kn_lens",
        heading=heading,
        about=f"{len(runs)} runs on the same {n_shared:,} facts.",
        runs=list(map(_run_card, comparison.runs.to_dict("records"))),
        notes=comparison.notes,
        fewest=FEWEST,
        is_pair=len(runs) == 2,
        has_p=_has_p(comparison.differences),
        groups=groups,
        panels=list(map(_panel_entry, panels)),
        tables=_tables(comparison),
    )


def _run_card(row: dict[Any, Any]) -> dict[str, Any]:
    """Return the card of a run."""
    return {
        "name": row["run"],
        "model": model_name(row["model"]) or row["architecture"],
        "meaning": (
            f"a {row['kind']} model of {row['n_params']:,} parameters, {row['n_layers']} layers of {row['d_mlp']:,} "
            "MLP neurons"
        ),
        "counts": [
            ("facts of the run", f"{row['facts']:,}"),
            ("queried in all models", f"{row['shared']:,}"),
            ("known by the model", f"{row['own']:,}"),
            ("known by all models", f"{row['known_by_all']:,}"),
        ],
    }


def _side_by_side(comparison: Comparison, fact_set: str, rows: "pd.DataFrame", runs: list[str]) -> Grid:
    """Return one row for each statistic, with a column for each run; for two runs, their difference too."""
    columns = [Column(title="statistic", number=False)]
    for run in runs:
        columns += [Column(title=run, number=True), Column(title=f"{run}, control", number=True)]
    is_pair = len(runs) == 2
    if is_pair:
        columns.append(Column(title="difference", number=True))
    if is_pair and _has_p(comparison.differences):
        columns.append(Column(title="p of relations", number=True))
    lines = []
    for statistic in dict.fromkeys(rows["statistic"]):
        form = _form(statistic)
        line = [cell_label("statistic", statistic)]
        for run in runs:
            cell = rows.loc[(rows["statistic"] == statistic) & (rows["run"] == run)].to_dict("records")
            line += [estimate_text(cell[0], form), _number_or_empty(cell[0]["control"], form)] if cell else ["", ""]
        if is_pair:
            line += _difference(comparison.differences, fact_set, statistic, form)[: len(columns) - len(line)]
        lines.append(line)
    return Grid(columns=columns, rows=lines)


def _difference(differences: "pd.DataFrame", fact_set: str, statistic: str, form: str) -> list[str]:
    """Return the difference of two runs with its interval, and its p value."""
    is_shown = (differences["fact_set"] == fact_set) & (differences["statistic"] == statistic)
    found = differences.loc[is_shown].to_dict("records")
    if not found:
        return ["", ""]
    row = found[0]
    return [estimate_text(row, f"+{form.lstrip('+')}"), _number_or_empty(row["p_relations_holm"], ".3f")]


def _has_p(differences: "pd.DataFrame") -> bool:
    """Return whether a difference was tested over relations, which needs six of them."""
    return bool(differences["p_relations_holm"].notna().to_numpy().any())


def _number_or_empty(value: float, form: str) -> str:
    return "" if value != value else number_text(value, form)


def _form(statistic: str) -> str:
    """Return the number format of a statistic."""
    return "+.1%" if statistic in CHANGES else PERCENTAGES.get(statistic, ".2f")


def _panels(comparison: Comparison) -> list[_Panel]:
    """Return the figures: of the facts that all models know, or else of those that all were queried for."""
    panels = []
    values = comparison.values
    is_known = (values["fact_set"] == "known_by_all") & (values["neuron_set"] == "found")
    changes = values.loc[is_known & values["statistic"].isin(list(CHANGES))]
    if len(changes):
        labels = [CHANGES[name] for name in changes["statistic"]]
        figure = figures.runs_side_by_side(
            changes.assign(statistic=labels),
            title="Effects of the neurons",
            value=figures.CHANGE,
            form="+.0%",
        )
        caption = (
            "Mean over relations of the relative change of the answer's probability when a fact's neurons are "
            "suppressed or doubled, for facts that all models know. Control: random neurons of the same layers."
        )
        panels.append(_Panel(name="effects", title="Effects of the neurons", caption=caption, figure=figure))
    depth = comparison.depth.loc[comparison.depth["fact_set"] == "known_by_all"]
    if len(depth):
        caption = (
            "Share of a fact's neurons in the layers up to each depth, for facts that all models know. Depth 0 is the "
            "input of the first layer, 100% the output of the last."
        )
        figure = figures.depth_side_by_side(depth)
        panels.append(_Panel(name="depth", title="Depth of the neurons", caption=caption, figure=figure))
    return panels


def _panel_entry(panel: _Panel) -> dict[str, Any]:
    # Plotly builds the attributes of a layout at run time.
    layout = cast("Any", panel.figure.layout)
    return {
        "name": panel.name,
        "title": panel.title,
        "caption": panel.caption,
        "height": layout.height,
        "description": description_of(panel.figure),
    }


def _tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Return all tables that have rows, without the paths of a machine."""
    entries = []
    for name, table in comparison.tables.items():
        if len(table):
            shown = table.drop(columns="path", errors="ignore")
            if "model" in shown:
                shown = shown.assign(model=shown["model"].map(model_name))
            entries.append({"name": name, "title": table_title(name), "grid": grid(shown, name)})
    return entries
