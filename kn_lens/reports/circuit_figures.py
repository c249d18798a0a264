"""Figures of circuits: the graph of one, and the faithfulness of circuits by size."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens._core.checks import check_whole
from kn_lens.reports.descriptions import circuit_curve_text, circuit_text
from kn_lens.reports.style import (
    BLUE,
    GREY,
    ORANGE,
    check_columns,
    describe,
    error_bars,
    marker,
    neuron_set_label,
    neuron_sets_in,
    new_figure,
    new_panels,
    number_ticks,
    plain,
)

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

SPREAD = 0.8
"""Width that the nodes of a layer and position are spread over, of the distance between positions."""
SMALLEST, LARGEST = 7, 20
"""Sizes of the marks of nodes, in pixels."""
WIDTHS = (0.6, 1.5, 3.0)
"""Widths of the lines of edges, in pixels, from a third to a third of the largest weight."""
MOST_TOKENS = 24
"""Tokens from the first node to the last that are all shown."""
N_EDGES = 60
"""Number of edges that are drawn by default."""
SYMBOLS = {"neuron": "circle", "head": "square"}
ALL_POSITIONS = "all"
ANSWER = "answer"


def circuit(
    nodes: "pd.DataFrame",
    edges: "pd.DataFrame | None" = None,
    *,
    tokens: Sequence[str] | None = None,
    title: str = "Circuit",
    n_edges: int = N_EDGES,
) -> "Figure":
    """Draw a circuit: layers from bottom to top, token positions from left to right, the answer above all.

    Circles are neurons, squares heads; the size of a mark is the size of the node's score, and its colour the sign. A
    line is an edge, as wide as its weight is large.

    Args:
        nodes: ``node``, ``kind``, ``layer``, ``position``, ``score``, as of ``Circuit.to_frame``.
        edges: ``source``, ``target``, ``input``, ``weight``, as of ``Circuit.edges_frame``.
        tokens: the text of each position.
        title: title of the figure.
        n_edges: number of edges drawn, those with the largest weights.

    Raises:
        ArgumentError: No table, a column is missing, or ``n_edges`` is no number of edges.
    """
    check_columns(nodes, "node", "kind", "layer", "position", "score", source="circuit.to_frame()")
    check_whole("n_edges", n_edges)
    places = _places(nodes)
    top = max(nodes["layer"].tolist()) + 1.0
    figure = new_figure(plain(title), "token position", "layer", height=520)
    drawn = None
    if edges is not None and len(edges) and n_edges:
        check_columns(edges, "source", "target", "input", "weight", source="circuit.edges_frame()")
        size: Any = edges["weight"].abs()
        drawn = edges.loc[size.sort_values(ascending=False, kind="stable").index].head(n_edges)
        last = max(x for x, _ in places.values())
        _add_edges(figure, drawn, {**places, ANSWER: (last, top)})
        if ANSWER in set(drawn["target"]):
            figure.add_scatter(
                x=[last],
                y=[top],
                mode="markers+text",
                text=[ANSWER],
                textposition="top center",
                marker={"color": GREY, "symbol": "diamond", "size": LARGEST},
                name="answer",
                hovertemplate="the logit difference of the answer<extra></extra>",
            )
    largest = max(map(abs, nodes["score"].tolist())) or 1.0
    for kind, symbol in SYMBOLS.items():
        rows = nodes.loc[nodes["kind"] == kind]
        if rows.empty:
            continue
        share = (rows["score"].abs() / largest) ** 0.5
        figure.add_scatter(
            x=[places[node][0] for node in rows["node"]],
            y=[places[node][1] for node in rows["node"]],
            mode="markers",
            name=f"{kind}s",
            text=[plain(node) for node in rows["node"]],
            customdata=rows["score"].tolist(),
            marker={
                "symbol": symbol,
                "size": (SMALLEST + share * (LARGEST - SMALLEST)).tolist(),
                "color": [BLUE if score >= 0 else ORANGE for score in rows["score"]],
                "line": {"width": 1, "color": "#ffffff"},
            },
            hovertemplate="%{text}: %{customdata:+.3f} logits<extra></extra>",
        )
    positions = sorted({_column(position) for position in nodes["position"]})
    if tokens is not None and positions[-1] - positions[0] < MOST_TOKENS:
        positions = list(range(positions[0], positions[-1] + 1))  # those between read as text
    figure.update_xaxes(
        tickvals=positions,
        ticktext=[_position_label(position, tokens) for position in positions],
        range=[positions[0] - 0.6, positions[-1] + 0.6],
    )
    layers = sorted(set(nodes["layer"].tolist()))
    figure.update_yaxes(tickvals=[layer for layer in range(int(layers[-1]) + 1) if layer % max(1, int(top) // 10) == 0])
    return describe(figure, circuit_text(nodes, drawn))


def _column(position: Any) -> int:
    """Return the column of a position: that of nodes for all positions stands before the others."""
    return -1 if position is None or position != position else int(position)


def _position_label(position: int, tokens: Sequence[str] | None) -> str:
    if position < 0:
        return ALL_POSITIONS
    if tokens is None or position >= len(tokens):
        return str(position)
    return f"{position}<br>{plain(tokens[position].strip() or repr(tokens[position]))}"


def _places(nodes: "pd.DataFrame") -> dict[str, tuple[float, float]]:
    """Return the place of each node, those of a layer and position side by side."""
    places: dict[str, tuple[float, float]] = {}
    groups: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for row in nodes.to_dict("records"):
        groups.setdefault((row["layer"], _column(row["position"])), []).append((row["kind"], row["node"]))
    for (layer, column), members in groups.items():
        step = SPREAD / max(1, len(members) - 1)
        for number, (kind, name) in enumerate(sorted(members)):
            shift = 0.0 if len(members) == 1 else number * step - SPREAD / 2
            # Heads stand a little below the neurons of their layer, which read what they write.
            places[name] = (column + shift, layer - (0.2 if kind == "head" else 0.0))
    return places


def _add_edges(figure: "Figure", edges: "pd.DataFrame", places: Mapping[str, tuple[float, float]]) -> None:
    """Add the lines of edges, one trace for each width and sign."""
    largest = max(map(abs, edges["weight"].tolist())) or 1.0
    lines: dict[tuple[int, bool], tuple[list[Any], list[Any]]] = {}
    for edge in edges.to_dict("records"):
        if edge["source"] not in places or edge["target"] not in places:
            continue
        width = min(int(3 * abs(edge["weight"]) / largest), 2)
        xs, ys = lines.setdefault((width, edge["weight"] >= 0), ([], []))
        for end in (edge["source"], edge["target"]):
            x, y = places[end]
            xs.append(x)
            ys.append(y)
        xs.append(None)
        ys.append(None)
    for (width, is_positive), (xs, ys) in sorted(lines.items()):
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"width": WIDTHS[width], "color": BLUE if is_positive else ORANGE},
            opacity=0.45,
            hoverinfo="skip",
            showlegend=False,
        )


def circuit_curve(table: "pd.DataFrame") -> "Figure":
    """Draw faithfulness and completeness of circuits by their size, beside those of controls of the same shape.

    Args:
        table: ``circuits``: ``neuron_set``, ``size``, ``measure``, ``value``, ``low``, ``high``.

    Raises:
        ArgumentError: No table, or a column is missing.
    """
    check_columns(
        table, "neuron_set", "size", "measure", "value", "low", "high", source="kn_lens.reproduce(...)['circuits']"
    )
    measures = [name for name in ("faithfulness", "completeness") if name in set(table["measure"])]
    figure = new_panels("Circuits by size", measures)
    for panel, measure in enumerate(measures, start=1):
        for neuron_set in neuron_sets_in(table):
            rows = table.loc[(table["neuron_set"] == neuron_set) & (table["measure"] == measure)].sort_values("size")
            if rows.empty:
                continue
            figure.add_scatter(
                x=rows["size"].tolist(),
                y=rows["value"].tolist(),
                error_y=error_bars(rows),
                mode="lines+markers",
                name="circuit" if neuron_set == "found" else neuron_set_label(neuron_set).replace("neurons", "nodes"),
                legendgroup=neuron_set,
                showlegend=panel == 1,
                marker=marker(neuron_set),
                line={"color": marker(neuron_set)["line"]["color"], "width": 1.5},
                customdata=rows.loc[:, ["low", "high"]].to_numpy().tolist(),
                hovertemplate="%{x} nodes: %{y:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]",
                row=panel,
                col=1,
            )
    figure.update_xaxes(type="log", title_text="nodes", dtick=1)
    figure.update_yaxes(**number_ticks(".1f"), zeroline=True)
    figure.update_layout(height=560)
    return describe(figure, circuit_curve_text(table))
