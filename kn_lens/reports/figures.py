"""Figures of runs, attributions and effects, drawn by Plotly from tables.

Each function takes a pandas table and draws exactly its content: values as marks, their 95% intervals as error bars,
controls in grey, and the paper's values, where the table has them, as diamonds. Neuron sets differ in colour and in
symbol; the colours are distinguishable with colour-blindness, on white and on black. Text from the data (names of
relations, facts, tokens) is shown literally, also where it resembles markup. ``layout.meta["description"]`` says in
words what a figure shows, for readers who do not see it.

    layer_distribution     figure3                     share of the neurons by layer
    effects                figures4_5                  change of the answer's probability, own and other facts
    effects_by_relation    figures4_5_by_relation      the same for each relation
    dose_response          dose_response               change by the factor of the activations
    editors                editors                     success of editors, and the other facts that they keep
    estimates              stability, methods, ...     any table of values with intervals
    neuron_relation_map    neurons by relation         relations that share neurons
    position_map           ``attr.by_role()``          what layers carry at tokens of each role
    neuron_scores          scores of neurons           neurons of a fact
    predictions            ``measure``                 probability of the answer before and after, by prompt
    circuit                ``Circuit``                 nodes by layer and position, and edges between them
    circuit_curve          circuits                    faithfulness and completeness by size
    runs_side_by_side      ``Comparison.values``       a statistic or more of several runs
    depth_side_by_side     ``Comparison.depth``        depth of the neurons in several models

Plotly is imported when the first figure is drawn.
"""

from typing import TYPE_CHECKING

from kn_lens._core.checks import check_table
from kn_lens._core.notation import NeuronKey, keys_in_columns
from kn_lens.errors import ArgumentError
from kn_lens.reports.circuit_figures import circuit, circuit_curve
from kn_lens.reports.descriptions import (
    depths_text,
    doses_text,
    editors_text,
    effects_by_relation_text,
    effects_text,
    estimates_text,
    layers_text,
    map_text,
    positions_text,
    predictions_text,
    runs_text,
)
from kn_lens.reports.export import save_figures
from kn_lens.reports.style import (
    BLUE,
    EDIT_PLACES,
    GREY,
    LOOKS,
    MARGINS,
    NEURON_SETS,
    PERCENT,
    ROW,
    SCOPES,
    SHARES,
    SHARES_ON_DARK,
    add_paper,
    check_columns,
    describe,
    error_bars,
    factor_label,
    horizontal_marks,
    label_rows,
    marker,
    neuron_names,
    neuron_set_label,
    neuron_sets_in,
    new_figure,
    new_panels,
    number_ticks,
    plain,
    plain_texts,
    run_marker,
    show_zero_line,
)

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = [
    "circuit",
    "circuit_curve",
    "depth_side_by_side",
    "dose_response",
    "editors",
    "effects",
    "effects_by_relation",
    "estimates",
    "layer_distribution",
    "neuron_relation_map",
    "neuron_scores",
    "position_map",
    "predictions",
    "runs_side_by_side",
    "save_figures",
]

CHANGE = "change of P(answer)"
EDITOR_PANELS = {
    ("own wording", "success"): "New answer on top, in wordings that the editor saw",
    ("held-out wording", "success"): "New answer on top, in held-out wordings",
    ("other facts", "kept"): "Right answers to other facts that stay right",
}
"""Titles of the panels of ``editors``, by question and measure."""
NOT_FOUND = {"color": GREY, "symbol": "circle-open"}
"""Colour and symbol of a neuron that is not in the set found."""
TOP = 40
"""Maximum number of rows of a map of neurons."""


