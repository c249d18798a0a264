"""``effect_table``, on made-up effects of known structure."""

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from tests.intervals import drawn_facts, is_close, naive_interval


def made_up(seed=0, n_facts=40, n_relations=3):
    """Return effects of known structure: own facts lose a third of their probability, others nothing on average."""
    draw = np.random.default_rng(seed)
    rows = []
    for kind in ("random", "found"):
        for scope in ("other", "own"):
            for i in range(n_facts):
                before = draw.uniform(0.2, 0.9)
                lost = 1 / 3 if (kind, scope) == ("found", "own") else 0.0
                rows.append(
                    {
                        "relation": f"P{i % n_relations}",
                        "neuron_set": kind,
                        "scope": scope,
                        "n_neurons": (1 + i % n_relations) * (i % 5),
                        "n_prompts": 5 + i % 2 * 5,
                        "before": before,
                        "after": before * (1 - lost + draw.normal(0, 0.05)),
                    }
                )
    return pd.DataFrame(rows)


def test_effect_table_is_the_mean_over_relations_of_ratios_of_means():
    effects = made_up()
    table = kn.effect_table(effects)
    assert list(zip(table.neuron_set, table.scope, strict=True)) == [
        ("found", "own"),
        ("found", "other"),
        ("random", "own"),
        ("random", "other"),
    ]
    per_relation = kn.effect_table(effects, by_relation=True).set_index(["neuron_set", "scope", "relation"])
    for row in table.itertuples():
        ratios, changes, befores = [], [], []
        for relation in ("P0", "P1", "P2"):
            cell = effects[
                (effects.neuron_set == row.neuron_set) & (effects.scope == row.scope) & (effects.relation == relation)
            ]
            # Over prompts: a fact of ten prompts counts twice as much as one of five.
            prompts = cell.loc[cell.index.repeat(cell.n_prompts)]
            changes.append((prompts.after - prompts.before).mean())
            befores.append(prompts.before.mean())
            ratios.append(changes[-1] / befores[-1])
            expected = per_relation.loc[(row.neuron_set, row.scope, relation)]
            assert expected.change_ratio == pytest.approx(ratios[-1]) and expected.n_facts == len(cell)
            assert (expected.change, expected.before) == pytest.approx((changes[-1], befores[-1]))
        means = np.mean(ratios), np.mean(changes), np.mean(befores)
        assert (row.change_ratio, row.change, row.before) == pytest.approx(means)
        assert row.low < row.change_ratio < row.high
        cell = effects[(effects.neuron_set == row.neuron_set) & (effects.scope == row.scope)]
        assert row.n_facts == 40 and row.n_neurons == pytest.approx(cell.n_neurons.mean())
    assert table.high[0] < -0.2 and table.low[1] < 0 < table.high[1]


def test_labels_of_the_callers_own_come_last():
    effects = made_up().replace({"random": "mine", "other": "elsewhere"})
    table = kn.effect_table(pd.concat([effects, made_up()]), n_resamples=2)
    kinds, scopes = ("found", "random", "mine"), ("own", "other", "elsewhere")
    made = {("found", "own"), ("found", "other"), ("found", "elsewhere"), ("random", "own"), ("random", "other")}
    made |= {("mine", "own"), ("mine", "elsewhere")}
    cells = [(kind, scope) for kind in kinds for scope in scopes if (kind, scope) in made]
    assert list(zip(table.neuron_set, table.scope, strict=True)) == cells


def test_intervals_resample_facts_within_their_relations():
    """Compared with facts drawn one sample at a time, where relations differ more than facts."""
    own = made_up(n_facts=12).query("neuron_set == 'found' and scope == 'own'")
    own = own.assign(after=own.after * own.relation.map({"P0": 1.0, "P1": 0.7, "P2": 0.4}))
    groups = [group for _, group in own.groupby("relation", sort=False)]

    def ratio(group):
        return (group.n_prompts * (group.after - group.before)).sum() / (group.n_prompts * group.before).sum()

    samples = [
        np.mean([ratio(group.iloc[chosen]) for group, chosen in zip(groups, draw, strict=True)])
        for draw in drawn_facts([len(group) for group in groups], 500)
    ]
    row = kn.effect_table(own, n_resamples=500, level=0.8).iloc[0]
    expected = naive_interval(row.change_ratio, samples, [len(group) for group in groups], level=0.8)
    assert is_close([row.low, row.high], expected)


