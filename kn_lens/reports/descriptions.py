"""Text alternatives of figures: what each figure shows, in words, from the table that it draws.

A text alternative names the kind of the figure, the values that a reader would look for first, and their intervals. All
other values are in the table of the figure. Text from the data is as it is, not escaped.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from kn_lens._core.notation import NeuronKey
from kn_lens._core.wording import counted
from kn_lens.reports.style import NEURON_SETS, SCOPES, factor_label, neuron_names, neuron_sets_in

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 14
"""Largest number of rows that are described one by one; of more, the extremes and the median are."""
MOST_LAYERS = 3
"""Number of layers described for each neuron set: those with the most of its neurons."""
MOST_NEURONS = 3
"""Number of neurons described of a map: those in the largest shares of facts."""


def number_text(value: float, form: str) -> str:
    """Return a number in a format, with a minus sign, and without a sign if it is zero.

    >>> number_text(-0.25, "+.0%"), number_text(0.0001, "+.0%")
    ('−25%', '0%')
    """
    text = format(value, form.replace("~", ""))  # of a format for the axes of Plotly, which Python lacks
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def estimate_text(row: Mapping[Any, Any], form: str) -> str:
    """Return a value with its interval, if it has one.

    >>> estimate_text({"value": 0.5, "low": 0.25, "high": 0.75}, ".2f")
    '0.50 (0.25 to 0.75)'
    """
    value = number_text(row["value"], form)
    if row["low"] != row["low"]:  # NaN
        return value
    return f"{value} ({number_text(row['low'], form)} to {number_text(row['high'], form)})"


def layers_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.layer_distribution`` shows."""
    layers = sorted(table["layer"].unique().tolist())
    sentences = [f"Line chart of the share of the neurons in layers {layers[0]:.0f} to {layers[-1]:.0f}."]
    for neuron_set in neuron_sets_in(table.loc[table["neuron_set"] != "random"]):
        rows = table.loc[(table["neuron_set"] == neuron_set) & (table["value"] > 0)]
        parts = []
        for row in rows.sort_values("value", ascending=False, kind="stable").head(MOST_LAYERS).to_dict("records"):
            parts.append(f"{estimate_text(row, '.0%')} in layer {row['layer']:.0f}")
        if parts:
            sentences.append(f"{_label(neuron_set).capitalize()}: {_joined(parts)}.")
    even = table["control"].dropna()
    if len(even):
        sentences.append(f"An even spread would be {number_text(even.iloc[0], '.0%')} in each layer.")
    return " ".join(sentences)


def effects_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.effects`` shows."""
    sentences = [f"Dot plot of the relative change of the probability of the answer{_intervals_text(table)}."]
    for factor in sorted(table["factor"].unique().tolist()):
        of_factor = table.loc[table["factor"] == factor]
        parts = []
        for neuron_set in neuron_sets_in(of_factor):
            changes = []
            for scope, scope_label in SCOPES.items():
                cell = of_factor.loc[(of_factor["neuron_set"] == neuron_set) & (of_factor["scope"] == scope)]
                for row in cell.to_dict("records"):
                    changes.append(f"{estimate_text(row, '+.0%')} on {scope_label}")
            parts.append(f"{_label(neuron_set)} {_joined(changes)}")
        sentences.append(f"{factor_label(factor).capitalize()}: {'; '.join(parts)}.")
    if "paper" in table:
        published = table.loc[table["paper"].notna()]
        for row in published.to_dict("records"):
            value = number_text(row["paper"], "+.0%")
            sentences.append(f"Dai et al. (2022), {_label(row['neuron_set'])} {factor_label(row['factor'])}: {value}.")
    return " ".join(sentences)


def effects_by_relation_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.effects_by_relation`` shows, from the rows that it draws."""
    sentences = ["Dot plot of the relative change of the probability of the answer, by relation."]
    for factor in sorted(table["factor"].unique().tolist()):
        for neuron_set in neuron_sets_in(table):
            rows = table.loc[(table["factor"] == factor) & (table["neuron_set"] == neuron_set)]
            if len(rows):
                title = f"{_label(neuron_set).capitalize()} {factor_label(factor)}"
                sentences.append(f"{title}: {_rows_text(rows, 'relation', '+.0%')}.")
    return " ".join(sentences)


