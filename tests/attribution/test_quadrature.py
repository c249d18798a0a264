"""Quadrature rules: exactness, convergence rate, nesting."""

import math
from itertools import pairwise

import numpy as np
import pytest

from kn_lens.attribution.quadrature import RULES, fixed_rule, nested_levels, weights_up_to_nodes
from kn_lens.errors import ArgumentError


def integrate(rule, f):
    return sum(w * f(x) for x, w in zip(rule.nodes, rule.weights, strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [2, 3, 4, 7, 20, 33])
def test_weights_are_positive_and_sum_to_one_on_the_unit_interval(rule, n):
    points = fixed_rule(rule, n)
    assert len(points) == n == len(set(points.nodes))
    assert min(points.weights) > 0 and math.isclose(sum(points.weights), 1, abs_tol=1e-14)
    assert min(points.nodes) >= 0 and max(points.nodes) <= 1


@pytest.mark.parametrize(
    ("rule", "n", "degree"),
    [("left", 5, 0), ("right", 5, 0), ("midpoint", 5, 1), ("trapezoid", 5, 1), ("gauss-legendre", 5, 9)]
    + [("clenshaw-curtis", n, n - 1) for n in (2, 4, 6, 8)]
    + [("clenshaw-curtis", n, n) for n in (3, 5, 9)],  # one more by symmetry
)
def test_polynomials_up_to_the_rules_degree_are_integrated_exactly_and_no_further(rule, n, degree):
    points = fixed_rule(rule, n)
    errors = [abs(integrate(points, lambda x, k=k: x**k) - 1 / (k + 1)) for k in range(degree + 2)]
    assert max(errors[: degree + 1]) < 1e-14
    assert errors[degree + 1] > 1e-9


@pytest.mark.parametrize(("rule", "order"), [("left", 1), ("right", 1), ("midpoint", 2), ("trapezoid", 2)])
def test_error_falls_at_the_promised_power_of_the_number_of_points(rule, order):
    errors = [abs(integrate(fixed_rule(rule, n), math.exp) - (math.e - 1)) for n in (64, 128)]
    assert math.isclose(math.log2(errors[0] / errors[1]), order, abs_tol=0.05)


@pytest.mark.parametrize("rule", ["gauss-legendre", "clenshaw-curtis"])
def test_error_of_the_spectral_rules_falls_faster_than_any_power(rule):
    def sigmoid(x):
        return 1 / (1 + math.exp(7 - 12 * x))

    exact = math.log((1 + math.e**5) / (1 + math.e**-7)) / 12
    at_8, at_32 = (abs(integrate(fixed_rule(rule, n), sigmoid) - exact) for n in (8, 32))
    assert at_32 < at_8 * (8 / 32) ** 8


def test_levels_nest_bit_for_bit_and_equal_the_plain_rule():
    levels = nested_levels(129)
    assert [len(level) for level in levels] == [3, 5, 9, 17, 33, 65, 129]
    for coarse, fine in pairwise(levels):
        assert fine.nodes[: len(coarse)] == coarse.nodes
    for level in levels:
        plain = fixed_rule("clenshaw-curtis", len(level))
        order = np.argsort(level.nodes)
        np.testing.assert_allclose(np.array(level.nodes)[order], plain.nodes, atol=1e-15)
        np.testing.assert_allclose(np.array(level.weights)[order], plain.weights, atol=1e-15)


@pytest.mark.parametrize("cap", [3, 4, 5, 64, 128])
def test_max_points_bounds_the_number_of_points(cap):
    sizes = [len(level) for level in nested_levels(cap)]
    assert sizes[-1] <= cap < 2 * sizes[-1] - 1


@pytest.mark.parametrize(
    ("rule", "n", "words"),
    [
        ("lefft", 20, "Did you mean 'left'?"),
        ("left", 0, "at least 1"),
        ("trapezoid", 1, "at least 2"),
        ("clenshaw-curtis", 1, "at least 2"),
        ("left", 2.0, "whole number"),
        ("left", True, "whole number"),
    ],
)
def test_an_unknown_rule_or_number_of_points_is_refused(rule, n, words):
    with pytest.raises(ArgumentError, match=words.replace("?", r"\?")):
        fixed_rule(rule, n)


def test_a_max_points_below_the_first_level_is_refused():
    with pytest.raises(ArgumentError, match="max_points=2"):
        nested_levels(2)


@pytest.mark.parametrize("level", nested_levels(33))
def test_weights_up_to_a_node_integrate_polynomials_from_zero_to_it(level):
    nodes, weights = np.array(level.nodes), weights_up_to_nodes(level)
    for power in range(len(level)):
        np.testing.assert_allclose(weights @ nodes**power, nodes ** (power + 1) / (power + 1), atol=1e-14)
    np.testing.assert_allclose(weights[level.nodes.index(1.0)], level.weights, atol=1e-14)
