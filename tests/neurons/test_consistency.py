"""Consistency of facts, compared with all shuffled facts there are, and on scores with planted sets."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch

import kn_lens as kn
from tests.tiny import D_MLP, N_LAYERS, loaded

WORDINGS = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] is led from [Y]", "So [X] has [Y]")
N_CELLS = N_LAYERS * D_MLP


def facts_of(n, relation="P36", n_wordings=4):
    return [kn.Fact(f"country {number}", relation, "Dublin", WORDINGS[:n_wordings]) for number in range(n)]


def attr_of(facts, scores):
    """An attribution of facts with given scores, `[prompt, cell]`."""
    model = loaded("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, facts)
    attr = kn.attribute(model, prompts, method="activation")
    scores = torch.as_tensor(scores, dtype=torch.float64).reshape(len(prompts), N_LAYERS, D_MLP)
    return replace(attr, scores=scores)


def sets_to_scores(sets):
    scores = np.zeros((len(sets), N_CELLS))
    for row, cells in enumerate(sets):
        scores[row, list(cells)] = 1.0
    return scores


def mean_jaccard(sets):
    return np.mean([kn_jaccard(a, b) for a, b in combinations(sets, 2)])


def kn_jaccard(a, b):
    return len(a & b) / len(a | b)


def test_values_and_shuffled_facts_are_those_of_a_loop():
    draw = np.random.default_rng(0)
    facts = facts_of(3, n_wordings=3)
    scores = draw.random((9, N_CELLS)) ** 8
    found = kn.consistency(attr_of(facts, scores), n_shuffled=4000).table
    sets = [frozenset(np.flatnonzero(row >= 0.2 * row.max()).tolist()) for row in scores]
    by_fact = [sets[3 * number : 3 * number + 3] for number in range(3)]
    null = np.array([mean_jaccard(drawn) for drawn in product(*zip(*by_fact, strict=True))])  # one set of each wording
    assert len(null) == 27
    for number, row in enumerate(found.itertuples()):
        value = mean_jaccard(by_fact[number])
        assert row.jaccard == pytest.approx(value, rel=1e-12) and row.n_prompts == 3
        assert row.null_mean == pytest.approx(null.mean(), abs=4 * null.std() / 4000**0.5)
        assert row.p == pytest.approx((null >= value - 1e-12).mean(), abs=0.04)
        assert row.consistent == (row.p <= 0.05)
    assert found["key"].tolist() == [fact.key for fact in facts]


def test_facts_with_neurons_of_their_own_are_told_from_those_without():
    draw = np.random.default_rng(1)
    facts = facts_of(20)
    sets = []
    for number in range(20):
        own = set(draw.choice(N_CELLS, 4, replace=False).tolist())
        for _ in WORDINGS:
            noise = set(draw.choice(N_CELLS, 4, replace=False).tolist())
            sets.append(noise | own if number < 10 else noise | set(draw.choice(N_CELLS, 4, replace=False).tolist()))
    found = kn.consistency(attr_of(facts, sets_to_scores(sets)))
    assert found.table["consistent"][:10].all()
    assert found.table["consistent"][10:].sum() <= 2
    summary = found.summary(n_resamples=50).set_index("measure")
    assert summary.loc["consistent", "value"] == pytest.approx(found.table["consistent"].mean())
    assert summary.loc["consistent", "control"] == 0.05 and summary.loc["consistent", "n"] == 20
    assert summary.loc["jaccard", "control"] == pytest.approx(found.table["null_mean"].mean())
    assert repr(found).startswith("Consistency(20 facts, 1") and "of 20 tested are consistent" in repr(found)
    assert "country 3" in found._repr_html_()


def test_neurons_of_a_wording_make_no_fact_consistent_and_p_is_uniform():
    """All prompts of a wording share neurons, and none of their fact: each p is as likely as any other."""
    draw = np.random.default_rng(2)
    n = 300
    of_wording = [set(draw.choice(N_CELLS, 6, replace=False).tolist()) for _ in WORDINGS]
    of_relation = set(draw.choice(N_CELLS, 6, replace=False).tolist())
    sets = []
    for _ in range(n):
        for own in of_wording:
            sets.append(own | of_relation | set(draw.choice(N_CELLS, 8, replace=False).tolist()))
    p = np.sort(kn.consistency(attr_of(facts_of(n), sets_to_scores(sets))).table["p"].to_numpy())
    distance = np.abs(p - np.arange(1, n + 1) / n).max()
    assert distance < 1.63 / n**0.5  # Kolmogorov and Smirnov, at 1%


def test_scores_that_were_kept_by_their_share_give_the_same():
    attr = attr_of(facts_of(6), np.random.default_rng(3).random((24, N_CELLS)) ** 6)
    whole, kept = kn.consistency(attr), kn.consistency(attr.thresholded(0.1))
    assert whole.table.equals(kept.table)
    with pytest.raises(kn.ArgumentError, match=r"attr_threshold=0.05, but only the scores from 0.1"):
        kn.consistency(attr.thresholded(0.1), attr_threshold=0.05)


def test_shuffled_facts_of_a_relation_do_not_depend_on_the_others():
    scores = np.random.default_rng(4).random((48, N_CELLS)) ** 6
    both = kn.consistency(attr_of([*facts_of(6), *facts_of(6, "P30")], scores)).table
    alone = kn.consistency(attr_of(facts_of(6, "P30"), scores[24:])).table
    assert both.iloc[6:].reset_index(drop=True).equals(alone)


def test_what_cannot_be_tested_has_no_p():
    scores = np.random.default_rng(5).random((9, N_CELLS))
    scores[0] = -1  # no neuron speaks for the answer
    alone = kn.consistency(
        attr_of([*facts_of(1), *facts_of(1, "P30"), kn.Fact("x", "P2", "Dublin", WORDINGS[:1])], scores)
    )
    assert alone.table["p"].isna().all() and not alone.table["consistent"].any()
    assert alone.table["n_prompts"].tolist() == [3, 4, 1]
    assert alone.table["jaccard"].isna().tolist() == [False, False, True]
    assert alone.summary(n_resamples=5).empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attr_threshold": 2}, "attr_threshold=2; expected a share"),
        ({"alpha": -1}, "alpha=-1; expected a share"),
        ({"n_shuffled": 0}, "n_shuffled=0; expected a whole number from 1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.consistency(attr_of(facts_of(1), np.ones((4, N_CELLS))), **options)
