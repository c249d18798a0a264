"""Statistics of relations and of all together: their values, and intervals from facts drawn anew."""

import math

import numpy as np
import pandas as pd
import pytest

from kn_lens._bootstrap import all_summed_up, change_ratio, mean_of, perplexity, summed_up, with_control


def test_means_over_relations_and_their_controls():
    records = pd.DataFrame(
        {
            "relation": ["a", "a", "a", "b"] * 2,
            "neurons": ["found"] * 4 + ["random"] * 4,
            "x": [0.0, 1.0, 2.0, 5.0, 0.0, 0.0, 0.0, 1.0],
        }
    )
    table = with_control(summed_up(records, ["neurons"], mean_of("x"), n_resamples=2000))
    assert table[["neurons", "value", "n", "control"]].values.tolist() == [
        ["found", 3.0, 4, 0.5],
        ["random", 0.5, 4, 0.5],
    ]
    assert table[["low", "high"]].isna().all(axis=None)  # four facts are too few
    by_relation = summed_up(records, ["neurons"], mean_of("x"), by_relation=True, n_resamples=10)
    assert by_relation.query("neurons == 'found'")[["relation", "value", "n"]].values.tolist() == [
        ["a", 1.0, 3],
        ["b", 5.0, 1],
    ]


def test_a_perplexity_is_of_the_prompts_of_all_relations():
    records = pd.DataFrame({"relation": ["a", "a", "b"], "kind": "found", "n_prompts": [1, 3, 2]})
    records = records.assign(nll=[0.0, 1.0, 4.0])

    def of(rows):
        return math.exp(np.average(records["nll"].iloc[rows], weights=records["n_prompts"].iloc[rows]))

    table = summed_up(records, ["kind"], perplexity(), n_resamples=2000)
    assert table["value"].item() == pytest.approx(of([0, 1, 2])) and table["n"].item() == 3
    by_relation = summed_up(records, ["kind"], perplexity(), by_relation=True, n_resamples=10)
    assert by_relation["value"].tolist() == pytest.approx([math.exp(0.75), math.exp(4.0)])


def test_there_is_no_interval_where_more_than_a_twentieth_of_the_draws_has_no_value():
    records = pd.DataFrame({"relation": "a", "kind": "found", "before": [0.5, 0.0, 0.0], "after": 0.0, "n_prompts": 1})
    table = summed_up(records, ["kind"], change_ratio())
    assert table["value"].tolist() == [-1.0] and table[["low", "high"]].isna().all(axis=None)


def test_a_relation_without_a_value_is_left_out_of_the_mean():
    records = pd.DataFrame({"relation": ["a", "a", "b"], "neurons": "found", "x": [1.0, 3.0, 9.0], "n": [1, 1, 0]})
    table = summed_up(records, ["neurons"], mean_of("x", "n"), n_resamples=10)
    assert table[["value", "n"]].values.tolist() == [[2.0, 2]]
    by_relation = summed_up(records, ["neurons"], mean_of("x", "n"), by_relation=True, n_resamples=10)
    assert by_relation["value"].isna().tolist() == [False, True]


def some_records(n_facts=12):
    """Found and random neurons of the same facts, of relations of different sizes."""
    draw = np.random.default_rng(0)
    facts = pd.DataFrame({"relation": ["a"] * (n_facts - 3) + ["b"] * 3, "x": draw.normal(size=n_facts)})
    facts = facts.assign(n=draw.integers(1, 9, n_facts))
    return pd.concat([facts.assign(neurons="found"), facts.assign(neurons="random", x=facts["x"] + 10)])


def test_cells_of_the_same_facts_are_drawn_alike():
    """So that neurons which do everywhere 10 more have an interval that is 10 further on, to rounding."""
    found, random = summed_up(some_records(), ["neurons"], mean_of("x", "n")).to_dict("records")
    for name in ("value", "low", "high"):
        assert random[name] - found[name] == pytest.approx(10, abs=1e-9)
    assert found["low"] < found["value"] < found["high"]


def test_a_difference_is_of_the_same_facts_in_every_draw():
    records = some_records().assign(y=lambda table: table["x"] - 3, z=lambda table: 2 * table["x"])
    statistics = {"constant": mean_of("x") - mean_of("y"), "doubled": mean_of("z") - mean_of("x"), "x": mean_of("x")}
    table = all_summed_up(records, ["neurons"], statistics).set_index(["neurons", "measure"])
    for kind in ("found", "random"):
        assert table.loc[(kind, "constant"), "value"] == pytest.approx(3)
        assert table.loc[(kind, "constant"), ["low", "high"]].isna().all()  # all alike, to rounding
        doubled, x = (table.loc[(kind, name), ["value", "low", "high"]].tolist() for name in ("doubled", "x"))
        assert doubled == pytest.approx(x)


def test_an_interval_is_as_wide_as_it_is_told():
    records = some_records()
    ends = [
        all_summed_up(records, ["neurons"], {"x": mean_of("x")}, level=level).iloc[0][["low", "high"]].tolist()
        for level in (0.99, 0.8, 0.5)
    ]
    assert ends[0][0] < ends[1][0] < ends[2][0] < ends[2][1] < ends[1][1] < ends[0][1]


def test_where_no_relation_has_a_column_there_is_no_row():
    records = some_records().assign(only_a=lambda table: table["x"].where(table["relation"] == "a"), nowhere=math.nan)
    statistics = {name: mean_of(name) for name in ("x", "only_a", "nowhere", "missing")}
    table = all_summed_up(records, ["neurons"], statistics, n_resamples=10)
    rows = [(kind, name, n) for kind in ("found", "random") for name, n in (("x", 12), ("only_a", 9))]
    assert list(table[["neurons", "measure", "n"]].itertuples(index=False, name=None)) == rows


def test_a_control_is_that_of_the_same_cell():
    records = pd.concat(
        [some_records().assign(factor=0.0), some_records().query("neurons == 'found'").assign(factor=2.0)]
    )
    records = records.assign(y=lambda table: table["x"] - 3)
    table = all_summed_up(records, ["factor", "neurons"], {name: mean_of(name) for name in "xy"}, n_resamples=10)
    found = with_control(table).set_index(["factor", "neurons", "measure"])
    for measure in "xy":
        random = found.loc[(0.0, "random", measure), "value"]
        assert found.loc[(0.0, "found", measure), "control"] == found.loc[(0.0, "random", measure), "control"] == random
        assert np.isnan(found.loc[(2.0, "found", measure), "control"])
