"""Facts and neurons of a report, as columns for JSON.

Numbers are rounded to four significant digits: more than the figures show, and few enough for 20,000 facts to fit into
a page. The records have all digits.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from kn_lens._core.notation import keys_in_columns
from kn_lens.reports.html.neuron_columns import KEY_COLUMNS, neuron_cells, without_missing_experts
from kn_lens.runs.reader import RunRecords

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, list[Any]]

FACTS_AT_ONCE = 400
"""Number of facts whose details the page unpacks together when a reader opens one of them."""
DIGITS = ".4g"

PREDICTIONS = ("text", "before", "after", "rank_before", "rank_after", "top_before", "top_after")
SCORES = ("layer", "expert", "index", "score", "low", "high", "share", "n_prompts")
EFFECTS = ("neuron_set", "scope", "before", "suppressed", "amplified")
TEXTS = ("end", "found", "texts", "text", "word")
TEXTS_OF_AN_END = 3
"""Number of texts of highest, and of lowest, activation on a fact's page."""
SHOWN_EFFECTS = (("found", "own"), ("found", "other"), ("activation", "own"), ("random", "own"))
"""Neuron sets, and the facts that they are measured on, on a fact's page."""


@dataclass(frozen=True, kw_only=True)
class FactPages:
    """The content of the pages of facts.

    Attributes:
        facts: one row for each fact: ``relation``, ``relation_name`` (``capital (P36)``), ``subject``, ``object``,
            ``key``, ``prompts``; ``right``, the share of correct answers; mean probabilities of the answer: ``before``,
            with the fact's neurons suppressed (``off``), with random ones suppressed (``random_off``), and with its
            neurons amplified (``up``); ``n_neurons`` and ``neurons``, as keys. Columns of missing stages are omitted.
        neurons: one row for each neuron: ``layer``, ``expert`` where there are some, ``index``; ``n_facts`` and
            ``n_relations`` that have it; ``score``, its mean over these facts; ``tokens`` and ``logits`` of its
            read-out.
        predictions: records of the stage ``predictions``; None if missing.
        scores: records of the stage ``neuron_scores``; None if missing.
        effects: one row for each fact, ``neuron_set`` and ``scope``: the mean probability of the answer ``before``,
            with the neurons ``suppressed``, and with them ``amplified``; None if missing.
        texts: for each fact, the texts under which its neurons are most and least active on average (``end``: ``top``
            or ``bottom``), their mean activation ``found``, the kind of ``texts`` and the ``word`` that the model does
            not read; None if missing.
    """

    facts: "pd.DataFrame"
    neurons: "pd.DataFrame"
    predictions: "pd.DataFrame | None"
    scores: "pd.DataFrame | None"
    effects: "pd.DataFrame | None"
    texts: "pd.DataFrame | None"

    def details(self) -> Iterator[list[dict[str, Columns]]]:
        """Yield the tables of each fact that exist, in order, in lists of ``FACTS_AT_ONCE`` facts."""
        tables = {
            "predictions": (self.predictions, PREDICTIONS),
            "scores": (self.scores, SCORES),
            "effects": (self.effects, EFFECTS),
            "texts": (self.texts, TEXTS),
        }
        by_fact = {}
        for name, (table, columns) in tables.items():
            if table is not None:
                by_fact[name] = _columns_by_fact(table, columns)
        keys = self.facts["key"].tolist()
        for start in range(0, len(keys), FACTS_AT_ONCE):
            part: list[dict[str, Columns]] = []
            for key in keys[start : start + FACTS_AT_ONCE]:
                details = {}
                for name, columns in by_fact.items():
                    details[name] = columns.of(key)
                part.append(details)
            yield part


@dataclass(frozen=True)
class _ColumnsByFact:
    """Columns of a table, and the rows of each fact in them."""

    columns: Columns
    rows: dict[str, Sequence[int]]

    def of(self, key: str) -> Columns:
        rows = self.rows.get(key, ())
        columns: Columns = {}
        for name, values in self.columns.items():
            columns[name] = [values[row] for row in rows]
        return columns


def _columns_by_fact(table: "pd.DataFrame", names: Sequence[str]) -> _ColumnsByFact:
    rows = cast("dict[str, Sequence[int]]", dict(table.groupby("key", sort=False).indices))
    return _ColumnsByFact(as_columns(without_missing_experts(table.loc[:, list(names)])), rows)


def fact_pages(run: RunRecords) -> FactPages | None:
    """Return the content of the pages of all queried facts; None for a run without facts."""
    records = run.records("facts")
    if records is None:
        return None
    records = records.loc[records["queried"]].reset_index(drop=True)
    facts = records.loc[:, ["relation", "subject", "object", "key"]]
    names = run.relation_names()
    relation_names = [names.get(relation, relation) for relation in facts["relation"]]
    facts.insert(1, "relation_name", relation_names)
    facts = facts.assign(prompts=records["n_prompts"])
    _add_answers(facts, run.records("answers"))
    effects = run.records("effects")
    _add_effects(facts, effects)
    found = run.records("neurons")
    if found is not None:
        found = found.loc[found["neuron_set"] == "found"]
        _add_neurons(facts, found)
    scores = run.records("neuron_scores")
    return FactPages(
        facts=facts,
        neurons=_neuron_rows(found, scores, run.records("readouts")),
        predictions=run.records("predictions"),
        scores=scores,
        effects=None if effects is None else _effect_rows(effects),
        texts=_text_rows(run.records("texts")),
    )