def doses_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.dose_response`` shows."""
    factors = sorted(table["factor"].unique().tolist())
    sentences = [
        "Line chart of the relative change of the probability of the answer, for factors of the activations from "
        f"{factors[0]:g} to {factors[-1]:g}; at factor 1 nothing changes."
    ]
    for neuron_set in neuron_sets_in(table):
        for scope, scope_label in SCOPES.items():
            rows = table.loc[(table["neuron_set"] == neuron_set) & (table["scope"] == scope)]
            rows = rows.sort_values("factor").drop_duplicates("factor")
            parts = []
            for row in rows.to_dict("records"):
                parts.append(f"{number_text(row['value'], '+.0%')} at {row['factor']:g}")
            if parts:
                sentences.append(f"{_label(neuron_set).capitalize()}, {scope_label}: {_joined(parts)}.")
    return " ".join(sentences)


def estimates_text(table: "pd.DataFrame", label: str, value: str, form: str) -> str:
    """Return what ``figures.estimates`` shows."""
    sentences = [f"Dot plot of {value}{_intervals_text(table)}: {_rows_text(table, label, form)}."]
    for column, title in (("control", "Control"), ("paper", "Dai et al. (2022)")):
        if column in table and table[column].notna().to_numpy().any():
            rows = table.loc[table[column].notna()]
            lowest = number_text(rows[column].min(), form)
            highest = number_text(rows[column].max(), form)
            sentences.append(f"{title}: {lowest if lowest == highest else f'{lowest} to {highest}'}.")
    return " ".join(sentences)


def positions_text(table: "pd.DataFrame", value: str) -> str:
    """Return what ``figures.position_map`` shows: the layer with the largest value at the tokens of each role."""
    sentences = [f"Heat map of {table['layer'].nunique():,} layers and {table['role'].nunique():,} roles of tokens."]
    by_role: dict[str, list[tuple[float, int]]] = {}
    for row in table.to_dict("records"):
        by_role.setdefault(row["role"], []).append((row[value], row["layer"]))
    for role, values in by_role.items():
        largest, layer = max(values, key=lambda item: abs(item[0]))
        sentences.append(f"{role.replace('_', ' ')}: largest in layer {layer}, {number_text(largest, '.3~g')}.")
    return " ".join(sentences)


def map_text(
    relations: Sequence[str],
    neurons: Sequence[NeuronKey],
    shares: Mapping[NeuronKey, Mapping[str, float]],
) -> str:
    """Return what ``figures.neuron_relation_map`` shows, for the neurons that it draws."""
    n_shared = sum(len(shares[neuron]) > 1 for neuron in neurons)
    sentences = [
        f"Map of {len(neurons):,} neurons and {len(relations):,} relations; {n_shared:,} of the neurons belong to "
        "facts of more than one relation."
    ]
    largest = sorted(neurons, key=lambda neuron: -sum(shares[neuron].values()))[:MOST_NEURONS]
    for neuron, name in zip(largest, neuron_names(largest), strict=True):
        parts = []
        for relation, share in shares[neuron].items():
            parts.append(f"{number_text(share, '.0%')} of the facts of {relation}")
        sentences.append(f"{name}: {_joined(parts)}.")
    return " ".join(sentences)


def runs_text(table: "pd.DataFrame", value: str, form: str) -> str:
    """Return what ``figures.runs_side_by_side`` shows."""
    sentences = [f"Dot plot of {value} of several runs{_intervals_text(table)}."]
    for statistic in dict.fromkeys(table["statistic"]):
        rows = table.loc[table["statistic"] == statistic].to_dict("records")
        parts = [f"{row['run']} {estimate_text(row, form)}" for row in rows]
        sentences.append(f"{str(statistic).capitalize()}: {_joined(parts)}.")
    return " ".join(sentences)


def depths_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.depth_side_by_side`` shows: the depth that half of the neurons lie at or below."""
    sentences = ["Line chart of the share of the neurons up to each depth of the model."]
    for run in dict.fromkeys(table["run"]):
        rows = table.loc[(table["run"] == run) & (table["value"] >= 0.5)].sort_values("depth")
        if len(rows):
            row = rows.iloc[0]
            sentences.append(f"{run}: {row['value']:.0%} lie in layers 0 to {row['layer']:.0f}.")
    return " ".join(sentences)