def layer_distribution(table: "pd.DataFrame") -> "Figure":
    """Draw the distribution of the neurons of all facts over the layers.

    Args:
        table: ``figure3``: ``neuron_set``, ``layer``, ``value`` (a share), ``low``, ``high``, ``control``.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(
        table,
        "neuron_set",
        "layer",
        "value",
        "low",
        "high",
        "control",
        source="kn_lens.reproduce(model, facts, 'run')['figure3']",
    )
    # Random neurons have the layers of the found ones.
    neuron_sets = neuron_sets_in(table.loc[table["neuron_set"] != "random"])
    figure = new_figure("Distribution over layers", "layer", "share of the neurons", height=380)
    interval = "[%{customdata[1]:.1%}, %{customdata[2]:.1%}]"
    for i, neuron_set in enumerate(neuron_sets):
        rows = table.loc[table["neuron_set"] == neuron_set]
        shift = 0.12 * (i - (len(neuron_sets) - 1) / 2)
        look = marker(neuron_set)
        figure.add_scatter(
            x=(rows["layer"] + shift).tolist(),
            y=rows["value"].tolist(),
            error_y=error_bars(rows),
            mode="lines+markers",
            name=neuron_set_label(neuron_set),
            marker=look,
            line={"color": look["color"], "width": 1.5},
            customdata=rows.loc[:, ["layer", "low", "high"]].to_numpy().tolist(),
            hovertemplate=f"layer %{{customdata[0]}}: %{{y:.1%}} {interval}",
        )
    by_layer = table.drop_duplicates("layer")
    figure.add_scatter(
        x=by_layer["layer"].tolist(),
        y=by_layer["control"].tolist(),
        mode="lines",
        name="even spread",
        line={"color": GREY, "dash": "dash", "width": 1.5},
        hovertemplate="%{y:.1%}",
    )
    layers = sorted(table["layer"].unique().tolist())
    tick_step = max(1, len(layers) // 12)
    figure.update_xaxes(tickvals=layers[::tick_step], range=[layers[0] - 0.5, layers[-1] + 0.5])
    figure.update_yaxes(**number_ticks(".0%"), rangemode="tozero")
    return describe(figure, layers_text(table))


def effects(table: "pd.DataFrame") -> "Figure":
    """Draw the effect of suppressing and amplifying neurons, on the fact itself and on other facts.

    Args:
        table: ``figures4_5``, or results of ``effect_table`` with a column ``factor``: ``factor``, ``neuron_set``,
            ``scope``, ``value`` or ``change_ratio``, ``low``, ``high``; optionally ``paper``.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    table = _effect_rows(table, name="figures4_5")
    neuron_sets = neuron_sets_in(table)
    factors = sorted(table["factor"].unique().tolist())
    figure = new_panels("Effect of the neurons", list(map(factor_label, factors)))
    height: dict[str, int] = {}
    labels: dict[float, str] = {}
    for i, neuron_set in enumerate(neuron_sets):
        height[neuron_set] = len(neuron_sets) - i
        labels[len(neuron_sets) - i] = neuron_set_label(neuron_set)
    for row, factor in enumerate(factors, start=1):
        of_factor = table.loc[table["factor"] == factor]
        for scope, scope_label in SCOPES.items():
            shift = 0.15 if scope == "own" else -0.15
            of_scope = of_factor.loc[of_factor["scope"] == scope]
            for neuron_set in neuron_sets:
                cell = of_scope.loc[of_scope["neuron_set"] == neuron_set]
                figure.add_scatter(
                    **horizontal_marks(cell, [height[neuron_set] + shift] * len(cell)),
                    name=scope_label,
                    legendgroup=scope,
                    showlegend=row == 1 and neuron_set == neuron_sets[0],
                    marker=marker(neuron_set, hollow=scope == "other"),
                    hovertemplate=f"{neuron_set_label(neuron_set)}, {scope_label}: {PERCENT}",
                    row=row,
                    col=1,
                )
        if "paper" in table:
            published = of_factor.loc[of_factor["paper"].notna()]
            heights = published["neuron_set"].map(height).tolist()
            add_paper(figure, published["paper"], heights, "+.1%", row)
    label_rows(figure, labels, 2 * ROW, len(factors))
    figure.update_xaxes(**number_ticks("+.0%"))
    figure.update_xaxes(title_text=CHANGE, row=len(factors), col=1)
    show_zero_line(figure)
    return describe(figure, effects_text(table))