def _effect_rows(effects: "pd.DataFrame") -> "pd.DataFrame":
    """Return the effects on the pages of facts, in the order of ``SHOWN_EFFECTS``."""
    import pandas as pd

    parts = []
    for neuron_set, scope in SHOWN_EFFECTS:
        rows = effects.loc[(effects["neuron_set"] == neuron_set) & (effects["scope"] == scope)]
        suppressed = rows.loc[rows["factor"] == 0.0, ["key", "neuron_set", "scope", "before", "after"]]
        suppressed = suppressed.rename(columns={"after": "suppressed"})
        amplified = rows.loc[rows["factor"] == 2.0, ["key", "after"]].rename(columns={"after": "amplified"})
        parts.append(suppressed.merge(amplified, on="key", how="left"))
    return pd.concat(parts, ignore_index=True)


def _text_rows(texts: "pd.DataFrame | None") -> "pd.DataFrame | None":
    """Return the texts of highest activation of each fact, then those of lowest, each text once."""
    import pandas as pd

    if texts is None:
        return None
    ordered = texts.sort_values("found", ascending=False, kind="stable")
    by_fact = ordered.groupby("key", sort=False)
    top = by_fact.head(TEXTS_OF_AN_END)
    bottom = by_fact.tail(TEXTS_OF_AN_END)
    bottom = bottom.loc[~bottom.index.isin(top.index)]
    return pd.concat([top.assign(end="top"), bottom.assign(end="bottom")], ignore_index=True)


def _add_answers(facts: "pd.DataFrame", answers: "pd.DataFrame | None") -> None:
    if answers is not None:
        right = (answers["n_right"] / answers["n_prompts"]).set_axis(answers["key"])
        facts["right"] = cast("pd.Series", facts["key"]).map(cast("pd.Series", right))


def _add_effects(facts: "pd.DataFrame", effects: "pd.DataFrame | None") -> None:
    if effects is None:
        return
    own = effects.loc[effects["scope"] == "own"]

    def column(neuron_set: str, factor: float, when: str) -> "pd.Series":
        rows = own.loc[(own["neuron_set"] == neuron_set) & (own["factor"] == factor)]
        return cast("pd.Series", facts["key"]).map(rows.set_index("key")[when])

    facts["before"] = column("found", 0.0, "before")
    facts["off"] = column("found", 0.0, "after")
    facts["random_off"] = column("random", 0.0, "after")
    facts["up"] = column("found", 2.0, "after")


def _add_neurons(facts: "pd.DataFrame", found: "pd.DataFrame") -> None:
    neurons: dict[str, list[list[int]]] = {}
    for key, *columns in zip(found["key"], *(found[name] for name in KEY_COLUMNS), strict=True):
        neurons[key] = [list(neuron) for neuron in keys_in_columns(*columns)]
    facts["neurons"] = [neurons.get(key, []) for key in facts["key"]]
    facts["n_neurons"] = facts["neurons"].map(len)


def _neuron_rows(
    found: "pd.DataFrame | None",
    scores: "pd.DataFrame | None",
    readouts: "pd.DataFrame | None",
) -> "pd.DataFrame":
    """Return the distinct neurons, those of the most facts first, with their scores and read-outs."""
    import pandas as pd

    if found is None:
        neurons = pd.DataFrame(
            {
                "layer": [],
                "expert": [],
                "index": [],
                "n_facts": [],
                "n_relations": [],
            },
            dtype=int,
        )
    else:
        cells = neuron_cells(found, "relation", "key")
        groups = cells.groupby(KEY_COLUMNS, as_index=False, dropna=False)
        neurons = groups.agg(n_facts=("key", "nunique"), n_relations=("relation", "nunique"))
        neurons = neurons.sort_values(
            ["n_facts", *KEY_COLUMNS],
            ascending=[False, True, True, True],
            ignore_index=True,
        )
    if scores is not None:
        means = scores.groupby(KEY_COLUMNS, as_index=False, dropna=False).agg({"score": "mean"})
        neurons = neurons.merge(means, on=KEY_COLUMNS, how="left")
    if readouts is not None:
        lists = ["tokens", "logits"]
        neurons = neurons.merge(readouts.loc[:, [*KEY_COLUMNS, *lists]], on=KEY_COLUMNS, how="left")
        for name in lists:
            neurons[name] = list(map(_list_or_empty, neurons[name]))
    return without_missing_experts(neurons)


def _list_or_empty(value: Any) -> list[Any]:
    """Return an array as a list; an empty list for NaN, the value of a neuron without a read-out."""
    return [] if isinstance(value, float) else value.tolist()


def as_columns(table: "pd.DataFrame") -> Columns:
    """Return a table as lists of JSON values."""
    columns: Columns = {}
    for name in table:
        columns[str(name)] = list(map(_json_value, table[name].tolist()))
    return columns


def _json_value(value: Any) -> Any:
    """Return a value with its digits rounded; None for NaN and infinity."""
    if isinstance(value, list):
        return list(map(_json_value, value))
    if isinstance(value, float):
        return float(format(value, DIGITS)) if math.isfinite(value) else None
    return value