def circuit_text(nodes: "pd.DataFrame", edges: "pd.DataFrame | None") -> str:
    """Return what ``figures.circuit`` shows: its kinds of nodes, those with the largest scores, the widest edges."""
    counts = Counter(nodes["kind"].tolist())
    kinds = [counted(n_nodes, kind) for kind, n_nodes in counts.most_common()]
    layers = sorted(nodes["layer"].unique().tolist())
    sentences = [f"Graph of a circuit of {_joined(kinds)} in layers {layers[0]} to {layers[-1]}."]
    largest = nodes.assign(size=nodes["score"].abs()).sort_values("size", ascending=False, kind="stable")
    parts = []
    for row in largest.head(MOST_NEURONS).to_dict("records"):
        parts.append(f"{row['node']} {number_text(row['score'], '+.2f')}")
    sentences.append(f"Largest scores, in logits: {_joined(parts)}.")
    if edges is not None and len(edges):
        parts = []
        for row in edges.head(MOST_NEURONS).to_dict("records"):
            weight = number_text(row["weight"], "+.2f")
            parts.append(f"{row['source']} to {row['target']} ({row['input']}) {weight}")
        sentences.append(f"Of {len(edges):,} edges the largest: {_joined(parts)}.")
    return " ".join(sentences)


def editors_text(panels: "Mapping[str, pd.DataFrame]") -> str:
    """Return what ``figures.editors`` shows, by the titles of its panels."""
    sentences = ["Dot plots of shares for each editor, beside controls."]
    for title, rows in panels.items():
        parts = []
        for editor in dict.fromkeys(rows["editor"]):
            of_editor = rows.loc[rows["editor"] == editor].set_index("neuron_set")
            if "found" not in of_editor.index:
                continue
            text = f"{editor} {estimate_text(of_editor.loc['found'].to_dict(), '.0%')}"
            if "random" in of_editor.index:
                text += f", {number_text(of_editor.loc['random', 'value'], '.0%')} at random neurons"
            parts.append(text)
        sentences.append(f"{title}: {'; '.join(parts)}.")
    return " ".join(sentences)


def circuit_curve_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.circuit_curve`` shows, at its smallest, middle and largest size."""
    sizes = sorted(table["size"].unique().tolist())
    chosen = list(dict.fromkeys([sizes[0], sizes[len(sizes) // 2], sizes[-1]]))
    sentences = [f"Line charts of circuits of {sizes[0]:,.0f} to {sizes[-1]:,.0f} nodes{_intervals_text(table)}."]
    for measure in dict.fromkeys(table["measure"]):
        for neuron_set in neuron_sets_in(table):
            rows = table.loc[(table["measure"] == measure) & (table["neuron_set"] == neuron_set)]
            rows = rows.drop_duplicates("size").set_index("size")
            parts = [
                f"{number_text(rows.loc[size, 'value'], '.2f')} at {size:,.0f}" for size in chosen if size in rows.index
            ]
            if not parts:
                continue
            name = "circuit" if neuron_set == "found" else _label(neuron_set).replace("neurons", "nodes")
            sentences.append(f"{str(measure).capitalize()}, {name}: {_joined(parts)}.")
    return " ".join(sentences)


def predictions_text(table: "pd.DataFrame") -> str:
    """Return what ``figures.predictions`` shows."""
    rows = table.to_dict("records")
    n_fallen = sum(row["after"] < row["before"] for row in rows)
    furthest = max(rows, key=lambda row: abs(row["after"] - row["before"]))
    before = fmean(row["before"] for row in rows)
    after = fmean(row["after"] for row in rows)
    return (
        f"Dot plot of the probability of the answer in {len(rows):,} prompts: {before:.3f} before and {after:.3f} "
        f"after on average; it falls in {n_fallen:,} of them. It changes most in “{furthest['text']}”, from "
        f"{furthest['before']:.3f} to {furthest['after']:.3f}."
    )


def _rows_text(table: "pd.DataFrame", label: str, form: str) -> str:
    """Return the values of rows: one by one, or their extremes and median."""
    table = table.loc[table["value"].notna()]
    rows = table.to_dict("records")
    if len(rows) <= MOST_ROWS:
        return "; ".join(f"{row[label]} {estimate_text(row, form)}" for row in rows) or "no values"
    ordered = table.sort_values("value", kind="stable").to_dict("records")
    lowest = ordered[0]
    highest = ordered[-1]
    middle = number_text(median(row["value"] for row in rows), form)
    return (
        f"{len(rows):,} values from {number_text(lowest['value'], form)} ({lowest[label]}) to "
        f"{number_text(highest['value'], form)} ({highest[label]}), median {middle}"
    )


def _intervals_text(table: "pd.DataFrame") -> str:
    return ", with 95% intervals" if table["low"].notna().to_numpy().any() else ""


def _label(neuron_set: str) -> str:
    return NEURON_SETS.get(neuron_set, neuron_set)


def _joined(parts: Iterable[str]) -> str:
    """Return an enumeration.

    >>> _joined(["a", "b", "c"])
    'a, b and c'
    """
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
