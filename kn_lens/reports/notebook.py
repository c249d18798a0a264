"""Display of attributions and effects in notebooks: a figure below a summary."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.plotting import PlotAccessor

from kn_lens._core.bootstrap import mean_intervals
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from kn_lens.attribution import Attribution
    from kn_lens.facts import Fact

N_RESAMPLES = 1000
"""Bootstrap draws of prompts."""

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

    scores = highest_scores(attribution, fact, top, seed)
    return figures.neuron_scores(scores, unit=f"mean attribution ({attribution.output})")


def highest_scores(
    attribution: "Attribution",
    fact: "Fact | None",
    top: int,
    seed: int,
) -> pd.DataFrame:
    """Return ``layer``, ``index``, ``score``, ``low`` and ``high`` of the neurons of highest mean score.

    Raises:
        ArgumentError: The fact has no prompts in the attribution.
    """
    prompts = attribution.prompts
    chosen = list(range(len(prompts)))
    if fact is not None:
        chosen = [i for i in chosen if prompts.fact(i) == fact]
        if not chosen:
            hint = did_you_mean(fact.key, (other.key for other in prompts.facts))
            raise ArgumentError(f"{fact.key} has no prompts in this attribution.{hint}")
    scores = attribution.scores
    if scores.is_sparse:
        scores = scores.to_dense()
    by_prompt = scores[chosen].double().cpu().numpy()
    d_mlp = by_prompt.shape[-1]
    by_prompt = by_prompt.reshape(len(by_prompt), -1)
    mean = by_prompt.mean(0)
    n_shown = min(top, int((~np.isnan(mean)).sum()))
    best = np.argsort(-mean, kind="stable")[:n_shown]  # NaN is last
    intervals = mean_intervals(by_prompt[:, best], N_RESAMPLES, np.random.default_rng(seed))
    bounds = pd.DataFrame(intervals, columns=["low", "high"])
    return pd.DataFrame(
        {
            "layer": best // d_mlp,
            "index": best % d_mlp,
            "score": mean[best],
        }
    ).join(bounds)


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
