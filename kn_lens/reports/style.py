"""The common style of all figures: colours and symbols of neuron sets, axes, error bars, named rows."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any

from kn_lens._core.checks import check_table
from kn_lens._core.escape import escaped
from kn_lens._core.notation import neuron_name
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

# From the palette of Okabe and Ito, with green and purple darkened: a contrast of at least 3:1 to white and to #14181d.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#218A6B"
PURPLE = "#B5478F"
GREY = "#7A7A7A"

NEURON_SETS = {
    "found": "knowledge neurons",
    "activation": "most active neurons",
    "baseline": "activation baseline",
    "random": "random neurons",
}
"""Labels of the neuron sets, in the order of all figures."""
EDIT_PLACES = {
    "found": "where the editor writes",
    "activation": "the same change at the most active neurons",
    "random": "the same change at random neurons",
}
"""Labels of the neuron sets of compared editors: where the rows of change go."""
SCOPES = {"own": "the fact itself", "other": "a fact of another relation"}
FACTORS = {0.0: "suppressed (factor 0)", 2.0: "amplified (factor 2)"}
LOOKS = {
    "found": {"color": BLUE, "symbol": "circle"},
    "activation": {"color": ORANGE, "symbol": "square"},
    "baseline": {"color": GREEN, "symbol": "triangle-up"},
    "random": {"color": GREY, "symbol": "x"},
}
"""Colour and symbol of the neuron sets."""

RUN_LOOKS = (
    {"color": BLUE, "symbol": "circle"},
    {"color": ORANGE, "symbol": "square"},
    {"color": GREEN, "symbol": "triangle-up"},
    {"color": PURPLE, "symbol": "diamond"},
    {"color": BLUE, "symbol": "circle-open"},
    {"color": ORANGE, "symbol": "square-open"},
    {"color": GREEN, "symbol": "triangle-up-open"},
)
"""Colours and symbols of runs beside one another."""

SHARES = ["#dbe9f5", "#6aaed6", "#08519c"]
"""Colour scale of shares, from few to many, on white."""
SHARES_ON_DARK = ["#20405c", "#4a93c9", "#d6ebfb"]
"""The same on a dark page."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ROW = 26
"""Height of a row of marks, in pixels."""
MARGINS = 130
"""Height of a figure without its rows, in pixels."""
PERCENT = "%{x:+.1%} [%{customdata[0]:+.1%}, %{customdata[1]:+.1%}]"
"""Hover text of a change with its interval."""


