"""How figures look: colours and shapes of the kinds of neurons, axes, error bars, rows with names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens._shown import escaped
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#218A6B", "#B5478F", "#7A7A7A"
"""Of Okabe and Ito's colours, green and purple darker: at least 3 : 1 against white and against #14181d."""

KINDS = {
    "found": "knowledge neurons",
    "activation": "most active neurons",
    "baseline": "activation baseline",
    "random": "random neurons",
}
"""What kinds of neurons are called, in the order of all figures."""
SCOPES = {"own": "the fact itself", "other": "a fact of another relation"}
LOOKS = {
    "found": {"color": BLUE, "symbol": "circle"},
    "activation": {"color": ORANGE, "symbol": "square"},
    "baseline": {"color": GREEN, "symbol": "triangle-up"},
    "random": {"color": GREY, "symbol": "x"},
}
FACTORS = {0.0: "switched off (factor 0)", 2.0: "turned up (factor 2)"}

SHARES = ["#dbe9f5", "#6aaed6", "#08519c"]
SHARES_ON_DARK = ["#20405c", "#4a93c9", "#d6ebfb"]
"""Colours of shares, from few to many, on white and on a dark page."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ROW, MARGINS = 26, 130
"""Pixels of a row of marks, and of what stands around them."""


def plain(text: object) -> str:
    r"""Return text that Plotly shows as it is, where it would otherwise read tags; control characters are escaped.

    >>> plain("<b>R&D</b>")
    '&lt;b&gt;R&amp;D&lt;/b&gt;'
    >>> print(plain("Dub\u202elin"))
    Dub\u202elin
    """
    return escaped(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


PERCENT = "%{x:+.1%} [%{customdata[0]:+.1%}, %{customdata[1]:+.1%}]"


def blank(title: str, x: str, y: str | None, *, height: int | None = None) -> "Figure":
    from plotly.graph_objects import Figure

    figure = Figure()
    style(figure, title, height)
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def panels_of(title: str, titles: Sequence[str]) -> "Figure":
    """Return panels one above the other, which fit a narrow screen too."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=0.36 / len(titles))
    style(figure, title, None)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def style(figure: "Figure", title: str, height: int | None) -> None:
    figure.update_layout(
        template="none",  # nothing but what is said here
        title={"text": title, "x": 0, "xref": "paper"},
        font={"family": FONT, "size": 13, "color": "#1b1f24"},
        height=height,
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
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


def marker(kind: str, *, hollow: bool = False) -> dict[str, Any]:
    look = LOOKS.get(kind, {"color": PURPLE, "symbol": "hexagon"})
    symbol = look["symbol"] + ("-open" if hollow else "")
    return {"color": look["color"], "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": look["color"]}}


def bars(rows: "pd.DataFrame") -> dict[str, Any]:
    """Return the error bars of rows with ``value``, ``low`` and ``high``."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["value"]).tolist(),
        "arrayminus": (rows["value"] - rows["low"]).tolist(),
        "thickness": 1.5,
        "width": 4,
    }


def across(rows: "pd.DataFrame", heights: Sequence[float]) -> dict[str, Any]:
    """Return the marks of rows that lie side by side, with horizontal intervals."""
    return {
        "x": rows["value"].tolist(),
        "y": list(heights),
        "error_x": bars(rows),
        "mode": "markers",
        "customdata": rows.loc[:, ["low", "high"]].to_numpy().tolist(),
    }


def add_paper(
    figure: "Figure", values: Iterable[float], heights: Sequence[float], form: str, row: int | None = None
) -> None:
    place = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=list(values), y=list(heights), mode="markers", name="Dai et al. (2022)", legendgroup="paper",
        showlegend=row in (None, 1), hovertemplate=f"Dai et al. (2022): %{{x:{form}}}<extra></extra>",
        marker={"symbol": "diamond-open", "size": 11, "color": PURPLE, "line": {"width": 2}}, **place,
    )  # fmt: skip


def label_rows(figure: "Figure", names: Mapping[float, str], row: int, panels: int = 1) -> None:
    """Name the rows, and give the figure the height that they need; ``layout.meta`` says how that was computed."""
    base = MARGINS + 30 * panels
    figure.update_yaxes(tickvals=list(names), ticktext=list(names.values()), range=[0.4, len(names) + 0.6])
    figure.update_layout(height=base + panels * row * max(len(names), 2), meta={"base": base, "row": panels * row})


def with_zero(figure: "Figure") -> "Figure":
    figure.update_xaxes(zeroline=True, zerolinewidth=1.5)
    return figure


def kinds_of(table: "pd.DataFrame") -> list[str]:
    there = list(dict.fromkeys(table["neurons"]))
    return sorted(there, key=lambda kind: list(KINDS).index(kind) if kind in KINDS else len(KINDS))


def check_columns(table: "pd.DataFrame", *columns: str) -> None:
    for column in columns:
        if column not in table:
            near = did_you_mean(column, map(str, table.columns))
            raise ArgumentError(f"The table has no column {column!r}; expected {', '.join(columns)}.{near}")
    if not len(table):
        raise ArgumentError("The table is empty; there is nothing to draw.")
