"""Permutation tests and rank correlations, against their definitions and against other implementations."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from kn_lens._core import permutation


@pytest.mark.parametrize("n", [6, 9])
def test_few_signs_are_gone_through_in_all_patterns(n):
    differences = np.random.default_rng(n).normal(0.3, 1, (n, 2))
    sums = np.array([np.array(signs) @ differences for signs in product((1, -1), repeat=n)])
    expected = (np.abs(sums) >= np.abs(differences.sum(0)) - 1e-12).mean(0)
    assert permutation.sign_flip_p(differences, n_permutations=1, seed=0) == pytest.approx(expected)


def test_the_test_is_that_of_transformer_lens():
    try:
        from transformer_lens.utilities.statistics import sign_flip_permutation_pvalue
    except ImportError:
        pytest.skip("this TransformerLens has no utilities.statistics")
    rng = np.random.default_rng(0)
    few, many = rng.normal(0.4, 1, (9, 3)), rng.normal(0.15, 1, (60, 3))
    theirs = sign_flip_permutation_pvalue(torch.tensor(few), dim=0)
    assert permutation.sign_flip_p(few, n_permutations=1, seed=0) == pytest.approx(theirs.numpy())
    theirs = sign_flip_permutation_pvalue(torch.tensor(many), dim=0, n_permutations=20_000)
    ours = permutation.sign_flip_p(many, n_permutations=20_000, seed=0)
    assert ours == pytest.approx(theirs.numpy(), abs=0.015)  # two draws of a share of 20,000: three standard errors


def test_fewer_signs_than_can_give_0_05_are_not_tested():
    assert np.isnan(permutation.sign_flip_p(np.ones((5, 2)), n_permutations=99, seed=0)).all()
    assert permutation.sign_flip_p(np.ones((6, 1)), n_permutations=99, seed=0) == 2 / 2**6
    depths = np.linspace(0, 1, 3)
    assert np.isnan(permutation.distance_under_exchange(np.ones((5, 3)), depths, n_permutations=99, seed=0)[1])


def test_facts_clustered_in_relations_are_tested_by_relation():
    """Models differ by relation, by chance: the test of relations holds its level, that of facts does not."""
    rng = np.random.default_rng(0)
    of_relations = rng.normal(size=(11, 600))
    facts = np.repeat(of_relations, 20, axis=0) + rng.normal(size=(220, 600))
    how = {"n_permutations": 400, "seed": 0}
    by_fact = permutation.sign_flip_p(facts, **how)
    by_relation = permutation.sign_flip_p(facts.reshape(11, 20, 600).mean(1), **how)
    assert (by_relation <= 0.05).mean() <= 0.08 and (by_fact <= 0.05).mean() > 0.4


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = permutation.sign_flip_p(rng.normal(0, 1, (30, 1000)), n_permutations=200, seed=1)
    assert 0.03 <= (p <= 0.05).mean() <= 0.07 and 0.46 <= (p <= 0.5).mean() <= 0.54


def test_no_difference_has_p_1_and_no_value_has_none():
    differences = np.stack([np.zeros(40), np.full(40, np.nan)], axis=1)
    none, missing = permutation.sign_flip_p(differences, n_permutations=99, seed=0)
    assert none == 1 and np.isnan(missing)


def test_distance_is_the_area_between_cumulative_shares():
    rng = np.random.default_rng(0)
    depths = np.unique(np.concatenate([np.arange(5) / 4, np.arange(7) / 6]))
    a, b = (np.interp(depths, np.linspace(0, 1, n + 1), np.cumsum([0, *rng.dirichlet(np.ones(n))])) for n in (4, 6))
    fine = np.linspace(0, 1, 200_001)
    expected = np.abs(np.interp(fine, depths, b) - np.interp(fine, depths, a)).mean()
    assert permutation.distance((b - a)[None], depths) == pytest.approx(expected, abs=1e-5)


def test_exchange_of_equal_neurons_changes_nothing():
    depths = np.linspace(0, 1, 5)
    assert permutation.distance_under_exchange(np.zeros((20, 5)), depths, n_permutations=50, seed=0) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_correlation_within_one_relation_is_spearmans(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 25).astype(float), rng.normal(size=25)  # x with many ties
    found = permutation.rank_correlation(x, y, np.zeros(25, int), n_resamples=200, n_permutations=500, seed=0)
    assert found["value"] == pytest.approx(pd.DataFrame({"x": x, "y": y}).corr(method="spearman").loc["x", "y"])
    assert found["low"] <= found["value"] <= found["high"]


def test_drawn_facts_are_ranked_as_if_repeated():
    rng = np.random.default_rng(0)
    values, counts = rng.integers(0, 5, 8).astype(float), rng.multinomial(8, np.full(8, 1 / 8), size=3)
    ranks = permutation._ranks(values, counts.astype(float))
    for of_draw, count in zip(ranks, counts, strict=True):
        repeated = pd.Series(np.repeat(values, count)).rank().to_numpy()
        assert np.repeat(of_draw, count) == pytest.approx((repeated - 0.5) / 8 - 0.5)


def test_differences_between_relations_are_no_correlation():
    rng = np.random.default_rng(0)
    relations = np.repeat(np.arange(40), 10)
    x, y = (10 * relations + rng.normal(size=400) for _ in range(2))
    found = permutation.rank_correlation(x, y, relations, n_resamples=200, n_permutations=999, seed=0)
    assert abs(found["value"]) < 0.15 and found["p"] > 0.01
    found = permutation.rank_correlation(x, 10 - x, relations, n_resamples=200, n_permutations=999, seed=0)
    assert found["value"] == pytest.approx(-1) and found["p"] == 0.001


def test_constant_values_have_no_correlation():
    how = {"n_resamples": 9, "n_permutations": 9, "seed": 0}
    found = permutation.rank_correlation(np.ones(5), np.arange(5.0), np.zeros(5, int), **how)
    assert np.isnan([found["value"], found["p"], found["low"]]).all()


def test_holm_leaves_one_test_alone_and_missing_ones_out():
    assert permutation.holm([0.04]) == [0.04]
    found = permutation.holm([0.5, float("nan"), 0.01])
    assert found[0] == 0.5 and np.isnan(found[1]) and found[2] == 0.02
    assert permutation.holm([0.9, 0.8]) == [1.0, 1.0]
