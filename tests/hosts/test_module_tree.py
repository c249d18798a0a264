"""The walk over modules and weights, against PyTorch's own."""

import pytest
from torch import nn

from kn_lens.hosts.module_tree import modules_of, weights_of
from tests.tiny import loaded


def shared_parts() -> nn.Module:
    """A module with a part in two places, a weight in two places, a missing part and a missing weight."""
    linear = nn.Linear(3, 3, bias=False)
    other = nn.Linear(3, 3)
    other.weight = linear.weight
    tree = nn.ModuleDict({"first": nn.Sequential(linear, other), "second": linear})
    tree.register_module("missing", None)
    return tree


@pytest.mark.parametrize(
    "root",
    [
        pytest.param(shared_parts, id="shared parts"),
        pytest.param(lambda: loaded("GPT2LMHeadModel").original_model, id="checkpoint"),
        pytest.param(lambda: nn.Module(), id="leaf"),
    ],
)
def test_the_modules_and_weights_are_those_of_pytorch_in_its_order(root):
    root = root()
    assert modules_of(root) == list(root.modules())
    assert list(map(id, weights_of(modules_of(root)))) == list(map(id, root.parameters()))


def test_of_several_roots_each_module_comes_once():
    model = loaded("GPT2LMHeadModel")
    expected = dict.fromkeys([*model.modules(), *model.original_model.modules()])
    assert modules_of(model, model.original_model) == list(expected)
