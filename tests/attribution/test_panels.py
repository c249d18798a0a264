"""Panels: their weights, and paths that whole rules do not integrate, on functions with known integrals."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.attribution.integration import PathRule, integrate, integrate_together
from kn_lens.attribution.layer_context import CleanGradients, LayerContext
from kn_lens.attribution.layer_neurons import NeuronsOfMLP
from kn_lens.attribution.outputs import resolve_output
from kn_lens.attribution.panels import Panels
from kn_lens.attribution.quadrature import fixed_rule

TOLERANCE = 1e-3
OUTPUT = resolve_output("logit", has_contrast=False)


def panels_between(edges, has_five):
    """Return the panels of one path between values of theta, without values at their points."""
    start = torch.tensor(edges[:-1], dtype=torch.float64)
    n_panels = len(start)
    return Panels(
        path=torch.zeros(n_panels, dtype=torch.long),
        start=start,
        width=torch.tensor(edges[1:], dtype=torch.float64) - start,
        has_five=torch.full((n_panels,), has_five),
        outputs=torch.zeros(n_panels, 5, dtype=torch.float64),
        slopes=torch.zeros(n_panels, 5, dtype=torch.float64),
        gradients=torch.zeros(n_panels, 1, 5, 2, dtype=torch.float64),
    )


@pytest.mark.parametrize(("has_five", "degree"), [(False, 2), (True, 4)])
def test_weights_are_exact_for_polynomials_of_the_angle(has_five, degree):
    panels = panels_between([0.0, 0.3, 0.31, 2.0, math.pi], has_five)
    theta = panels.start[:, None] + panels.width[:, None] * torch.linspace(0, 1, 5, dtype=torch.float64)
    fine_nodes, fine_weights = np.polynomial.legendre.leggauss(40)
    for power in range(degree + 1):
        for panel in range(len(panels)):
            low, width = float(panels.start[panel]), float(panels.width[panel])
            at = low + width * (fine_nodes + 1) / 2
            exact = width / 2 * np.sum(fine_weights * at**power * np.sin(at) / 2)
            given_by_points = float((panels.weights()[panel] * theta[panel] ** power).sum())
            assert given_by_points == pytest.approx(exact, abs=1e-13)


@pytest.mark.parametrize("has_five", [False, True])
def test_weights_of_a_whole_path_sum_to_one(has_five):
    assert float(panels_between([0.0, 0.1, 1.0, math.pi], has_five).weights().sum()) == pytest.approx(1, abs=1e-14)


@dataclass
class AnalyticState:
    """A model of one layer whose logits are known functions of its activations.

    Neuron i of prompt b adds ``functions[b][i](v_i / w_i)`` to the logit of token 0. Its exact score is the function's
    difference between 1 and 0.
    """

    functions: list
    post: dict = field(default_factory=dict)
    mlp_out: dict = field(default_factory=dict)
    active: dict = field(default_factory=dict)
    has_user_hooks: bool = False
    n_rows: int = 0

    @property
    def pass_group(self):
        return torch.zeros(len(self.functions), dtype=torch.long)

    @property
    def logits(self):
        return self.logits_of(range(len(self.functions)), self.post[0])

    def logits_of(self, rows, post):
        values = []
        for row, activations in zip(rows, post, strict=True):
            shares = activations / self.post[0][row]
            values.append(sum(function(share) for function, share in zip(self.functions[row], shares, strict=True)))
        return torch.stack(values)[:, None]

    def logits_with_post(self, replacements, *, groups=None, early_exit=False, holds_routing=True):
        (replacement,) = replacements
        self.n_rows += len(replacement.rows)
        return self.logits_of(replacement.rows.tolist(), replacement.post)

    def logits_with_additions(self, rows, additions):
        ((_, added),) = additions.values()
        return self.logits_of(rows.tolist(), self.post[0][rows] + added)

    def logits_with_hooks(self, layer, rows, hooks):
        raise NotImplementedError


def integral_of(functions, rule):
    """Return the integral along the joint path of one prompt for each list of functions, and the scores."""
    n_prompts, d_mlp = len(functions), len(functions[0])
    tokens = torch.ones(n_prompts, 2, dtype=torch.long)
    ones, zeros = torch.ones(n_prompts, dtype=torch.long), torch.zeros(n_prompts, dtype=torch.long)
    prompts = kn.PromptBatch.from_tokens(tokens, read_pos=ones, target_ids=zeros)
    state = AnalyticState(functions)
    state.post[0] = torch.linspace(0.5, 2, d_mlp, dtype=torch.float64).expand(n_prompts, d_mlp).clone()
    clean_gradients = CleanGradients(
        prompts=prompts,
        output=OUTPUT,
        gradient_activations={0: "post"},
        state=state,
        rows_per_pass=64,
    )
    context = LayerContext(
        layer=0,
        prompts=prompts,
        clean=state.logits[:, 0],
        post=state.post[0],
        neurons=NeuronsOfMLP(value_rows=torch.zeros(d_mlp, 1, dtype=torch.float64)),
        gradient_activation="post",
        output=OUTPUT,
        state=state,
        clean_gradients=clean_gradients,
        rows_per_pass=64,
    )
    (integral,) = integrate_together([integrate(context, context.post, rule)])
    n_inner = int((integral.n_points - 1).sum())  # the end of the path is no point of the layer
    assert state.n_rows == n_inner
    return integral, context.post * integral.gradient


def adaptive(max_points=129, tolerance=TOLERANCE):
    return PathRule(name="adaptive", fixed=None, max_points=max_points, tolerance=tolerance)


def step(centre, width, height):
    """Return a smooth step: its derivative is a spike."""
    return lambda x: height * torch.sigmoid((x - centre) / width)


def exact_scores(functions):
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    return torch.stack([torch.stack([f(one) - f(zero) for f in of_prompt]) for of_prompt in functions])


steps = st.builds(
    step,
    st.floats(0.02, 0.98),
    st.floats(1e-3, 0.3),
    st.sampled_from([-1.0, 0.3, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(steps, min_size=2, max_size=2), min_size=1, max_size=3))
def test_stiff_integrands_are_integrated_to_the_tolerance(functions):
    """Steps as narrow as a thousandth of the path, with plateaus between them, in two neurons of each prompt."""
    functions = [[*of_prompt, lambda x: 1.0 + 0.2 * x] for of_prompt in functions]
    integral, scores = integral_of(functions, adaptive())
    clean = torch.stack([sum(f(torch.ones((), dtype=torch.float64)) for f in of_prompt) for of_prompt in functions])
    allowed = TOLERANCE * clean.abs().clamp(min=0.01)
    exact = exact_scores(functions)
    assert (integral.n_points <= 129).all()
    gap = (integral.total - integral.expected).abs()
    assert (gap <= allowed * (1 + 1e-9)).all()
    assert torch.allclose(integral.expected, exact.sum(-1))
    assert torch.allclose(scores.sum(-1), integral.total)


def test_a_spike_costs_a_fraction_of_the_whole_rule_and_is_not_missed():
    """With 129 points on the whole path the sum is off by more than the tolerance; panels need fewer than 60."""
    functions = [[step(0.37, 1e-3, 1.0), lambda x: 1.0 + 0.2 * x]]
    fine = fixed_rule("clenshaw-curtis", 129)
    whole, _ = integral_of(functions, PathRule(name="fine", fixed=fine, max_points=129, tolerance=1.0))
    assert float((whole.total - whole.expected).abs()) > TOLERANCE
    integral, scores = integral_of(functions, adaptive())
    assert int(integral.n_points) < 60
    assert torch.allclose(scores, exact_scores(functions), atol=4 * TOLERANCE * 2)


def test_spikes_of_opposite_signs_are_both_seen():
    """Three points see none of the two, and the gap at the end of the path is zero; that at the middle is one."""
    functions = [[step(0.2, 2e-3, 1.0), step(0.7, 2e-3, -1.0), lambda x: 1.0 + 0.1 * x]]
    integral, scores = integral_of(functions, adaptive())
    assert torch.allclose(scores, exact_scores(functions), atol=0.05)
    assert int(integral.n_points) > 20


@pytest.mark.parametrize("max_points", [3, 5, 9, 11, 20, 40])
def test_no_path_takes_more_points_than_allowed(max_points):
    functions = [[step(0.37, 1e-3, 1.0)], [lambda x: x**2 + 1]]
    integral, _ = integral_of(functions, adaptive(max_points))
    assert (integral.n_points <= max_points).all()
    assert int(integral.n_points[1]) == 3


def test_the_order_of_the_prompts_does_not_matter():
    functions = [[step(0.37, 1e-2, 1.0)], [lambda x: x**2 + 1], [step(0.8, 3e-3, 0.3)]]
    together, scores = integral_of(functions, adaptive())
    reversed_order, reversed_scores = integral_of(functions[::-1], adaptive())
    assert torch.equal(together.n_points, reversed_order.n_points.flip(0))
    assert torch.allclose(scores, reversed_scores.flip(0), atol=1e-14)
    alone = [integral_of([of_prompt], adaptive())[1][0] for of_prompt in functions]
    assert torch.allclose(scores, torch.stack(alone), atol=1e-14)