def _effect_rows(table: "pd.DataFrame", *columns: str, name: str) -> "pd.DataFrame":
    """Return a table of effects with the column names of a run: ``value`` for ``change_ratio``.

    Args:
        table: the argument.
        *columns: the columns that it needs besides those of all effects.
        name: the table of a run that has them.
    """
    source = f"kn_lens.reproduce(model, facts, 'run')['{name}']"
    check_table(table, f"a table: {source}", "table")
    table = table.rename(columns={"change_ratio": "value"})
    check_columns(table, "factor", "neuron_set", "scope", *columns, "value", "low", "high", source=source)
    return table


def effects_by_relation(table: "pd.DataFrame") -> "Figure":
    """Draw the effect on the facts themselves for each relation, beside the effect of random neurons.

    Args:
        table: ``figures4_5_by_relation``: as for ``effects``, and ``relation``.

    Raises:
        ArgumentError: A column is missing, or no row is about found or random neurons.
    """
    table = _effect_rows(table, "relation", name="figures4_5_by_relation")
    own = table.loc[(table["scope"] == "own") & table["neuron_set"].isin(["found", "random"])]
    if own.empty:
        raise ArgumentError("The table has no rows of found or random neurons on the facts themselves.")
    figure = new_figure("Effect by relation", CHANGE, None)
    factors = sorted(own["factor"].unique().tolist())
    first = own.loc[(own["factor"] == factors[0]) & (own["neuron_set"] == "found")]
    first = first.sort_values("value", ascending=False)
    height: dict[str, int] = {}
    labels: dict[float, str] = {}
    for i, relation in enumerate(dict.fromkeys([*first["relation"], *own["relation"]]), start=1):
        height[relation] = i
        labels[i] = plain(relation)
    for neuron_set in ("random", "found"):
        for factor in factors:
            rows = own.loc[(own["factor"] == factor) & (own["neuron_set"] == neuron_set)]
            figure.add_scatter(
                **horizontal_marks(rows, rows["relation"].map(height).tolist()),
                name=f"{NEURON_SETS[neuron_set]} {factor_label(factor)}",
                marker=marker(neuron_set, hollow=factor > 1),
                text=plain_texts(rows["relation"]),
                hovertemplate="%{text}: " + PERCENT,
            )
    label_rows(figure, labels, ROW)
    figure.update_xaxes(**number_ticks("+.0%"))
    show_zero_line(figure)
    return describe(figure, effects_by_relation_text(own))


