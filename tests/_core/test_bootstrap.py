"""Statistics of relations and of all together: their values, and intervals from facts drawn anew."""

import math

import numpy as np
import pandas as pd
import pytest

from kn_lens._core.bootstrap import (
    bootstrap_counts,
    bootstrap_ratios,
    bootstrap_table,
    bootstrap_tables,
    change_ratio,
    fact_mean,
    fact_share,
    mean_intervals,
    nan_mean,
    perplexity,
    with_control,
)
from kn_lens._core.intervals import interval
from tests.intervals import ANY_NUMBER, AT_LEAST_0, SHARE, drawn_facts, is_close, naive_interval


@pytest.mark.parametrize("n_facts", [1, 2, 3, 9])
def test_a_draw_has_one_fact_less_than_the_sample_but_at_least_one(n_facts):
    counts = bootstrap_counts(n_facts, 50, np.random.default_rng(0))
    assert counts.shape == (51, n_facts) and (counts[0] == 1).all()
    assert (counts[1:].sum(1) == max(n_facts - 1, 1)).all()


def test_a_mean_is_over_what_has_a_value():
    values = np.random.default_rng(0).normal(size=(4, 30))
    values[np.random.default_rng(1).random((4, 30)) < 0.5] = math.nan
    for column, found in zip(values.T.tolist(), nan_mean(values).tolist(), strict=True):
        known = [value for value in column if not math.isnan(value)]
        assert found == pytest.approx(sum(known) / len(known) if known else math.nan, nan_ok=True)


# --- tables against loops over relations, draws and facts -------------------------------------------------


def naive_mean(facts, column, weight="n_prompts"):
    """The mean of a column over facts, or over their prompts."""
    weights = [1 if weight is None else fact[weight] for fact in facts]
    return sum(w * fact[column] for w, fact in zip(weights, facts, strict=True)) / sum(weights)


def naive_change_ratio(facts):
    before, after = naive_mean(facts, "before"), naive_mean(facts, "after")
    return (after - before) / before if before > 0 else math.nan


def naive_rise(facts):
    return math.exp(naive_mean(facts, "nll")) - math.exp(naive_mean(facts, "nll_before"))


# Of each measure: the statistic, a function of facts, whether several relations are pooled, the bounds, and the scale
# of the table.
MEASURES = {
    "missing": (fact_mean("missing"), None, False, ANY_NUMBER, float),
    "mean": (fact_mean("before"), lambda facts: naive_mean(facts, "before", None), False, ANY_NUMBER, float),
    "of prompts": (fact_mean("after", "n_prompts"), lambda facts: naive_mean(facts, "after"), False, ANY_NUMBER, float),
    "share": (fact_share("right", "n_prompts"), lambda facts: naive_mean(facts, "right"), False, SHARE, float),
    "share of facts": (fact_share("right"), lambda facts: naive_mean(facts, "right", None), False, SHARE, float),
    "ratio": (change_ratio(), naive_change_ratio, False, ANY_NUMBER, float),
    "perplexity": (perplexity(), lambda facts: naive_mean(facts, "nll"), True, AT_LEAST_0, math.exp),
    "rise": (perplexity() - perplexity("nll_before"), naive_rise, True, ANY_NUMBER, float),
}


def facts_of_relations(sizes, seed):
    """Facts with the columns of the measures; answers are likely (nll near 0), some facts have no ``before``."""
    rng = np.random.default_rng(seed)
    rows = []
    for relation, size in sizes.items():
        for _ in range(size):
            before = rng.uniform(0, 1) * (rng.random() < 0.7)
            row = {"relation": relation, "n_prompts": int(rng.integers(1, 9)), "before": before}
            row |= {"after": rng.uniform(0, 1), "right": rng.uniform(0.5, 1)}
            rows.append(row | {"nll": rng.gamma(0.02, 20), "nll_before": rng.gamma(0.5)})
    return pd.DataFrame(rows)


