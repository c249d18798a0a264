"""Display of attributions and effects in notebooks: a figure below a summary."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from pandas.plotting import PlotAccessor

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from kn_lens.attribution import Attribution
    from kn_lens.facts import Fact

EFFECT_COLUMNS = ("text", "before", "after")
"""Columns from which an effect is drawn."""


def attribution_figure(
    attribution: "Attribution",
    fact: "Fact | None" = None,
    *,
    top: int = 20,
    seed: int = 0,
) -> "Figure":
    """Draw the neurons of highest mean score with 95% intervals; see ``Attribution.plot``."""
    from kn_lens.reports import figures

    scores = attribution.top(top, fact, seed=seed)
    return figures.neuron_scores(scores, unit=f"mean attribution ({attribution.output})")


def attribution_html(attribution: "Attribution") -> str:
    """Return the HTML of an attribution: its method, its error bar and its figure."""
    n_prompts = len(attribution.prompts)
    method = f"{attribution.method}, {attribution.output}, {attribution.quadrature}"
    lines = [f"Attribution of {n_prompts:,} prompts: {method}."]
    gap = attribution.completeness_gap
    if not gap.isnan().all():
        largest = float(gap.abs()[~gap.isnan()].max())
        n_unconverged = len(attribution.unconverged)
        lines.append(f"Completeness gap at most {largest:.2g}; {n_unconverged:,} pairs above tolerance.")
    return figure_html(attribution_figure(attribution), lines)


def figure_html(figure: "Figure", lines: Iterable[str]) -> str:
    """Return the HTML of a figure below some lines of text.

    Plotly's renderer of the session writes the figure. In notebooks it loads the drawing library once. Without a
    renderer, the library is included (5 MB), so that nothing is loaded from elsewhere.
    """
    html = figure._repr_mimebundle_().get("text/html")
    if not html:
        html = figure.to_html(full_html=False, include_plotlyjs=True)
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return paragraphs + html


class EffectPlot(PlotAccessor):
    """The plot accessor of pandas, which draws the effect when called without arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Figure | Any":
        """Draw the effect; with arguments, or if its columns are missing, plot as pandas does."""
        from kn_lens.reports.figures import predictions

        table: Any = self._parent
        if args or kwargs or not set(EFFECT_COLUMNS) <= set(table):
            return super().__call__(*args, **kwargs)
        return predictions(table)
