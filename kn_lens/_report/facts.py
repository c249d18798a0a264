"""What a report says about each fact and each neuron, as columns that JSON holds.

Numbers are rounded to four significant digits, which is more than the figures show and what makes 20,000 facts fit into
a page; the records have them all.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kn_lens._run_records import RunRecords

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, list[Any]]

FACTS_AT_ONCE = 400
"""Details of so many facts are unpacked together when a reader opens one of them."""
DIGITS = ".4g"

PREDICTIONS = ("text", "before", "after", "rank_before", "rank_after", "top_before", "top_after")
SCORES = ("layer", "index", "score", "low", "high", "share", "n_prompts")


@dataclass(frozen=True, kw_only=True)
class FactPages:
    """What the pages of facts show.

    Attributes:
        facts: one row each: ``relation``, ``subject``, ``object``, ``key``, ``prompts``; ``right``, the share of the
            prompts answered rightly; mean probabilities of the answer: ``before``, with the fact's neurons switched
            ``off``, with random ones (``random_off``), and with its neurons turned ``up``; ``n_neurons`` and
            ``neurons``, as ``[layer, index]``. Columns of stages that are not there are left out.
        neurons: one row each: ``layer``, ``index``, ``n_facts`` and ``n_relations`` that have it; ``score``, its mean
            over these facts; ``tokens`` and ``logits`` of its read-out.
        predictions: the records of that stage; None where it is not there.
        scores: the records of ``neuron_scores``; None where it is not there.
    """

    facts: "pd.DataFrame"
    neurons: "pd.DataFrame"
    predictions: "pd.DataFrame | None"
    scores: "pd.DataFrame | None"

    def details(self) -> Iterator[list[dict[str, Columns]]]:
        """Yield, ``FACTS_AT_ONCE`` facts at a time and in their order, the ``predictions`` and ``scores`` of each."""
        tables = {
            name: (_columns(table, names), table.groupby("key", sort=False).indices)
            for name, table, names in (
                ("predictions", self.predictions, PREDICTIONS), ("scores", self.scores, SCORES),
            )
            if table is not None
        }  # fmt: skip
        keys = self.facts["key"].tolist()
        for start in range(0, len(keys), FACTS_AT_ONCE):
            yield [
                {
                    name: {column: [values[row] for row in rows.get(key, ())] for column, values in columns.items()}
                    for name, (columns, rows) in tables.items()
                }
                for key in keys[start : start + FACTS_AT_ONCE]
            ]


def fact_pages(run: RunRecords) -> FactPages | None:
    """Return what is known of each fact that was asked; None for a run without facts."""
    import pandas as pd

    asked = run.records("facts")
    if asked is None:
        return None
    asked = asked.loc[asked["asked"]].reset_index(drop=True)
    facts = asked.loc[:, ["relation", "subject", "object", "key"]].assign(prompts=asked["n_prompts"])
    answers, effects, sets = (run.records(stage) for stage in ("answers", "effects", "neurons"))
    predictions, scores, readouts = (run.records(stage) for stage in ("predictions", "neuron_scores", "readouts"))
    if answers is not None:
        right = (answers["n_right"] / answers["n_prompts"]).set_axis(answers["key"])
        facts["right"] = facts["key"].map(right)
    if effects is not None:
        own = effects.loc[effects["facts"] == "own"]
        for name, kind, factor, when in (
            ("before", "found", 0.0, "before"), ("off", "found", 0.0, "after"), ("random_off", "random", 0.0, "after"),
            ("up", "found", 2.0, "after"),
        ):  # fmt: skip
            cell = own.loc[(own["neurons"] == kind) & (own["factor"] == factor)]
            facts[name] = facts["key"].map(cell.set_index("key")[when])
    neurons = pd.DataFrame({"layer": [], "index": [], "n_facts": [], "n_relations": []}, dtype=int)
    if sets is not None:
        found = sets.loc[sets["neurons"] == "found"]
        of_key = {
            key: [list(pair) for pair in zip(layers.tolist(), indices.tolist(), strict=True)]
            for key, layers, indices in zip(found["key"], found["layer"], found["index"], strict=True)
        }
        facts["neurons"] = [of_key.get(key, []) for key in facts["key"]]
        facts["n_neurons"] = [len(of_fact) for of_fact in facts["neurons"]]
        neurons = _neurons(found)
    if scores is not None:
        means = scores.groupby(["layer", "index"], as_index=False).agg({"score": "mean"})
        neurons = neurons.merge(means, on=["layer", "index"], how="left")
    if readouts is not None:
        read = readouts.set_index(["layer", "index"])
        pairs = pd.MultiIndex.from_frame(neurons.loc[:, ["layer", "index"]])
        for name in ("tokens", "logits"):
            values = read[name].reindex(pairs)
            neurons[name] = [[] if isinstance(one, float) else one.tolist() for one in values]
    return FactPages(facts=facts, neurons=neurons, predictions=predictions, scores=scores)


def _neurons(found: "pd.DataFrame") -> "pd.DataFrame":
    """Return the distinct neurons, those of most facts first."""
    cells = found.loc[:, ["relation", "key", "layer", "index"]].explode(["layer", "index"]).dropna()
    cells = cells.astype({"layer": int, "index": int})
    counted = cells.groupby(["layer", "index"], as_index=False).agg(
        n_facts=("key", "nunique"), n_relations=("relation", "nunique")
    )
    return counted.sort_values(["n_facts", "layer", "index"], ascending=[False, True, True], ignore_index=True)


def as_columns(table: "pd.DataFrame") -> Columns:
    """Return a table as lists that JSON holds."""
    return _columns(table, list(table))


def _columns(table: "pd.DataFrame", names: Sequence[str]) -> Columns:
    return {name: _plain(table[name].tolist()) for name in names}


def _plain(values: Iterable[Any]) -> list[Any]:
    return [_cell(value) for value in values]


def _cell(value: Any) -> Any:
    """Return a value with its digits cut, None for what is no number."""
    if isinstance(value, float):
        return float(format(value, DIGITS)) if math.isfinite(value) else None
    return _plain(value) if isinstance(value, list) else value
