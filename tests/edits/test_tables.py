"""``edit_table``, compared with plain sums over prompts and with facts resampled one draw at a time."""

import math

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from tests.intervals import ANY_NUMBER, SHARE, drawn_facts, is_close, naive_interval


@pytest.fixture(scope="module")
def effects():
    """Return made-up effects of two relations, with numbers that a trained model could have."""
    draw = np.random.default_rng(0)
    rows = []
    for relation, n_facts in {"P36": 12, "P30": 9}.items():
        for kind in ("random", "found"):
            for question in ("same answer", "inverse", "own wording"):
                for i in range(n_facts):
                    right, lost = draw.uniform(0.5, 1), draw.uniform(0, 0.5)
                    row = {
                        "relation": relation,
                        "key": f"{relation}/{i}",
                        "neuron_set": kind,
                        "question": question,
                        "dose": 1.0,
                    }
                    row |= {"n_prompts": int(draw.integers(3, 9)), "right_before": right, "right_after": right - lost}
                    row |= {"lost": lost, "nll_before": draw.uniform(0, 1), "nll_after": draw.uniform(0, 4)}
                    if question != "same answer":
                        for name in ("right", "top5", "rank", "mrr"):
                            row |= {f"new_{name}_{when}": draw.uniform() for when in ("before", "after")}
                    rows.append(row)
    return pd.DataFrame(rows)


def naive_measures(part):
    n = part.n_prompts
    mean = lambda column: (n * column).sum() / n.sum()  # noqa: E731
    before, after = np.exp(mean(part.nll_before)), np.exp(mean(part.nll_after))
    return {
        "changed": (n * part.lost).sum() / (n * part.right_before).sum(),
        "success_before": mean(part.new_right_before),
        "success": mean(part.new_right_after),
        "top5": mean(part.new_top5_after),
        "rank": mean(part.new_rank_after),
        "mrr": mean(part.new_mrr_after),
        "accuracy_before": mean(part.right_before),
        "accuracy_after": mean(part.right_after),
        "perplexity_before": before,
        "perplexity_after": after,
        "perplexity_growth": after / before - 1,
        "perplexity_rise": after - before,
    }


def test_tables_hold_ratios_over_prompts_by_relation_or_pooled(effects):
    table = kn.edit_table(effects, by_relation=True).set_index(
        ["neuron_set", "dose", "question", "relation", "measure"]
    )
    mean = kn.edit_table(effects).set_index(["neuron_set", "dose", "question", "measure"])
    for (kind, question), cell in effects.groupby(["neuron_set", "question"]):
        expected = {relation: naive_measures(part) for relation, part in cell.groupby("relation")}
        for measure in expected["P36"]:
            where = (kind, 1.0, question, measure)
            if question == "same answer" and measure in ("success", "success_before", "top5", "rank", "mrr"):
                assert where not in mean.index
                continue
            for relation, values in expected.items():
                row = table.loc[(kind, 1.0, question, relation, measure)]
                assert row.value == pytest.approx(values[measure])
                assert row.low <= row.value <= row.high and row.low < row.high
                assert row.n_facts == (cell.relation == relation).sum()
            together = np.mean([values[measure] for values in expected.values()])
            if measure.startswith("perplexity"):
                together = naive_measures(cell)[measure]
            assert mean.value[where] == pytest.approx(together)
            assert mean.low[where] < mean.value[where] < mean.high[where]
            assert mean.n_facts[where] == 21
    order = list(dict.fromkeys(zip(mean.reset_index().neuron_set, mean.reset_index().question, strict=True)))
    assert order == [
        (kind, question) for kind in ("found", "random") for question in ("own wording", "inverse", "same answer")
    ]


def drawn_one_by_one(effects, n_resamples):
    """Return the facts of a cell, and those of each draw, by relation."""
    cell = effects[(effects.neuron_set == "found") & (effects.question == "inverse")]
    groups = [part for _, part in cell.groupby("relation")]
    samples = []
    for draw in drawn_facts([len(group) for group in groups], n_resamples):
        samples.append([group.iloc[drawn] for group, drawn in zip(groups, draw, strict=True)])
    return cell, samples


@pytest.mark.parametrize("measure, bounds", [("mrr", ANY_NUMBER), ("accuracy_after", SHARE)])
def test_intervals_equal_those_of_facts_resampled_one_draw_at_a_time(effects, measure, bounds):
    """Compared with facts drawn one sample at a time."""
    cell, draws = drawn_one_by_one(effects, 200)
    samples = [np.mean([naive_measures(group)[measure] for group in groups]) for groups in draws]
    row = kn.edit_table(cell, n_resamples=200, level=0.8).set_index("measure").loc[measure]
    assert is_close([row.low, row.high], naive_interval(row.value, samples, [9, 12], level=0.8, bounds=bounds))


