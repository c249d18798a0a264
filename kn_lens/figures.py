"""Figures from tables, as Plotly figures: of a run, of an attribution, of an effect.

Every function takes a table (pandas) and draws what it says and no more: values as marks, their 95% intervals as error
bars, controls in grey, the paper's values as diamonds where the table has them. Kinds of neurons differ in colour and
in shape; the colours are told apart by colour-blind eyes too, and stand out from white and from black. Text out of the
data (names of relations, facts, tokens) is shown as it is, also where it looks like markup.

    layer_distribution     figure3                     share of the neurons by layer
    effects                figures4_5                  change of the answer's probability, own and other facts
    effects_by_relation    figures4_5_by_relation      the same for each relation
    dose_response          dose_response               change by the factor that activations are multiplied with
    estimates              stability, methods, ...     any table of values with intervals
    neuron_relation_map    neurons by relation         which relations share which neurons
    neuron_scores          scores of neurons           a fact's neurons
    predictions            ``measure``                 probability of the answer before and after, by prompt

Plotly is imported when the first figure is drawn.
"""

from typing import TYPE_CHECKING

from kn_lens._figure_files import save_figures
from kn_lens._figure_parts import (
    BLUE,
    FACTORS,
    GREY,
    KINDS,
    LOOKS,
    MARGINS,
    PERCENT,
    ROW,
    SCOPES,
    SHARES,
    SHARES_ON_DARK,
    across,
    add_paper,
    bars,
    blank,
    check_columns,
    kinds_of,
    label_rows,
    marker,
    panels_of,
    plain,
    with_zero,
)
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = [
    "dose_response",
    "effects",
    "effects_by_relation",
    "estimates",
    "layer_distribution",
    "neuron_relation_map",
    "neuron_scores",
    "predictions",
    "save_figures",
]

CHANGE = "change of P(answer)"
TOP = 40
"""Rows of a map of neurons, at most."""