def dose_response(table: "pd.DataFrame") -> "Figure":
    """Draw the change of the answer's probability as a function of the factor of the neurons' activations.

    Args:
        table: ``dose_response``: as for ``effects``. The point at factor 1, without any change, is added.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    import pandas as pd

    table = _effect_rows(table, name="dose_response")
    unchanged = pd.DataFrame({"factor": [1.0], "value": [0.0], "low": [0.0], "high": [0.0]})
    figure = new_figure("Dose response", "factor of the activations", CHANGE, height=420)
    for neuron_set in neuron_sets_in(table):
        for scope, scope_label in SCOPES.items():
            rows = table.loc[(table["neuron_set"] == neuron_set) & (table["scope"] == scope)]
            if rows.empty:
                continue
            rows = pd.concat([rows.loc[rows["factor"] != 1], unchanged], ignore_index=True)
            rows = rows.sort_values("factor")
            look = marker(neuron_set, hollow=scope == "other")
            fact_label = "own fact" if scope == "own" else "other fact"
            dash = "solid" if scope == "own" else "dot"
            interval = "[%{customdata[0]:+.1%}, %{customdata[1]:+.1%}]"
            figure.add_scatter(
                x=rows["factor"].tolist(),
                y=rows["value"].tolist(),
                error_y=error_bars(rows),
                mode="lines+markers",
                name=f"{neuron_set_label(neuron_set)}, {fact_label}",
                marker=look,
                line={"color": look["color"], "dash": dash, "width": 1.5},
                customdata=rows.loc[:, ["low", "high"]].to_numpy().tolist(),
                hovertemplate=f"{scope_label}, factor %{{x}}: %{{y:+.1%}} {interval}",
            )
    figure.update_xaxes(tickvals=sorted({1.0, *table["factor"].tolist()}))
    figure.update_yaxes(**number_ticks("+.0%"), zeroline=True)
    return describe(figure, doses_text(table))


def editors(table: "pd.DataFrame") -> "Figure":
    """Draw how often editors succeed, in wordings that they saw and in others, and how many other facts they keep.

    Args:
        table: ``editors`` of a run: ``editor``, ``neuron_set``, ``question``, ``measure``, ``value``, ``low``,
            ``high``. Of it are drawn the measures ``success``, of the questions that editors saw and of those in
            held-out wordings, and ``kept``.

    Raises:
        ArgumentError: No table, a column is missing, or none of these measures is there.
    """
    source = "kn_lens.reproduce(model, facts, 'run', stages=['editors'])['editors']"
    check_columns(table, "editor", "neuron_set", "question", "measure", "value", "low", "high", source=source)
    panels = {}
    for (question, measure), title in EDITOR_PANELS.items():
        rows = table.loc[(table["question"] == question) & (table["measure"] == measure)]
        if len(rows):
            panels[title] = rows
    if not panels:
        raise ArgumentError("The table has no row of success in own wordings or of other facts; expected some.")
    figure = new_panels("Editors", list(panels))
    names = list(dict.fromkeys(table["editor"]))
    heights = {name: len(names) - number for number, name in enumerate(names)}
    neuron_sets = neuron_sets_in(table)
    for panel, rows in enumerate(panels.values(), start=1):
        for number, neuron_set in enumerate(neuron_sets):
            of_set = rows.loc[rows["neuron_set"] == neuron_set]
            shift = 0.2 * ((len(neuron_sets) - 1) / 2 - number)
            figure.add_scatter(
                **horizontal_marks(of_set, [heights[name] + shift for name in of_set["editor"]]),
                name=EDIT_PLACES.get(neuron_set, plain(neuron_set)),
                legendgroup=neuron_set,
                showlegend=panel == 1,
                marker=marker(neuron_set),
                text=plain_texts(of_set["editor"]),
                hovertemplate="%{text}: %{x:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]",
                row=panel,
                col=1,
            )
    label_rows(figure, {height: plain(name) for name, height in heights.items()}, ROW, len(panels))
    figure.update_xaxes(**number_ticks(".0%"), range=[-0.03, 1.03])
    figure.update_xaxes(title_text="share", row=len(panels), col=1)
    return describe(figure, editors_text(panels))


def estimates(
    table: "pd.DataFrame",
    label: str,
    *,
    title: str,
    value: str,
    form: str = ".2f",
    color: str = BLUE,
) -> "Figure":
    """Draw any table of values with intervals, one row each, beside their controls and the paper's values.

    Args:
        table: ``value``, ``low``, ``high``; optionally ``control`` and ``paper``.
        label: column of the row names.
        title: title of the figure.
        value: title of the value axis.
        form: number format, as in a format string: ``".0%"``.
        color: colour of the marks.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(table, label, "value", "low", "high", source="kn_lens.reproduce(model, facts, 'run')['stability']")
    figure = new_figure(title, value, None)
    heights = list(range(len(table), 0, -1))
    names = plain_texts(table[label])
    interval = f"[%{{customdata[0]:{form}}}, %{{customdata[1]:{form}}}]"
    figure.add_scatter(
        **horizontal_marks(table, heights),
        name="value and 95% interval",
        text=names,
        hovertemplate=f"%{{text}}: %{{x:{form}}} {interval}",
        marker={"color": color, "symbol": "circle", "size": 9},
    )
    if "control" in table and table["control"].notna().to_numpy().any():
        figure.add_scatter(
            x=table["control"].tolist(),
            y=heights,
            mode="markers",
            name="control",
            text=names,
            marker=marker("random"),
            hovertemplate=f"%{{text}}, control: %{{x:{form}}}",
        )
    if "paper" in table and table["paper"].notna().to_numpy().any():
        add_paper(figure, table["paper"], heights, form)
    label_rows(figure, dict(zip(heights, names, strict=True)), ROW)
    figure.update_xaxes(**number_ticks(form))
    return describe(figure, estimates_text(table, label, value, form))


