"""What attributions and effects look like in a notebook: the figures of a report, and what to say above them."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._draws import interval, resampled

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from kn_lens.facts import Fact

DRAWS = 1000
"""Of the bootstrap over prompts."""


class AttributionPlot:
    """The part of an ``Attribution`` that is looked at."""

    def plot(self: Any, fact: "Fact | None" = None, *, top: int = 20, seed: int = 0) -> "Figure":
        """Draw the neurons of highest mean score with 95% intervals, as a Plotly figure.

        The intervals come from drawing the prompts anew, with replacement; fewer than 8 prompts have none. Scores that
        were dropped (``keep``) count as 0.

        Args:
            fact: the mean is over its prompts; None takes all prompts.
            top: how many neurons.
            seed: of the bootstrap.

        Raises:
            ArgumentError: the fact has no prompts here, or no neuron has a score.
        """
        from kn_lens import figures

        return figures.neuron_scores(self._top(fact, top, seed), unit=f"mean attribution ({self.output})")

    def _top(self: Any, fact: "Fact | None", top: int, seed: int) -> "pd.DataFrame":
        """Return ``layer``, ``index``, ``score``, ``low`` and ``high`` of the neurons of highest mean score."""
        import pandas as pd

        from kn_lens.errors import ArgumentError, did_you_mean

        scores, chosen = self.scores, range(len(self.prompts))
        if fact is not None:
            facts = self.prompts.facts
            chosen = [i for i, number in enumerate(self.prompts.fact_index.tolist()) if facts[number] == fact]
            if not chosen:
                near = did_you_mean(fact.key, (one.key for one in facts))
                raise ArgumentError(f"{fact.key} has no prompts in this attribution.{near}")
        if scores.is_sparse:
            scores = scores.to_dense()
        of_prompts = scores[list(chosen)].double().cpu().numpy()
        d_mlp = of_prompts.shape[-1]
        of_prompts = of_prompts.reshape(len(of_prompts), -1)
        mean = of_prompts.mean(0)
        best = np.argsort(-mean, kind="stable")[: min(top, int((~np.isnan(mean)).sum()))]  # NaN comes last
        n = len(of_prompts)
        counts = resampled(n, DRAWS, np.random.default_rng(seed))
        drawn = counts @ of_prompts[:, best] / counts.sum(1, keepdims=True)
        ends = pd.DataFrame([interval(one, np.array([n])) for one in drawn.T], columns=["low", "high"])
        return pd.DataFrame({"layer": best // d_mlp, "index": best % d_mlp, "score": mean[best]}).join(ends)

    def _repr_html_(self: Any) -> str:
        gap = self.completeness_gap
        said = [f"Attribution of {len(self.prompts):,} prompts: {self.method}, {self.output}, {self.quadrature}."]
        if not gap.isnan().all():
            largest = float(gap.abs()[~gap.isnan()].max())
            said.append(f"Completeness gap at most {largest:.2g}; {len(self.unconverged):,} pairs above tolerance.")
        return as_html(self.plot(), said)


def as_html(figure: "Figure", said: Iterable[str]) -> str:
    """Return a figure below some lines of text, as a notebook shows it.

    Plotly's renderer of the session writes it, which in notebooks brings its library once; where there is none, the
    library is written into it (5 MB), so that nothing is loaded from elsewhere.
    """
    drawn = figure._repr_mimebundle_().get("text/html") or figure.to_html(full_html=False, include_plotlyjs=True)
    return "".join(f"<p>{escape(line)}</p>" for line in said) + drawn
