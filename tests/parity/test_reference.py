"""``reference_attribution``, compared with a loop over the Hugging Face model and with captum.

All other tests of scores compare with ``reference_attribution``.
"""

import ast
import re
from pathlib import Path

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import nn

import kn_lens as kn
from kn_lens.attribution import fixed_rule, reference
from tests import oracle
from tests.parity.cases import D_MLP, N_LAYERS, joined_rows, unpadded

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("rule", "n_steps"), [("left", 5), ("right", 4), ("gauss-legendre", 3)])
def test_it_equals_a_loop_over_the_hugging_face_model(pair, prompts, rule, n_steps):
    hf, model = pair
    points = fixed_rule(rule, n_steps)
    for layer in range(N_LAYERS):
        scores = kn.reference_attribution(model, prompts, layer, rule=rule, n_steps=n_steps)
        assert scores.shape == (len(prompts), D_MLP)
        for i in range(len(prompts)):
            loop = oracle.integrated_gradients(hf, *unpadded(prompts, i), layer, points.nodes, points.weights)
            torch.testing.assert_close(scores[i], loop, rtol=1e-9, atol=1e-14)


def test_an_answer_of_several_tokens_is_the_product_of_their_probabilities(pair, prompts):
    hf, model = pair
    joined = joined_rows(prompts)
    rows = [unpadded(joined, row) for row in (0, 1)]
    points = fixed_rule("gauss-legendre", 3)
    for layer in range(N_LAYERS):
        posts = [oracle.clean_post(hf, tokens, read_pos, layer) for tokens, read_pos, _ in rows]
        total = torch.zeros(D_MLP, dtype=torch.float64)
        for node, weight in zip(points.nodes, points.weights, strict=True):
            moved = [(node * post).requires_grad_() for post in posts]
            p = [oracle.probability(hf, *row, layer, at) for row, at in zip(rows, moved, strict=True)]
            gradients = torch.autograd.grad(p[0] * p[1], moved)
            total += weight * sum(post * gradient for post, gradient in zip(posts, gradients, strict=True))
        scores = kn.reference_attribution(model, joined, layer, rule="gauss-legendre", n_steps=3)
        torch.testing.assert_close(scores[0], total, rtol=1e-9, atol=1e-14)


class ReadPositionPath(nn.Module):
    """The probability as a function of the scale of one layer's activation at the read position, in captum's form."""

    def __init__(self, hf, tokens, read_pos, target, layer):
        super().__init__()
        self.site = nn.Identity()  # captum interpolates this layer's output between its values at scale 0 and 1
        self.hf, self.layer = hf, layer
        self.tokens, self.read_pos, self.target = tokens, read_pos, target
        self.post = oracle.clean_post(hf, tokens, read_pos, layer)

    def forward(self, scale):
        post = self.site(scale * self.post)

        def change(activation):
            at_read_pos = (torch.arange(activation.shape[1]) == self.read_pos)[None, :, None]
            return torch.where(at_read_pos, post[:, None], activation)

        with oracle.at_w_out(self.hf, self.layer, change):
            logits = self.hf(self.tokens.expand(len(scale), -1)).logits
        return logits[:, self.read_pos].softmax(-1)[:, self.target]


def test_it_equals_captums_layer_integrated_gradients_at_the_read_position(pair, prompts):
    hf, model = pair
    for layer in range(N_LAYERS):
        scores = kn.reference_attribution(model, prompts, layer, rule="gauss-legendre", n_steps=4)
        for i in range(len(prompts)):
            path = ReadPositionPath(hf, *unpadded(prompts, i), layer)
            one = torch.ones(1, 1, dtype=torch.float64)
            theirs = LayerIntegratedGradients(path, path.site).attribute(
                one, baselines=0 * one, n_steps=4, method="gausslegendre"
            )
            torch.testing.assert_close(scores[i], theirs[0], rtol=1e-6, atol=1e-12)


def test_it_needs_no_gradient_mode_and_leaves_no_hook(pair, prompts):
    model = pair[1]
    with torch.no_grad():
        scores = kn.reference_attribution(model, prompts, 1, n_steps=2)
    assert not scores.requires_grad and torch.equal(scores, kn.reference_attribution(model, prompts, 1, n_steps=2))
    assert not kn.host_of(model).has_user_hooks


def test_the_page_on_the_method_shows_its_code():
    """The page shows the functions without docstrings, type annotations and imports."""
    page = (DOCS / "method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (shown,) = [block for block in blocks if "def reference_attribution" in block]
    assert plain_functions(shown) == plain_functions(Path(reference.__file__).read_text(encoding="utf-8"))


def plain_functions(source):
    """Return the functions of a module, without docstrings, annotations and decorators."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.FunctionDef):
                node.returns = None
                node.decorator_list = []
                if ast.get_docstring(node) is not None:
                    del node.body[0]
            elif isinstance(node, ast.arg):
                node.annotation = None
    return [ast.unparse(function) for function in functions]