def neuron_relation_map(table: "pd.DataFrame", top: int = TOP) -> "Figure":
    """Draw the share of each relation's facts that have a neuron, for the most frequent neurons.

    Neurons of the same relation are adjacent, the most frequent first, so that shared neurons lie off the diagonal.

    Args:
        table: ``relation``, ``layer``, ``expert`` where there are some, ``index``, ``share`` (of the relation's
            facts), ``n_facts``.
        top: number of neurons: those with the largest sums of shares.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(
        table,
        "relation",
        "layer",
        "index",
        "share",
        "n_facts",
        source="pandas.DataFrame({'relation': ..., 'layer': ..., 'index': ..., 'share': ..., 'n_facts': ...})",
    )
    relations = list(dict.fromkeys(table["relation"]))
    shares: dict[NeuronKey, dict[str, float]] = {}
    counts: dict[NeuronKey, dict[str, int]] = {}
    for row in table.to_dict("records"):
        neuron = keys_in_columns([row["layer"]], [row.get("expert")], [row["index"]])[0]
        shares.setdefault(neuron, {})[row["relation"]] = row["share"]
        counts.setdefault(neuron, {})[row["relation"]] = row["n_facts"]

    def block(neuron: NeuronKey) -> tuple[int, float]:
        """Sort key: the relation in which the neuron is most frequent, then its share there, descending."""
        main, share = max(shares[neuron].items(), key=lambda item: item[1])
        return relations.index(main), -share

    frequent = sorted(shares, key=lambda neuron: -sum(shares[neuron].values()))[:top]
    neurons = sorted(frequent, key=block)
    share_rows = []
    count_rows = []
    for neuron in neurons:
        share_rows.append([shares[neuron].get(relation) for relation in relations])
        count_rows.append([counts[neuron].get(relation, 0) for relation in relations])
    figure = new_figure(
        "Neurons and relations",
        "relation",
        None,
        height=MARGINS + 60 + 15 * max(len(neurons), 4),
    )
    figure.add_heatmap(
        x=plain_texts(relations),
        y=neuron_names(neurons),
        z=share_rows,
        customdata=count_rows,
        zmin=0,
        zmax=1,
        colorscale=SHARES,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        colorbar={
            "title": {"text": "share of facts", "side": "right"},
            "tickformat": ".0%",
            "thickness": 12,
        },
        hovertemplate="%{y}: %{z:.0%} of the facts of %{x} (%{customdata})<extra></extra>",
    )
    dark = [[0, SHARES_ON_DARK[0]], [0.5, SHARES_ON_DARK[1]], [1, SHARES_ON_DARK[2]]]
    figure.update_layout(meta={"dark": dark})
    figure.update_xaxes(type="category", tickangle=-45, showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1)
    return describe(figure, map_text(relations, neurons, shares))


def position_map(
    table: "pd.DataFrame",
    *,
    value: str = "effect",
    unit: str = "P(w) - P(0)",
) -> "Figure":
    """Draw what each layer carries at the tokens of each role, as a heat map.

    Args:
        table: ``role``, in the order of a prompt; ``layer``; and the values: ``attr.by_role()``.
        value: the column of the values.
        unit: their label.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(table, "role", "layer", value, source="attr.by_role()")
    roles = list(dict.fromkeys(table["role"]))
    layers = sorted(set(table["layer"]))
    by_cell = {(row["role"], row["layer"]): row[value] for row in table.to_dict("records")}
    rows = [[by_cell.get((role, layer)) for layer in layers] for role in roles]
    largest = float(table[value].abs().to_numpy().max())
    height = MARGINS + 60 + 30 * max(len(roles), 3)
    figure = new_figure("Where the layers carry the answer", "layer", None, height=height)
    figure.add_heatmap(
        x=layers,
        y=plain_texts(role.replace("_", " ") for role in roles),
        z=rows,
        zmin=-largest,
        zmax=largest,
        zmid=0,
        colorscale="RdBu",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        colorbar={"title": {"text": unit, "side": "right"}, "tickformat": ".2~g", "thickness": 12},
        hovertemplate="layer %{x}, %{y}: %{z:.3~g}<extra></extra>",
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1)
    return describe(figure, positions_text(table, value))


