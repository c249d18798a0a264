"""Figures 4 and 5: every value and interval equals plain loops over facts, relations and bootstrap samples."""

import math

import numpy as np
import pandas as pd
import pytest

from kn_lens.runs.paper import CHANGE_RATIO
from kn_lens.runs.stages.interventions import DOSES, EFFECTS
from tests.intervals import drawn_facts, is_close, naive_interval
from tests.stage_tables import tables_of

N_RESAMPLES, SEED = 90, 4
KINDS = ("random", "found", "baseline")


def made_up_records():
    """Effects of facts whose answers have a probability of 0 in part, so that relations and draws have no ratio.

    Factor 0: five relations, of which one has no ratio and one has none in many draws. Factor 2: one relation, where
    three of ten facts carry the ratio of own facts (few draws are without them) and two that of others (many are).
    """
    draw = np.random.default_rng(1)
    rows = []
    for kind in KINDS:
        for scope in ("other", "own"):
            n_nonzero = {"P9": 9, "P36": 4, "P1": 1, "none": 0, "P30": 1}
            sizes = {"P9": 9, "P36": 4, "P1": 1, "none": 2, "P30": 3}
            groups = [(0.0, relation, n, n_nonzero[relation]) for relation, n in sizes.items()]
            groups.append((2.0, "P9", 10, 3 if scope == "own" else 2))
            for factor, relation, n_facts, n_known in groups:
                for i in range(n_facts):
                    before = draw.uniform(0.1, 0.9) if i < n_known else 0.0
                    row = {"factor": factor, "relation": relation, "key": f"{relation}/{i}", "neuron_set": kind}
                    row |= {"scope": scope, "n_neurons": int(draw.integers(6)), "n_prompts": int(draw.integers(2, 9))}
                    rows.append({**row, "before": before, "after": before * draw.uniform(0.3, 1.2)})
    return pd.DataFrame(rows)


def mean(values):
    return math.fsum(values) / len(values)


def over_prompts(facts, value):
    return math.fsum(fact["n_prompts"] * value(fact) for fact in facts) / sum(fact["n_prompts"] for fact in facts)


def mean_change(facts):
    return over_prompts(facts, lambda fact: fact["after"] - fact["before"])


def mean_before(facts):
    return over_prompts(facts, lambda fact: fact["before"])


def change_ratio(facts):
    before = mean_before(facts)
    return mean_change(facts) / before if before > 0 else math.nan


def mean_ratio(groups):
    """Return the mean over the relations that have a ratio; NaN where none has."""
    ratios = [change_ratio(facts) for facts in groups]
    defined = [ratio for ratio in ratios if not math.isnan(ratio)]
    return mean(defined) if defined else math.nan


def naive_row(cell, relations):
    """Return the row of some relations in a cell, ``{relation: facts}``, and how many draws have no ratio."""
    names = [name for name in relations if not math.isnan(change_ratio(cell[name]))] or relations
    groups = [cell[name] for name in names]
    draws = []
    in_order = sorted(cell)
    for positions in drawn_facts([len(cell[name]) for name in in_order], N_RESAMPLES, SEED):
        drawn = {}
        for name, chosen in zip(in_order, positions, strict=True):
            drawn[name] = [cell[name][i] for i in chosen]
        draws.append(mean_ratio([drawn[name] for name in names]))
    value = mean_ratio(groups)
    low, high = naive_interval(value, draws, [len(facts) for facts in groups])
    row = {
        "value": value,
        "low": low,
        "high": high,
        "change": mean([mean_change(facts) for facts in groups]),
        "before": mean([mean_before(facts) for facts in groups]),
        "n_neurons": mean([fact["n_neurons"] for facts in groups for fact in facts]),
        "n": sum(map(len, groups)),
    }
    return row, sum(map(math.isnan, draws))


def naive_rows(records, by_relation):
    """Return all rows by their labels, and the numbers of draws without a ratio."""
    rows, undefined = {}, {}
    for factor in (0.0, 2.0):
        for kind in KINDS:
            for scope in ("own", "other"):
                cell = {}
                for fact in records.to_dict("records"):
                    if (fact["factor"], fact["neuron_set"], fact["scope"]) == (factor, kind, scope):
                        cell.setdefault(fact["relation"], []).append(fact)
                for relations in [[name] for name in cell] if by_relation else [list(cell)]:
                    labels = (factor, kind, scope, *(relations if by_relation else []))
                    rows[labels], undefined[labels] = naive_row(cell, relations)
    for labels, row in rows.items():
        factor, kind, scope, *relation = labels
        row["control"] = rows[factor, "random", scope, *relation]["value"]
        paper = CHANGE_RATIO.get((factor, kind), math.nan)
        row["paper"] = paper if scope == "own" and not by_relation else math.nan
    return rows, undefined


@pytest.mark.parametrize(
    "stage, name, by_relation",
    [(EFFECTS, "figures4_5", False), (EFFECTS, "figures4_5_by_relation", True), (DOSES, "dose_response", False)],
)
def test_figures_4_and_5_equal_loops_over_facts_and_draws(stage, name, by_relation):
    records = made_up_records()
    table = tables_of(stage, records, n_resamples=N_RESAMPLES, seed=SEED)[name]
    expected, undefined = naive_rows(records, by_relation)
    labels = ["factor", "neuron_set", "scope", *(["relation"] if by_relation else [])]
    assert len(table) == len(expected)
    for row in table.to_dict("records"):
        key = tuple(row[label] for label in labels)
        of_loops = expected[key]
        for column in ("value", "change", "before", "n_neurons", "n", "control", "paper"):
            assert row[column] == pytest.approx(of_loops[column], rel=1e-9, nan_ok=True), (key, column)
        assert is_close([row["low"], row["high"]], [of_loops["low"], of_loops["high"]]), key

    # A few draws without a ratio are left out; with many there is no interval.
    where = ["P9"] if by_relation else []
    few, many = (2.0, "found", "own", *where), (2.0, "found", "other", *where)
    assert 0 < undefined[few] <= 0.05 * N_RESAMPLES < undefined[many]
    assert not math.isnan(expected[few]["low"]) and math.isnan(expected[many]["low"])
