"""Display of attributions, findings and effects in notebooks: a figure below a summary."""

import math
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from pandas.plotting import PlotAccessor

from kn_lens._core.display import ROWS_SHOWN, table_html
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from kn_lens.attribution import Attribution, PositionAttribution
    from kn_lens.circuits import Circuit, Faithfulness
    from kn_lens.facts import Fact
    from kn_lens.neurons import Findings

CIRCUIT_SETS = {"circuit": "found", "random": "random", "active": "activation"}
"""The neuron sets, as all figures name them, of a circuit and its controls."""

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


def position_figure(attribution: "PositionAttribution", *, value: str = "effect") -> "Figure":
    """Draw what each layer carries at the tokens of each role; see ``PositionAttribution.plot_positions``.

    Raises:
        ArgumentError: another value than ``effect`` and ``positive``.
    """
    from kn_lens.reports import figures

    names = {"effect": "mean P(w) - P(0)", "positive": "mean sum of positive scores"}
    if value not in names:
        raise ArgumentError(f"value={value!r}; expected 'effect' or 'positive'.{did_you_mean(str(value), names)}")
    table = attribution.by_role()
    if table[value].isna().to_numpy().all():
        raise ArgumentError(
            f"Scores by {attribution.method!r} have no sum by completeness; expected value='positive', or scores by "
            "another method."
        )
    return figures.position_map(table, value=value, unit=f"{names[value]} ({attribution.output})")


def attribution_html(attribution: "Attribution") -> str:
    """Return the HTML of an attribution: its method, its error bar and its figure.

    Plotly's renderer of the session writes the figure. In notebooks it loads the drawing library once. Without a
    renderer there is a short table instead, since the library alone has 5 MB.
    """
    n_prompts = len(attribution.prompts)
    method = f"{attribution.method}, {attribution.output}, {attribution.quadrature}"
    lines = [f"Attribution of {n_prompts:,} prompts: {method}."]
    gap = attribution.completeness_gap
    if not gap.isnan().all():
        largest = float(gap.abs()[~gap.isnan()].max())
        n_unconverged = len(attribution.unconverged)
        lines.append(f"Completeness gap at most {largest:.2g}; {n_unconverged:,} pairs above tolerance.")
    html = _figure_html(attribution_figure(attribution), lines)
    return html or _table_of_scores(attribution, " ".join(lines))


def findings_figure(
    findings: "Findings",
    fact: "Fact | None" = None,
    *,
    top: int = 20,
    seed: int = 0,
) -> "Figure":
    """Draw the neurons of highest mean score, the found ones in colour; see ``Findings.plot``."""
    from kn_lens.reports import figures

    attribution = findings.attribution
    scores = attribution.top(top, fact, seed=seed)
    found = findings.neurons if fact is None else findings.neurons_by_fact[fact]
    scores["found"] = [name in found for name in scores["neuron"]]
    return figures.neuron_scores(scores, unit=f"mean attribution ({attribution.output})")


def findings_html(findings: "Findings") -> str:
    """Return the HTML of findings: what was found, its error bar, and its figure or a short table of its neurons."""
    html = _figure_html(findings_figure(findings), [repr(findings)])
    if html:
        return html
    neurons = findings.to_frame()
    rows = []
    for row in neurons.head(ROWS_SHOWN).to_dict("records"):
        shared = f"{row['n_shared']} of {row['n_prompts']}"
        rows.append([row["relation"], row["subject"], row["object"], row["neuron"], shared, f"{row['score']:.3g}"])
    score = f"mean attribution ({findings.attribution.output})"
    columns = ["relation", "subject", "object", "neuron", "prompts", score]
    return table_html(repr(findings), columns, rows, n_rows=len(neurons))


def circuit_figure(circuit: "Circuit", *, n_edges: int | None = None) -> "Figure":
    """Draw a circuit as a graph; see ``Circuit.plot``."""
    from kn_lens.reports import figures

    options: dict[str, Any] = {} if n_edges is None else {"n_edges": n_edges}
    title = str(circuit.meta.get("prompt", "Circuit"))
    tokens = circuit.meta.get("tokens")
    return figures.circuit(circuit.to_frame(), circuit.edges_frame(), tokens=tokens, title=title, **options)


def circuit_html(circuit: "Circuit") -> str:
    """Return the HTML of a circuit: its shape, and its graph or a short table of its nodes."""
    lines = [f"{circuit.n_neurons:,} neurons and {circuit.n_heads:,} heads."]
    if "faithfulness" in circuit.meta:
        lines.append(f"Faithfulness {circuit.meta['faithfulness']:.2f} of {circuit.meta['n_nodes']:,} nodes.")
    html = _figure_html(circuit_figure(circuit), lines) if len(circuit) else ""
    if html:
        return html
    table = circuit.to_frame().head(ROWS_SHOWN)
    rows = [[node, f"{score:+.3g}"] for node, score in table[["node", "score"]].itertuples(index=False)]
    return table_html(" ".join(lines), ["node", "score (logits)"], rows, n_rows=len(circuit))


def circuit_curve_figure(measured: "Faithfulness", *, seed: int = 0) -> "Figure":
    """Draw circuits by size; see ``Faithfulness.plot``.

    Raises:
        ArgumentError: circuits that are measured at one size each.
    """
    from kn_lens.reports import figures

    if not measured.by_size:
        raise ArgumentError("The circuits were measured at one size each; expected faithfulness(model, scores).")
    table = measured.curve(seed=seed)
    return figures.circuit_curve(table.assign(neuron_set=[CIRCUIT_SETS[name] for name in table["set"]]))


def _figure_html(figure: "Figure", lines: Iterable[str]) -> str:
    """Return the HTML of a figure below some lines of text; empty where nothing draws figures."""
    html = figure._repr_mimebundle_().get("text/html")
    if not html:
        return ""
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return paragraphs + html


def _table_of_scores(attribution: "Attribution", summary: str) -> str:
    """Return the neurons of highest mean score as a table of some kilobytes."""
    scores = attribution.top(ROWS_SHOWN)
    rows = []
    for neuron, score, low, high in scores[["neuron", "score", "low", "high"]].itertuples(index=False):
        interval = "-" if math.isnan(low) else f"{low:.3g} to {high:.3g}"
        rows.append([neuron, f"{score:.3g}", interval])
    columns = ["neuron", f"mean attribution ({attribution.output})", "95% interval"]
    return table_html(summary, columns, rows, n_rows=len(rows))


class EffectPlot(PlotAccessor):
    """The plot accessor of pandas, which draws the effect when called without arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Figure | Any":
        """Draw the effect; with arguments, or if its columns are missing, plot as pandas does."""
        from kn_lens.reports.figures import predictions

        table: Any = self._parent
        if args or kwargs or not set(EFFECT_COLUMNS) <= set(table):
            return super().__call__(*args, **kwargs)
        return predictions(table)