def neuron_scores(
    table: "pd.DataFrame",
    *,
    unit: str = "mean attribution (probability)",
) -> "Figure":
    """Draw the scores of neurons with their intervals.

    Args:
        table: ``layer``, ``index``, ``score``, ``low``, ``high``; drawn in this order, from the top. Optionally
            ``found``, whether a neuron is in the set that was found; the marks of the others are open and grey; and
            ``neuron``, its name.
        unit: unit of the scores.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(table, "layer", "index", "score", "low", "high", source="attr.top()")
    names = table["neuron"] if "neuron" in table else neuron_names(zip(table["layer"], table["index"], strict=True))
    rows = table.rename(columns={"score": "value"}).assign(neuron=names)
    if "found" not in table:
        return estimates(rows, "neuron", title="Scores of the neurons", value=unit, form=".3~g")
    title = "Scores of the neurons, the found ones filled"
    figure = estimates(rows, "neuron", title=title, value=unit, form=".3~g")
    looks = [LOOKS["found"] if is_found else NOT_FOUND for is_found in table["found"]]
    colors = [look["color"] for look in looks]
    symbols = [look["symbol"] for look in looks]
    figure.update_traces(marker={"color": colors, "symbol": symbols}, error_x={"color": GREY})
    found = [name for name, is_found in zip(names, table["found"], strict=True) if is_found]
    return describe(figure, f"{figure.layout.meta['description']} Found: {', '.join(found) or 'none'}.")


def predictions(table: "pd.DataFrame") -> "Figure":
    """Draw the probability of the answer before and after an intervention, one row per prompt.

    Args:
        table: result of ``measure``: ``text``, ``before``, ``after``; drawn in this order, from the top.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(table, "text", "before", "after", source="kn_lens.measure(model, prompts, kn_lens.Suppress(neurons))")
    figure = new_figure("Probability of the answer", "probability of the answer", None)
    heights = list(range(len(table), 0, -1))
    texts = plain_texts(table["text"])
    line_x: list[float | None] = []
    line_y: list[float | None] = []
    changes = zip(table["before"].tolist(), table["after"].tolist(), heights, strict=True)
    for before, after, height in changes:
        line_x += [before, after, None]
        line_y += [height, height, None]
    figure.add_scatter(
        x=line_x,
        y=line_y,
        mode="lines",
        line={"color": GREY, "width": 1.5},
        showlegend=False,
        hoverinfo="skip",
    )
    looks = {"before": {"color": GREY, "symbol": "circle-open"}, "after": LOOKS["found"]}
    for column, look in looks.items():
        figure.add_scatter(
            x=table[column].tolist(),
            y=heights,
            mode="markers",
            name=column,
            marker={"size": 9, **look},
            text=texts,
            hovertemplate=f"%{{text}}<br>{column}: %{{x:.3f}}<extra></extra>",
        )
    label_rows(figure, dict(zip(heights, texts, strict=True)), ROW)
    figure.update_xaxes(tickformat=".0%", range=[-0.02, 1.02])
    return describe(figure, predictions_text(table))


