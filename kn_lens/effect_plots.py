"""``Effect``: the table that ``measure`` returns, which draws itself."""

from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.plotting import PlotAccessor

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DRAWN = ("text", "before", "after")


class Effect(pd.DataFrame):
    """A pandas table of prompts, before and after an intervention.

    It is a ``DataFrame`` in all it does, and so are the parts that are taken of it; ``plot()``, without arguments,
    draws the figure of a report. With arguments, or where a part lacks the columns for it, ``plot`` is pandas' own.

    >>> effect = Effect({"text": ["Paris is in [MASK]."], "before": [0.9], "after": [0.1]})
    >>> effect.plot().layout.xaxis.title.text
    'probability of the answer'
    """

    @property
    def _constructor(self) -> "type[Effect]":
        return Effect

    @property
    def plot(self) -> "EffectPlot":
        """Draw the probability of the answer before and after, a row a prompt; or what pandas draws."""
        return EffectPlot(self)


class EffectPlot(PlotAccessor):
    """Pandas' ways to plot, of which the one without arguments is ours."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Figure | Any":
        """Draw the effect; with arguments, or without its columns, as pandas does."""
        from kn_lens.figures import predictions

        table: Any = self._parent
        if args or kwargs or not set(DRAWN) <= set(table):
            return super().__call__(*args, **kwargs)
        return predictions(table)