def layer_distribution(table: "pd.DataFrame") -> "Figure":
    """Draw how the neurons of all facts spread over the layers.

    Args:
        table: ``figure3``: ``neurons``, ``layer``, ``value`` (a share), ``low``, ``high``, ``n_neurons``, ``control``.

    Raises:
        ArgumentError: a column is missing.
    """
    check_columns(table, "neurons", "layer", "value", "low", "high", "control")
    kinds = [kind for kind in kinds_of(table) if kind != "random"]  # those lie where the found ones lie
    figure = blank("Distribution over layers", "layer", "share of the neurons", height=380)
    for place, kind in enumerate(kinds):
        rows = table.loc[table["neurons"] == kind]
        shift = 0.12 * (place - (len(kinds) - 1) / 2)
        figure.add_scatter(
            x=(rows["layer"] + shift).tolist(),
            y=rows["value"].tolist(),
            error_y=bars(rows),
            mode="lines+markers",
            name=KINDS.get(kind, plain(kind)),
            marker=marker(kind),
            line={"color": marker(kind)["color"], "width": 1.5},
            customdata=rows.loc[:, ["layer", "low", "high"]].to_numpy().tolist(),
            hovertemplate="layer %{customdata[0]}: %{y:.1%} [%{customdata[1]:.1%}, %{customdata[2]:.1%}]",
        )
    even = table.drop_duplicates("layer")
    figure.add_scatter(
        x=even["layer"].tolist(), y=even["control"].tolist(), mode="lines", name="even spread",
        line={"color": GREY, "dash": "dash", "width": 1.5}, hovertemplate="%{y:.1%}",
    )  # fmt: skip
    layers = sorted(table["layer"].unique().tolist())
    step = max(1, len(layers) // 12)
    figure.update_xaxes(tickvals=layers[::step], range=[layers[0] - 0.5, layers[-1] + 0.5])
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def effects(table: "pd.DataFrame") -> "Figure":
    """Draw what switching neurons off and turning them up does, on the fact itself and on others.

    Args:
        table: ``figures4_5``, or what ``effect_table`` returns, one or more of them, with the ``factor`` put in:
            ``factor``, ``neurons``, ``facts``, ``value`` or ``change_ratio``, ``low``, ``high``; ``paper`` where there
            is one.

    Raises:
        ArgumentError: a column is missing.
    """
    table = _of_effects(table)
    kinds, factors = kinds_of(table), sorted(table["factor"].unique().tolist())
    figure = panels_of("Effect of the neurons", [FACTORS.get(one, f"factor {one:g}") for one in factors])
    height = {kind: len(kinds) - place for place, kind in enumerate(kinds)}
    for row, factor in enumerate(factors, start=1):
        for scope, name in SCOPES.items():
            for kind in kinds:
                cell = table.query("factor == @factor and neurons == @kind and facts == @scope")
                figure.add_scatter(
                    **across(cell, [height[kind] + (0.15 if scope == "own" else -0.15)] * len(cell)),
                    name=name,
                    legendgroup=scope,
                    showlegend=row == 1 and kind == kinds[0],
                    marker=marker(kind, hollow=scope == "other"),
                    hovertemplate=f"{KINDS.get(kind, plain(kind))}, {name}: {PERCENT}",
                    row=row,
                    col=1,
                )
        if "paper" in table:
            cell = table.loc[(table["factor"] == factor) & table["paper"].notna()]
            add_paper(figure, cell["paper"], [height[kind] for kind in cell["neurons"]], "+.1%", row)
    label_rows(figure, {height[kind]: KINDS.get(kind, plain(kind)) for kind in kinds}, 2 * ROW, len(factors))
    figure.update_xaxes(tickformat="+.0%")
    figure.update_xaxes(title_text=CHANGE, row=len(factors), col=1)
    return with_zero(figure)


def _of_effects(table: "pd.DataFrame", *columns: str) -> "pd.DataFrame":
    """Return a table of effects as runs have it, where ``effect_table`` says ``change_ratio``."""
    table = table.rename(columns={"change_ratio": "value"})
    check_columns(table, "factor", "neurons", "facts", *columns, "value", "low", "high")
    return table


def effects_by_relation(table: "pd.DataFrame") -> "Figure":
    """Draw the effect on the facts themselves for each relation, beside that of random neurons.

    Args:
        table: ``figures4_5_by_relation``: as for ``effects``, and ``relation``.

    Raises:
        ArgumentError: a column is missing, or there are no rows of such neurons.
    """
    table = _of_effects(table, "relation")
    own = table.loc[(table["facts"] == "own") & table["neurons"].isin(["found", "random"])]
    if own.empty:
        raise ArgumentError("The table has no rows of found or random neurons on the facts themselves.")
    figure = blank("Effect by relation", CHANGE, None)
    factors = sorted(own["factor"].unique().tolist())
    first = own.loc[(own["factor"] == factors[0]) & (own["neurons"] == "found")].sort_values("value", ascending=False)
    relations = dict.fromkeys([*first["relation"], *own["relation"]])
    height = {relation: place for place, relation in enumerate(relations, start=1)}
    for kind in ("random", "found"):
        for factor in factors:
            rows = own.loc[(own["factor"] == factor) & (own["neurons"] == kind)]
            figure.add_scatter(
                **across(rows, [height[relation] for relation in rows["relation"]]),
                name=f"{KINDS[kind]} {FACTORS.get(factor, f'factor {factor:g}')}",
                marker=marker(kind, hollow=factor > 1),
                text=[plain(relation) for relation in rows["relation"]],
                hovertemplate="%{text}: " + PERCENT,
            )
    label_rows(figure, {place: plain(relation) for relation, place in height.items()}, ROW)
    figure.update_xaxes(tickformat="+.0%")
    return with_zero(figure)


def dose_response(table: "pd.DataFrame") -> "Figure":
    """Draw the change of the answer's probability by the factor that the neurons' activations are multiplied with.

    Args:
        table: ``dose_response``: as for ``effects``. The point at factor 1, where nothing changes, is drawn with it.

    Raises:
        ArgumentError: a column is missing.
    """
    import pandas as pd

    table = _of_effects(table)
    figure = blank("Dose response", "factor of the activations", CHANGE, height=420)
    for kind in kinds_of(table):
        for scope, name in SCOPES.items():
            rows = table.query("neurons == @kind and facts == @scope")
            if rows.empty:
                continue
            unchanged = pd.DataFrame({"factor": [1.0], "value": [0.0], "low": [0.0], "high": [0.0]})
            rows = pd.concat([rows.loc[rows["factor"] != 1], unchanged], ignore_index=True).sort_values("factor")
            label = f"{KINDS.get(kind, plain(kind))}, {'own fact' if scope == 'own' else 'other fact'}"
            figure.add_scatter(
                x=rows["factor"].tolist(),
                y=rows["value"].tolist(),
                error_y=bars(rows),
                mode="lines+markers",
                name=label,
                marker=marker(kind, hollow=scope == "other"),
                line={"color": marker(kind)["color"], "dash": "solid" if scope == "own" else "dot", "width": 1.5},
                customdata=rows.loc[:, ["low", "high"]].to_numpy().tolist(),
                hovertemplate=f"{name}, factor %{{x}}: %{{y:+.1%}} [%{{customdata[0]:+.1%}}, %{{customdata[1]:+.1%}}]",
            )
    figure.update_xaxes(tickvals=sorted({1.0, *table["factor"].tolist()}))
    figure.update_yaxes(tickformat="+.0%", zeroline=True)
    return figure


def estimates(
    table: "pd.DataFrame", label: str, *, title: str, value: str, form: str = ".2f", color: str = BLUE
) -> "Figure":
    """Draw any table of values with intervals, a row each, beside their controls and the paper's values.

    Args:
        table: ``value``, ``low``, ``high``; ``control`` and ``paper`` where there are such.
        label: the column that names the rows.
        title: of the figure.
        value: what the values are.
        form: of numbers, as in a format string: ``".0%"``.
        color: of the marks.

    Raises:
        ArgumentError: a column is missing.
    """
    check_columns(table, label, "value", "low", "high")
    figure = blank(title, value, None)
    height = [len(table) - place for place in range(len(table))]
    names = [plain(name) for name in table[label]]
    shown = f"%{{x:{form}}} [%{{customdata[0]:{form}}}, %{{customdata[1]:{form}}}]"
    figure.add_scatter(
        **across(table, height), name="value and 95% interval", text=names, hovertemplate="%{text}: " + shown,
        marker={"color": color, "symbol": "circle", "size": 9},
    )  # fmt: skip
    if "control" in table and table["control"].notna().any():
        figure.add_scatter(
            x=table["control"].tolist(), y=height, mode="markers", name="control", text=names,
            marker={**marker("random")}, hovertemplate=f"%{{text}}, control: %{{x:{form}}}",
        )  # fmt: skip
    if "paper" in table and table["paper"].notna().any():
        add_paper(figure, table["paper"], height, form)
    label_rows(figure, dict(zip(height, names, strict=True)), ROW)
    figure.update_xaxes(tickformat=form)
    return figure


def neuron_relation_map(table: "pd.DataFrame", top: int = TOP) -> "Figure":
    """Draw which relations have which neurons: the share of a relation's facts that a neuron was found for.

    Neurons of the same relation stand together, the most frequent first, so that sharing shows off the diagonal.

    Args:
        table: ``relation``, ``layer``, ``index``, ``share`` (of the relation's facts), ``n_facts``.
        top: how many neurons are shown: those with the largest sums of shares.

    Raises:
        ArgumentError: a column is missing.
    """
    check_columns(table, "relation", "layer", "index", "share", "n_facts")
    relations = list(dict.fromkeys(table["relation"]))
    cells: dict[tuple[int, int], dict[str, tuple[float, int]]] = {}
    columns = (table[name].tolist() for name in ("relation", "layer", "index", "share", "n_facts"))
    for relation, layer, index, share, n_facts in zip(*columns, strict=True):
        cells.setdefault((layer, index), {})[relation] = share, n_facts
    frequent = sorted(cells, key=lambda neuron: -sum(share for share, _ in cells[neuron].values()))[:top]
    place = {relation: number for number, relation in enumerate(relations)}
    main = {neuron: max(cells[neuron].items(), key=lambda cell: cell[1][0]) for neuron in frequent}
    shown = sorted(frequent, key=lambda neuron: (place[main[neuron][0]], -main[neuron][1][0]))
    none = (None, 0)
    figure = blank("Neurons and relations", "relation", None, height=MARGINS + 60 + 15 * max(len(shown), 4))
    figure.add_heatmap(
        x=[plain(relation) for relation in relations],
        y=[f"L{layer}N{index}" for layer, index in shown],
        z=[[cells[neuron].get(relation, none)[0] for relation in relations] for neuron in shown],
        customdata=[[cells[neuron].get(relation, none)[1] for relation in relations] for neuron in shown],
        zmin=0,
        zmax=1,
        colorscale=SHARES,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        colorbar={"title": {"text": "share of facts", "side": "right"}, "tickformat": ".0%", "thickness": 12},
        hovertemplate="%{y}: %{z:.0%} of the facts of %{x} (%{customdata})<extra></extra>",
    )
    figure.update_layout(meta={"dark": [[0, SHARES_ON_DARK[0]], [0.5, SHARES_ON_DARK[1]], [1, SHARES_ON_DARK[2]]]})
    figure.update_xaxes(type="category", tickangle=-45, showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1)
    return figure


def neuron_scores(table: "pd.DataFrame", *, unit: str = "mean attribution (probability)") -> "Figure":
    """Draw the scores of neurons with their intervals.

    Args:
        table: ``layer``, ``index``, ``score``, ``low``, ``high``; drawn in this order from above.
        unit: of the scores.

    Raises:
        ArgumentError: a column is missing.
    """
    check_columns(table, "layer", "index", "score", "low", "high")
    rows = table.rename(columns={"score": "value"})
    names = [f"L{layer}N{index}" for layer, index in zip(table["layer"], table["index"], strict=True)]
    rows = rows.assign(neuron=names)
    return estimates(rows, "neuron", title="Scores of the neurons", value=unit, form=".3~g")


def predictions(table: "pd.DataFrame") -> "Figure":
    """Draw the probability of the answer before and after an intervention, a row a prompt.

    Args:
        table: of ``measure``: ``text``, ``before``, ``after``; drawn in this order from above.

    Raises:
        ArgumentError: a column is missing.
    """
    check_columns(table, "text", "before", "after")
    figure = blank("Probability of the answer", "probability of the answer", None)
    height = [len(table) - place for place in range(len(table))]
    texts = [plain(text) for text in table["text"]]
    pairs = list(zip(table["before"].tolist(), table["after"].tolist(), strict=True))
    figure.add_scatter(
        x=[x for pair in pairs for x in (*pair, None)], y=[y for y in height for y in (y, y, None)], mode="lines",
        line={"color": GREY, "width": 1.5}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    for column, look in (("before", {"color": GREY, "symbol": "circle-open"}), ("after", LOOKS["found"])):
        figure.add_scatter(
            x=table[column].tolist(), y=height, mode="markers", name=column, marker={"size": 9, **look}, text=texts,
            hovertemplate=f"%{{text}}<br>{column}: %{{x:.3f}}<extra></extra>",
        )  # fmt: skip
    label_rows(figure, dict(zip(height, texts, strict=True)), ROW)
    figure.update_xaxes(tickformat=".0%", range=[-0.02, 1.02])
    return figure