def test_intervals_of_perplexities_resample_facts_within_relations(effects):
    """Compared with facts drawn one sample at a time; a rise is the difference of two perplexities in each draw."""
    cell, draws = drawn_one_by_one(effects, 200)
    samples = [naive_measures(pd.concat(groups)) for groups in draws]
    table = kn.edit_table(cell, n_resamples=200, level=0.8).set_index("measure")
    forms = {
        "perplexity_after": (np.log, np.exp),
        "perplexity_growth": (np.log1p, np.expm1),
        "perplexity_rise": (float, np.asarray),
    }
    for measure, (inverse, form) in forms.items():
        value = inverse(table.loc[measure, "value"])
        ends = naive_interval(value, [inverse(sample[measure]) for sample in samples], [9, 12], level=0.8)
        assert is_close(table.loc[measure, ["low", "high"]], form(ends).tolist()), measure


def test_perplexities_weight_prompts_and_not_relations():
    row = {"neuron_set": "found", "question": "same relation", "right_before": 1.0, "right_after": 1.0, "lost": 0.0}
    facts = [{**row, "relation": "known", "n_prompts": 99, "nll_before": 0.0, "nll_after": 0.0}]
    facts += [{**row, "relation": "unknown", "n_prompts": 1, "nll_before": 10.0, "nll_after": 20.0}]
    value = kn.edit_table(pd.DataFrame(facts)).set_index("measure")["value"]
    assert value["perplexity_before"] == pytest.approx(math.exp(0.1))
    assert value["perplexity_growth"] == pytest.approx(math.exp(0.1) - 1)


def test_there_is_no_interval_where_many_draws_have_no_ratio(effects):
    """One of nine facts was right, so that (8 / 9)^8 of the draws lack it."""
    cell = effects.query("neuron_set == 'found' and question == 'own wording' and relation == 'P30'")
    first = np.arange(len(cell)) == 0
    partial = cell.assign(right_before=cell["right_before"].where(first, 0.0), lost=cell["lost"].where(first, 0.0))
    table = kn.edit_table(partial).set_index("measure")
    assert table.loc["changed", "value"] == pytest.approx(partial["lost"].iloc[0] / partial["right_before"].iloc[0])
    assert table.loc["changed", ["low", "high"]].isna().all() and table.drop("changed").notna().all(axis=None)
    # Beside another relation there is a value in every draw: that of the other where this one has none.
    other = effects.query("neuron_set == 'found' and question == 'own wording' and relation == 'P36'")
    both = pd.concat([partial, other])
    row = kn.edit_table(both).set_index("measure").loc["changed"]
    assert row["low"] < row["value"] < row["high"]


def test_relations_may_be_numbers(effects):
    """A file whose relations are called 30 and 36 is read with numbers."""
    numbered = effects.assign(relation=effects["relation"].str.removeprefix("P").astype(int))
    pd.testing.assert_frame_equal(kn.edit_table(numbered), kn.edit_table(effects))


def test_tables_are_deterministic_and_one_fact_has_no_interval(effects):
    pd.testing.assert_frame_equal(kn.edit_table(effects, seed=3), kn.edit_table(effects, seed=3))
    alone = kn.edit_table(effects[effects.key == "P30/1"])
    assert alone[["low", "high"]].isna().all(axis=None) and alone.value.notna().all()


def test_changed_is_nan_where_no_prompt_was_right(effects):
    never = kn.edit_table(effects.assign(right_before=0.0, lost=0.0)).set_index("measure")
    assert never.loc["changed", ["value", "low", "high"]].isna().all(axis=None)
    assert never.drop("changed").notna().all(axis=None)


def test_a_relation_that_was_never_right_is_left_out_of_the_mean(effects):
    cell = effects.query("neuron_set == 'found' and question == 'own wording'")
    cell = cell[cell["dose"] == cell["dose"].iloc[0]]
    unknown = cell["relation"] == cell["relation"].iloc[0]
    partial = cell.assign(right_before=cell["right_before"].mask(unknown, 0.0), lost=cell["lost"].mask(unknown, 0.0))
    mixed, rest = (kn.edit_table(part).set_index("measure").loc["changed"] for part in (partial, cell[~unknown]))
    assert mixed["value"] == pytest.approx(rest["value"]) and mixed["n_facts"] == rest["n_facts"] == (~unknown).sum()


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda table: table.drop(columns="lost"), {}, "no column 'lost'"),
        (lambda table: table.iloc[:0], {}, "empty"),
        (lambda table: table, {"n_resamples": 0}, "n_resamples=0"),
        (lambda table: table, {"level": 1.0}, "level=1.0"),
    ],
)
def test_other_tables_and_options_out_of_range_are_refused(effects, change, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.edit_table(change(effects), **options)