def plain(text: object) -> str:
    r"""Return a text escaped for Plotly, which interprets tags; control characters are escaped too.

    >>> plain("<b>R&D</b>")
    '&lt;b&gt;R&amp;D&lt;/b&gt;'
    >>> print(plain("Dub\u202elin"))
    Dub\u202elin
    """
    return escaped(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain_texts(texts: Iterable[object]) -> list[str]:
    """Return texts escaped for Plotly; see ``plain``."""
    return list(map(plain, texts))


def neuron_names(neurons: Iterable[Sequence[int]]) -> list[str]:
    """Return the names of neurons, given as layer and index.

    >>> neuron_names([(3, 412)])
    ['L3N412']
    """
    return list(starmap(neuron_name, neurons))


def neuron_set_label(name: str) -> str:
    """Return the label of a neuron set."""
    return NEURON_SETS.get(name, plain(name))


def factor_label(factor: float) -> str:
    """Return the label of a factor of the activations."""
    return FACTORS.get(factor, f"factor {factor:g}")


def neuron_sets_in(table: "pd.DataFrame") -> list[str]:
    """Return the neuron sets of a table, in the order of all figures."""
    order = list(NEURON_SETS)
    names = list(dict.fromkeys(table["neuron_set"]))
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def check_columns(table: "pd.DataFrame", *columns: str, source: str) -> None:
    """Check that an argument is a table with rows and some columns.

    Args:
        table: the argument.
        *columns: the columns.
        source: the call that returns such a table.

    Raises:
        ArgumentError: It is not.
    """
    check_table(table, f"a table: {source}", "table")
    for column in columns:
        if column not in table:
            hint = did_you_mean(column, map(str, table.columns))
            raise ArgumentError(f"The table has no column {column!r}; expected {', '.join(columns)}.{hint}")
    if not len(table):
        raise ArgumentError("The table is empty; there is nothing to draw.")


def new_figure(title: str, x: str, y: str | None, *, height: int | None = None) -> "Figure":
    """Return a figure without traces, with the titles of its axes."""
    from plotly.graph_objects import Figure

    figure = Figure()
    _apply_style(figure, title, height)
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def new_panels(title: str, titles: Sequence[str]) -> "Figure":
    """Return a figure of empty panels in one column, which also fits a narrow screen."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(titles),
        cols=1,
        subplot_titles=titles,
        vertical_spacing=0.36 / len(titles),
    )
    _apply_style(figure, title, None)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def _apply_style(figure: "Figure", title: str, height: int | None) -> None:
    figure.update_layout(
        template="none",  # only the style set here
        title={"text": title, "x": 0, "xref": "paper"},
        font={"family": FONT, "size": 13, "color": "#1b1f24"},
        height=height,
        margin={"l": 10, "r": 26, "t": 60, "b": 10},  # on the right, half of the label of a last tick
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        hoverlabel={"align": "left"},
    )
    axis = {
        "automargin": True,
        "gridcolor": "#e3e6ea",
        "zerolinecolor": GREY,
        "linecolor": "#c5cad1",
        "title_font_size": 13,
    }
    figure.update_xaxes(**axis, zeroline=False)
    figure.update_yaxes(**axis, zeroline=False)


def number_ticks(form: str) -> dict[str, Any]:
    """Return the arguments of an axis of numbers in a format: zero has no sign, and numbers the digits they need.

    >>> number_ticks("+.0%")["tickformat"], number_ticks("+.0%")["labelalias"]["+0%"], number_ticks(".2f")
    ('+.2~%', '0%', {'tickformat': '.2~f'})
    """
    if form.endswith("f"):
        return {"tickformat": f"{form[:-1]}~f"}
    if not form.endswith("%"):
        return {"tickformat": form}
    sign = "+" if form.startswith("+") else ""
    zeros = {"+0%": "0%", "-0%": "0%", "\N{MINUS SIGN}0%": "0%"}
    return {"tickformat": f"{sign}.2~%", "labelalias": zeros}


def marker(neuron_set: str, *, hollow: bool = False) -> dict[str, Any]:
    """Return the marker of a neuron set."""
    look = LOOKS.get(neuron_set, {"color": PURPLE, "symbol": "hexagon"})
    color = look["color"]
    symbol = look["symbol"]
    if hollow:
        symbol += "-open"
    return {"color": color, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": color}}


def run_marker(number: int) -> dict[str, Any]:
    """Return the marker of a run among several, which differ in colour and in symbol."""
    look = RUN_LOOKS[number % len(RUN_LOOKS)]
    return {**look, "size": 9, "line": {"width": 1.5, "color": look["color"]}}


def error_bars(rows: "pd.DataFrame") -> dict[str, Any]:
    """Return the error bars of rows with ``value``, ``low`` and ``high``."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["value"]).tolist(),
        "arrayminus": (rows["value"] - rows["low"]).tolist(),
        "thickness": 1.5,
        "width": 4,
    }


def horizontal_marks(rows: "pd.DataFrame", heights: Sequence[float]) -> dict[str, Any]:
    """Return the trace arguments of rows at some heights, with horizontal intervals."""
    return {
        "x": rows["value"].tolist(),
        "y": list(heights),
        "error_x": error_bars(rows),
        "mode": "markers",
        "customdata": rows.loc[:, ["low", "high"]].to_numpy().tolist(),
    }


def add_paper(
    figure: "Figure",
    values: Iterable[float],
    heights: Sequence[float],
    form: str,
    row: int | None = None,
) -> None:
    """Add the values of the paper at some heights, in a panel if the figure has panels."""
    panel = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=list(values),
        y=list(heights),
        mode="markers",
        name="Dai et al. (2022)",
        legendgroup="paper",
        showlegend=row in (None, 1),
        hovertemplate=f"Dai et al. (2022): %{{x:{form}}}<extra></extra>",
        marker={"symbol": "diamond-open", "size": 11, "color": PURPLE, "line": {"width": 2}},
        **panel,
    )


def describe(figure: "Figure", text: str) -> "Figure":
    """Give a figure its text alternative, ``layout.meta["description"]``, and return it.

    Pages read it to readers who do not see the figure.
    """
    # Plotly builds the attributes of a layout at run time.
    meta: Any = figure.layout["meta"]
    figure.update_layout(meta={**(meta or {}), "description": text})
    return figure


def description_of(figure: "Figure") -> str:
    """Return the text alternative of a figure; its title, if it has none."""
    layout: Any = figure.layout
    description = (layout.meta or {}).get("description", "") if isinstance(layout.meta, Mapping | None) else ""
    return description or layout.title.text or ""


def label_rows(
    figure: "Figure",
    names: Mapping[float, str],
    row: int,
    panels: int = 1,
) -> None:
    """Label the rows and set the height that they need. ``layout.meta`` holds the terms of this height."""
    base = MARGINS + 30 * panels
    figure.update_yaxes(
        tickvals=list(names),
        ticktext=list(names.values()),
        range=[0.4, len(names) + 0.6],
    )
    row_height = panels * row
    figure.update_layout(
        height=base + row_height * max(len(names), 2),
        meta={"base": base, "row": row_height},
    )


def show_zero_line(figure: "Figure") -> None:
    """Mark zero on the horizontal axis."""
    figure.update_xaxes(zeroline=True, zerolinewidth=1.5)