def test_intervals_cover_the_truth_at_their_nominal_rate():
    """The true ratio is -1/3. Of 100 intervals 95 should contain it; a chance result below 85 is very unlikely."""
    held = 0
    for seed in range(60):
        effects = made_up(seed)
        own = effects[(effects.neuron_set == "found") & (effects.scope == "own")]
        row = kn.effect_table(own, n_resamples=200).iloc[0]
        held += row.low < -1 / 3 < row.high
    assert 0.85 * 60 < held


def test_intervals_are_deterministic_and_narrow_with_the_level():
    effects = made_up()
    pd.testing.assert_frame_equal(kn.effect_table(effects), kn.effect_table(effects))
    wide, narrow = kn.effect_table(effects), kn.effect_table(effects, level=0.5)
    assert ((wide.high - wide.low) > (narrow.high - narrow.low)).all()


def test_a_clean_probability_of_zero_gives_a_ratio_of_nan():
    effects = made_up().assign(before=0.0, after=0.0)
    table = kn.effect_table(effects)
    assert table[["change_ratio", "low", "high"]].isna().all(axis=None) and (table.change == 0).all()
    assert (table.n_facts == 40).all()


def test_a_relation_without_a_ratio_is_left_out_of_the_mean():
    effects = made_up()
    without = effects[effects.relation != "P1"]
    effects.loc[effects.relation == "P1", ["before", "after"]] = 0.0
    # As P1 is drawn with the others, the draws of those after it differ: the rest is exactly theirs.
    assert (kn.effect_table(effects).n_facts == kn.effect_table(without).n_facts).all()
    for column in ("change_ratio", "change", "before", "n_neurons"):
        assert (kn.effect_table(effects)[column] == kn.effect_table(without)[column]).all()
    table = kn.effect_table(effects)
    assert (table.low < table.change_ratio).all() and (table.change_ratio < table.high).all()
    by_relation = kn.effect_table(effects, by_relation=True).set_index("relation").loc["P1"]
    assert by_relation[["change_ratio", "low", "high"]].isna().all(axis=None) and (by_relation.before == 0).all()


@pytest.mark.parametrize("n_facts", [8, 20])
def test_draws_leave_out_relations_without_a_ratio(n_facts):
    """Of n facts only one has a probability above 0, so that (1 - 1/n)^n of the draws, about a third, lack it."""
    row = {"relation": "P1", "neuron_set": "found", "scope": "own", "n_neurons": 1, "n_prompts": 5}
    poor = pd.DataFrame([{**row, "before": 0.5 * (i == 0), "after": 0.4 * (i == 0)} for i in range(n_facts)])
    rich = pd.DataFrame([{**row, "relation": "P2", "before": 0.5, "after": 0.3 + i / 100} for i in range(n_facts)])
    alone = kn.effect_table(poor).iloc[0]
    assert alone.change_ratio == pytest.approx(-0.2) and np.isnan(alone.low) and np.isnan(alone.high)
    both = kn.effect_table(pd.concat([poor, rich])).iloc[0]
    assert both.low < both.change_ratio < both.high


def test_a_nan_effect_of_one_fact_makes_the_ratio_nan():
    effects = made_up()
    effects.loc[effects.relation == "P1", "after"] = np.nan
    table = kn.effect_table(effects)
    assert table[["change_ratio", "low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda e: e.rename(columns={"before": "befor"}), {}, "Did you mean 'befor'"),
        (lambda e: e.iloc[:0], {}, "empty"),
        (lambda e: e, {"n_resamples": 0}, "at least 1 sample"),
        (lambda e: e, {"level": 1.0}, "between 0 and 1"),
    ],
)
def test_tables_of_other_columns_or_rows_are_refused(change, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.effect_table(change(made_up()), **options)