def naive_row(groups, measure, n_resamples, level, seed):
    """The value, the ends of the interval and the number of facts of a measure: a loop over draws and their facts."""
    _, of_facts, pooled, bounds, scale = MEASURES[measure]

    def of_relations(facts_by_relation):
        if pooled:
            return of_facts([fact for facts in facts_by_relation for fact in facts])
        values = [of_facts(facts) for facts in facts_by_relation]
        values = [value for value in values if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan

    chosen = [number for number, facts in enumerate(groups) if not math.isnan(of_facts(facts))]
    draws = []
    for positions in drawn_facts([len(facts) for facts in groups], n_resamples, seed):
        draws.append(of_relations([[groups[number][i] for i in positions[number]] for number in chosen]))
    value = of_relations([groups[number] for number in chosen])
    sizes = [len(groups[number]) for number in chosen]
    ends = naive_interval(value, draws, sizes, level=level, bounds=bounds)
    return scale(value), [scale(end) for end in ends], sum(sizes)


@pytest.mark.parametrize("options", [{}, {"n_resamples": 60, "level": 0.8, "seed": 3}])
def test_every_statistic_is_that_of_a_loop_over_draws_and_facts(options):
    """A relation without a ratio is left out, and one without a ratio in some draws is left out of these."""
    cells = {"z": facts_of_relations({"Q": 6, "P": 8, "R": 2}, 0), "a": facts_of_relations({"P": 9, "R": 1}, 1)}
    cells["z"].loc[cells["z"]["relation"] == "R", "before"] = [0.0, 0.3]
    cells["a"].loc[cells["a"]["relation"] == "R", "before"] = 0.0
    records = pd.concat([facts.assign(kind=kind) for kind, facts in cells.items()])
    statistics = {name: statistic for name, (statistic, *_) in MEASURES.items()}
    table = bootstrap_tables(records, ["kind"], statistics, **options)
    of_relation = bootstrap_tables(records, ["kind"], statistics, by_relation=True, **options)
    assert list(table.columns) == ["kind", "measure", "value", "low", "high", "n"]
    assert list(of_relation.columns) == ["kind", "relation", *table.columns[1:]]
    measures = [name for name in MEASURES if name != "missing"]
    keys = [(kind, name) for kind in ("z", "a") for name in measures]
    assert list(table[["kind", "measure"]].itertuples(index=False, name=None)) == keys
    rows = table.set_index(["kind", "measure"]).to_dict("index")
    given = {"n_resamples": 1000, "level": 0.95, "seed": 0, **options}
    n_left_out = 0
    for kind, name in keys:
        groups = [facts.to_dict("records") for _, facts in cells[kind].groupby("relation")]
        value, ends, n = naive_row(groups, name, **given)
        row = rows[kind, name]
        assert row["value"] == pytest.approx(value) and row["n"] == n, (kind, name)
        assert is_close([row["low"], row["high"]], ends), (kind, name)
        n_left_out += sum(map(len, groups)) - n
        alone = bootstrap_table(records[records["kind"] == kind], ["kind"], statistics[name], **options)
        assert alone.to_dict("records") == [{"kind": kind, **row}]
    assert n_left_out == 1
    first = of_relation[(of_relation["kind"] == "z") & (of_relation["relation"] == "P")].to_dict("records")
    facts = cells["z"].query("relation == 'P'").to_dict("records")  # drawn first, as relations are in order
    for row, name in zip(first, measures, strict=True):
        value, ends, n = naive_row([facts], name, **given)
        assert (row["measure"], row["n"]) == (name, n) and row["value"] == pytest.approx(value)
        assert is_close([row["low"], row["high"]], ends), name


@pytest.mark.parametrize("dtype", [bool, int, "Int64", object])
def test_whole_numbers_and_truth_values_of_any_type_are_numbers(dtype):
    records = pd.DataFrame({"relation": ["a"] * 9, "kind": "found", "x": [0.0, 1.0, 1.0] * 3, "n": 1.0})
    table = bootstrap_table(records, ["kind"], fact_mean("x", "n"), n_resamples=20)
    typed = records.astype({"x": dtype, "n": dtype})
    pd.testing.assert_frame_equal(bootstrap_table(typed, ["kind"], fact_mean("x", "n"), n_resamples=20), table)


def test_a_table_without_rows_has_its_columns():
    records = pd.DataFrame({"relation": ["a"], "kind": "found"})
    table = bootstrap_tables(records, ["kind"], {"x": fact_mean("x")}, n_resamples=2, name="statistic")
    assert list(table.columns) == ["kind", "statistic", "value", "low", "high", "n"] and not len(table)


# --- properties of tables ---------------------------------------------------------------------------------


def test_means_over_relations_and_their_controls():
    records = pd.DataFrame(
        {
            "relation": ["a", "a", "a", "b"] * 2,
            "neuron_set": ["found"] * 4 + ["random"] * 4,
            "x": [0.0, 1.0, 2.0, 5.0, 0.0, 0.0, 0.0, 1.0],
        }
    )
    table = with_control(bootstrap_table(records, ["neuron_set"], fact_mean("x"), n_resamples=2000))
    assert table[["neuron_set", "value", "n", "control"]].values.tolist() == [
        ["found", 3.0, 4, 0.5],
        ["random", 0.5, 4, 0.5],
    ]
    assert table[["low", "high"]].isna().all(axis=None)  # four facts are too few
    by_relation = bootstrap_table(records, ["neuron_set"], fact_mean("x"), by_relation=True, n_resamples=10)
    assert by_relation.query("neuron_set == 'found'")[["relation", "value", "n"]].values.tolist() == [
        ["a", 1.0, 3],
        ["b", 5.0, 1],
    ]


def test_a_perplexity_is_of_the_prompts_of_all_relations():
    records = pd.DataFrame({"relation": ["a", "a", "b"], "kind": "found", "n_prompts": [1, 3, 2]})
    records = records.assign(nll=[0.0, 1.0, 4.0])

    def of(rows):
        return math.exp(np.average(records["nll"].iloc[rows], weights=records["n_prompts"].iloc[rows]))

    table = bootstrap_table(records, ["kind"], perplexity(), n_resamples=2000)
    assert table["value"].item() == pytest.approx(of([0, 1, 2])) and table["n"].item() == 3
    by_relation = bootstrap_table(records, ["kind"], perplexity(), by_relation=True, n_resamples=10)
    assert by_relation["value"].tolist() == pytest.approx([math.exp(0.75), math.exp(4.0)])


def test_there_is_no_interval_where_more_than_a_twentieth_of_the_draws_has_no_value():
    records = pd.DataFrame({"relation": "a", "kind": "found", "before": [0.5, 0.0, 0.0], "after": 0.0, "n_prompts": 1})
    table = bootstrap_table(records, ["kind"], change_ratio())
    assert table["value"].tolist() == [-1.0] and table[["low", "high"]].isna().all(axis=None)


def test_a_relation_without_a_value_is_left_out_of_the_mean():
    records = pd.DataFrame({"relation": ["a", "a", "b"], "neuron_set": "found", "x": [1.0, 3.0, 9.0], "n": [1, 1, 0]})
    table = bootstrap_table(records, ["neuron_set"], fact_mean("x", "n"), n_resamples=10)
    assert table[["value", "n"]].values.tolist() == [[2.0, 2]]
    by_relation = bootstrap_table(records, ["neuron_set"], fact_mean("x", "n"), by_relation=True, n_resamples=10)
    assert by_relation["value"].isna().tolist() == [False, True]


def some_records(n_facts=12):
    """Found and random neurons of the same facts, of relations of different sizes."""
    draw = np.random.default_rng(0)
    facts = pd.DataFrame({"relation": ["a"] * (n_facts - 3) + ["b"] * 3, "x": draw.normal(size=n_facts)})
    facts = facts.assign(n=draw.integers(1, 9, n_facts))
    return pd.concat([facts.assign(neuron_set="found"), facts.assign(neuron_set="random", x=facts["x"] + 10)])


def test_cells_of_the_same_facts_are_drawn_alike():
    """So that neurons which do everywhere 10 more have an interval that is 10 further on, to rounding."""
    found, random = bootstrap_table(some_records(), ["neuron_set"], fact_mean("x", "n")).to_dict("records")
    for name in ("value", "low", "high"):
        assert random[name] - found[name] == pytest.approx(10, abs=1e-9)
    assert found["low"] < found["value"] < found["high"]


def test_a_difference_is_of_the_same_facts_in_every_draw():
    records = some_records().assign(y=lambda table: table["x"] - 3, z=lambda table: 2 * table["x"])
    statistics = {
        "constant": fact_mean("x") - fact_mean("y"),
        "doubled": fact_mean("z") - fact_mean("x"),
        "x": fact_mean("x"),
    }
    table = bootstrap_tables(records, ["neuron_set"], statistics).set_index(["neuron_set", "measure"])
    for kind in ("found", "random"):
        assert table.loc[(kind, "constant"), "value"] == pytest.approx(3)
        assert table.loc[(kind, "constant"), ["low", "high"]].isna().all()  # all alike, to rounding
        doubled, x = (table.loc[(kind, name), ["value", "low", "high"]].tolist() for name in ("doubled", "x"))
        assert doubled == pytest.approx(x)


def test_an_interval_is_as_wide_as_it_is_told():
    records = some_records()
    ends = [
        bootstrap_tables(records, ["neuron_set"], {"x": fact_mean("x")}, level=level).iloc[0][["low", "high"]].tolist()
        for level in (0.99, 0.8, 0.5)
    ]
    assert ends[0][0] < ends[1][0] < ends[2][0] < ends[2][1] < ends[1][1] < ends[0][1]


def test_where_no_relation_has_a_column_there_is_no_row():
    records = some_records().assign(only_a=lambda table: table["x"].where(table["relation"] == "a"), nowhere=math.nan)
    statistics = {name: fact_mean(name) for name in ("x", "only_a", "nowhere", "missing")}
    table = bootstrap_tables(records, ["neuron_set"], statistics, n_resamples=10)
    rows = [(kind, name, n) for kind in ("found", "random") for name, n in (("x", 12), ("only_a", 9))]
    assert list(table[["neuron_set", "measure", "n"]].itertuples(index=False, name=None)) == rows


def test_a_control_is_that_of_the_same_cell():
    records = pd.concat(
        [some_records().assign(factor=0.0), some_records().query("neuron_set == 'found'").assign(factor=2.0)]
    )
    records = records.assign(y=lambda table: table["x"] - 3)
    table = bootstrap_tables(
        records, ["factor", "neuron_set"], {name: fact_mean(name) for name in "xy"}, n_resamples=10
    )
    found = with_control(table).set_index(["factor", "neuron_set", "measure"])
    for measure in "xy":
        random = found.loc[(0.0, "random", measure), "value"]
        assert found.loc[(0.0, "found", measure), "control"] == found.loc[(0.0, "random", measure), "control"] == random
        assert np.isnan(found.loc[(2.0, "found", measure), "control"])


# --- paired columns ---------------------------------------------------------------------------------------


def example(seed=0, sizes=(5, 3, 7), n_columns=2):
    rng = np.random.default_rng(seed)
    relations = np.repeat(np.arange(len(sizes)), sizes)
    return rng.uniform(0, 2, (len(relations), n_columns)), rng.uniform(1, 2, (len(relations), n_columns)), relations


def test_means_are_those_of_relations_or_of_all_facts():
    top, bottom, relations = example()
    pooled = np.array([False, True])
    found = bootstrap_ratios(top, bottom, relations, pooled=pooled, n_resamples=5, seed=0)
    by_relation = [top[relations == r, 0].sum() / bottom[relations == r, 0].sum() for r in range(3)]
    assert found.drawn[0] == pytest.approx([np.mean(by_relation), top[:, 1].sum() / bottom[:, 1].sum()])
    assert found.contributions.mean(0) == pytest.approx(found.drawn[0])
    whole = bootstrap_ratios(
        np.ones_like(top, dtype=int), 1 + relations[:, None] * [1, 1], relations, n_resamples=5, seed=0
    )
    assert whole.contributions.mean(0) == pytest.approx(whole.drawn[0])  # of whole numbers


def test_draws_are_of_facts_of_the_same_relation_and_the_same_for_all_columns():
    top, bottom, relations = example(n_columns=1)
    twice = [np.hstack([one, one]) for one in (top, bottom)]
    found = bootstrap_ratios(*twice, relations, n_resamples=50, seed=0).drawn
    assert (found[:, 0] == found[:, 1]).all() and len(np.unique(found)) > 40
    constant = 5.0 * relations[:, None]  # all facts of a relation alike: nothing depends on which are drawn
    assert bootstrap_ratios(constant, np.ones_like(top), relations, n_resamples=50, seed=0).drawn == pytest.approx(5.0)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    relations, covered, trials = np.repeat([0, 1], 30), 0, 300
    for trial in range(trials):
        a, b = rng.normal(0, 1, 60), rng.normal(0, 1, 60)
        values = np.stack([a, a + b + 0.5], axis=1)  # the second is 0.5 larger on average
        drawn = bootstrap_ratios(values, np.ones_like(values), relations, n_resamples=200, seed=trial).drawn
        ends = interval(drawn[:, 1] - drawn[:, 0], np.array([30, 30]))
        covered += ends["low"] <= 0.5 <= ends["high"]
    assert 0.92 <= covered / trials <= 0.985


def test_ratios_of_draws_are_those_of_a_loop_over_facts():
    """The second relation has a denominator of 0 in some draws: these have no mean over relations."""
    numerators, denominators, relations = example(sizes=(5, 3))
    denominators[5:7] = numerators[5:7] = 0.0
    pooled = np.array([False, True])
    found = bootstrap_ratios(numerators, denominators, relations, pooled=pooled, n_resamples=30, seed=7).drawn[1:]
    positions = []
    for relation, n in enumerate((5, 3)):
        generator = np.random.default_rng([7, relation])
        positions.append(generator.integers(n, size=(30, n - 1)).tolist())
    n_undefined = 0
    for draw in range(30):
        facts = [positions[0][draw], [5 + i for i in positions[1][draw]]]
        ratios = []
        for chosen in facts:
            denominator = sum(denominators[i, 0] for i in chosen)
            ratios.append(sum(numerators[i, 0] for i in chosen) / denominator if denominator else math.nan)
        everything = facts[0] + facts[1]
        together = sum(numerators[i, 1] for i in everything) / sum(denominators[i, 1] for i in everything)
        assert found[draw].tolist() == pytest.approx([sum(ratios) / 2, together], nan_ok=True)
        n_undefined += math.isnan(ratios[1])
    assert 0 < n_undefined < 30


@pytest.mark.parametrize("n_rows", [3, 8, 20])
def test_intervals_of_means_of_columns_are_those_of_rows_drawn_one_by_one(n_rows):
    values = np.random.default_rng(0).gamma(1, 1, (n_rows, 2))
    ends = mean_intervals(values, 50, np.random.default_rng(5))
    for column, found in zip(values.T.tolist(), ends, strict=True):
        draws = [sum(column[i] for i in drawn) / len(drawn) for (drawn,) in drawn_facts([n_rows], 50, seed=5)]
        assert is_close(found.values(), naive_interval(sum(column) / n_rows, draws, [n_rows]))
        assert math.isnan(found["low"]) == (n_rows < 8)


def test_a_control_has_the_labels_left_of_the_value():
    """Other numbers of a row, right of its value, do not tell it from its control."""
    table = pd.DataFrame({"factor": [0.0, 0.0, 2.0], "neuron_set": ["found", "random", "found"]})
    table = table.assign(value=[0.5, 0.1, 0.7], low=0.0, high=1.0, n_neurons=[4.0, 3.0, 5.0])
    assert with_control(table)["control"].tolist() == pytest.approx([0.1, 0.1, math.nan], nan_ok=True)
    of_other_facts = table.rename(columns={"neuron_set": "varied"}).replace({"random": "another fact"})
    assert with_control(of_other_facts, "varied", "another fact")["control"].tolist()[:2] == [0.1, 0.1]


def test_a_table_without_a_control_has_a_column_of_numbers():
    table = pd.DataFrame({"neuron_set": ["found"], "value": [0.5], "low": 0.0, "high": 1.0})
    control = with_control(table)["control"]
    assert control.dtype == float and control.isna().all()