def runs_side_by_side(table: "pd.DataFrame", *, title: str, value: str, form: str = ".2f") -> "Figure":
    """Draw statistics of several runs beside one another, one row for each statistic.

    Args:
        table: ``statistic``, ``run``, ``value``, ``low``, ``high``, ``control``; drawn in this order, from the top.
        title: title of the figure.
        value: title of the value axis.
        form: number format, as in a format string: ``"+.0%"``.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(
        table, "statistic", "run", "value", "low", "high", "control", source="kn_lens.compare_runs(runs).values"
    )
    figure = new_figure(title, value, None)
    runs = list(dict.fromkeys(table["run"]))
    statistics = list(dict.fromkeys(table["statistic"]))
    height = {statistic: len(statistics) - i for i, statistic in enumerate(statistics)}
    interval = f"[%{{customdata[0]:{form}}}, %{{customdata[1]:{form}}}]"
    shift = 0.5 / max(len(runs), 2)
    for i, run in enumerate(runs):
        rows = table.loc[table["run"] == run]
        heights = [height[statistic] + shift * ((len(runs) - 1) / 2 - i) for statistic in rows["statistic"]]
        figure.add_scatter(
            **horizontal_marks(rows, heights),
            name=plain(run),
            marker=run_marker(i),
            text=plain_texts(rows["statistic"]),
            hovertemplate=f"{plain(run)}, %{{text}}: %{{x:{form}}} {interval}<extra></extra>",
        )
        figure.add_scatter(
            x=rows["control"].tolist(),
            y=heights,
            mode="markers",
            name="control",
            legendgroup="control",
            showlegend=i == 0,
            marker=marker("random"),
            hovertemplate=f"{plain(run)}, control: %{{x:{form}}}<extra></extra>",
        )
    label_rows(figure, {height[name]: plain(name) for name in statistics}, max(ROW, 16 * len(runs)))
    figure.update_xaxes(**number_ticks(form))
    if form.startswith("+"):
        show_zero_line(figure)
    return describe(figure, runs_text(table, value, form))


def depth_side_by_side(table: "pd.DataFrame") -> "Figure":
    """Draw the share of the neurons up to each depth of several models; an even spread is the diagonal.

    Args:
        table: ``run``, ``layer``, ``depth``, ``value``, ``low``, ``high``, of one set of facts.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(table, "run", "layer", "depth", "value", "low", "high", source="kn_lens.compare_runs(runs).depth")
    figure = new_figure("Depth of the neurons", "depth of the model", "share of the neurons up to it", height=380)
    for i, run in enumerate(dict.fromkeys(table["run"])):
        rows = table.loc[table["run"] == run]
        look = run_marker(i)
        figure.add_scatter(
            x=[0.0, *rows["depth"].tolist()],
            y=[0.0, *rows["value"].tolist()],
            mode="lines+markers",
            name=plain(run),
            marker=look,
            line={"color": look["color"], "width": 1.5},
            hovertemplate=f"{plain(run)}: %{{y:.0%}} up to depth %{{x:.0%}}<extra></extra>",
        )
    figure.add_scatter(
        x=[0.0, 1.0],
        y=[0.0, 1.0],
        mode="lines",
        name="even spread",
        line={"color": GREY, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )
    figure.update_xaxes(**number_ticks(".0%"), range=[-0.02, 1.02])
    figure.update_yaxes(**number_ticks(".0%"), range=[-0.02, 1.05])
    return describe(figure, depths_text(table))
