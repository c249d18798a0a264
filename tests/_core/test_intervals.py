"""The interval rule: against its formula restated, and each condition under which there is no interval."""

import math

import numpy as np
import pytest

from kn_lens._core.intervals import SHARE, interval, student, wilson
from tests.intervals import ANY_NUMBER, is_close, naive_interval, t_quantile
from tests.intervals import wilson as naive_wilson


def ends(drawn, sizes, **options):
    found = interval(np.array(drawn), np.array(sizes), **options)
    return found["low"], found["high"]


@pytest.mark.parametrize("sizes", [(8,), (5, 4), (10, 1, 1), (6, 2, 1), (20, 30, 40)])
@pytest.mark.parametrize("bounds", [ANY_NUMBER, SHARE])
@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("skew", ["right", "left"])
def test_an_interval_is_a_t_interval_longer_on_the_side_of_the_tail(sizes, bounds, level, skew):
    draws = np.random.default_rng(0).gamma(2, 0.1, 300)
    draws = draws if skew == "right" else 1 - draws
    expected = naive_interval(0.3, draws.tolist(), sizes, bounds=bounds, level=level)
    found = ends([0.3, *draws], sizes, bounds=bounds, level=level)
    assert is_close(found, expected) and found[0] < 0.3 < found[1]
    below, above = 0.3 - found[0], found[1] - 0.3
    if bounds == ANY_NUMBER:
        assert (above > below) == (skew == "right")


@pytest.mark.parametrize("level, freedom, quantile", [(0.95, 1, 12.7062), (0.95, 7, 2.36462), (0.99, 30, 2.74999)])
def test_quantiles_are_those_of_published_tables(level, freedom, quantile):
    assert student(level, freedom) == pytest.approx(quantile, rel=1e-5)
    assert t_quantile(level, freedom) == pytest.approx(quantile, rel=1e-5)


@pytest.mark.parametrize("freedom", [2, 2.25, 4.5, 19])
def test_quantiles_of_fractional_degrees_of_freedom(freedom):
    assert student(0.95, freedom) == pytest.approx(t_quantile(0.95, freedom), rel=1e-7)


def test_a_relation_with_one_fact_widens_the_interval_by_the_spread_of_the_others():
    draws = np.random.default_rng(0).normal(size=200)
    without = ends([0.0, *draws], (10, 10))
    beside = ends([0.0, *draws], (10, 10, 1))
    assert np.array(beside) / np.array(without) == pytest.approx(math.sqrt(1.2 / 0.2))


@pytest.mark.parametrize(
    "sizes, has_one", [((7,), False), ((8,), True), ((7, 1, 1), False), ((4, 4), True), ((6, 2), True)]
)
def test_there_is_no_interval_of_fewer_than_eight_facts_beside_others(sizes, has_one):
    found = ends([0.0, *np.linspace(-1, 1, 50)], sizes)
    assert np.isfinite(found).all() == has_one


@pytest.mark.parametrize(
    "n_draws, n_undefined, has_one", [(100, 5, True), (100, 6, False), (21, 1, True), (21, 2, False)]
)
def test_undefined_draws_are_left_out_up_to_one_in_twenty(n_draws, n_undefined, has_one):
    draws = np.linspace(-1, 1, n_draws)
    draws[:n_undefined] = math.nan
    found = ends([0.0, *draws], (10,))
    assert np.isfinite(found).all() == has_one
    if has_one:
        assert is_close(found, ends([0.0, *draws[n_undefined:]], (10,)))


def test_equal_draws_have_no_interval_but_for_a_share_of_0_or_1():
    assert np.isnan(ends([0.4] * 50, (10,))).all()
    assert np.isnan(ends([0.4] * 50, (10,), bounds=SHARE)).all()
    assert np.isnan(ends([1.0] * 50, (10,))).all()
    for share in (0.0, 1.0):
        assert is_close(ends([share] * 50, (10,), bounds=SHARE), naive_wilson(share, 10, 0.95))
    assert is_close(ends([1.0] * 50, (10,), bounds=SHARE, level=0.8), naive_wilson(1.0, 10, 0.8))
    # Several relations count as many facts as have the variance of the mean over relations: 4 / (1/10 + 1/30).
    assert is_close(ends([1.0] * 50, (10, 30), bounds=SHARE), naive_wilson(1.0, 30, 0.95))


def test_no_draw_gives_no_interval_and_one_that_of_equal_draws():
    assert np.isnan(ends([1.0], (10,), bounds=SHARE)).all()
    assert np.isnan(ends([0.4, 0.4], (10,))).all()
    assert is_close(ends([1.0, 1.0], (10,), bounds=SHARE), naive_wilson(1.0, 10, 0.95))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wilsons_interval_solves_its_equation(share):
    assert is_close(wilson(share, 12.5).values(), naive_wilson(share, 12.5, 0.95))


def test_wilsons_interval_is_one_of_shares_however_it_rounds():
    for n in range(1, 300):
        assert wilson(0.0, n)["low"] >= 0.0 and wilson(1.0, n)["high"] <= 1.0


def test_ends_stay_within_the_bounds():
    draws = np.linspace(0, 1, 50)
    assert ends([0.5, *draws], (8,), bounds=SHARE) == (0.0, 1.0)
    low, high = ends([0.5, *draws], (8,))
    assert low < 0 and high > 1
