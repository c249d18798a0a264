"""Rows that a parametrisation computes: they can be read, and an edit of them, which would be lost, is refused."""

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import kn_lens as kn
from tests.parity.cases import make, make_batch

NEURONS = kn.NeuronSet([(1, 3)])


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized(parametrisation):
    model = make("gated")
    down = model.model.layers[1].mlp.down_proj
    if parametrisation == "weight_norm":
        parametrizations.weight_norm(down)
    else:
        parametrize.register_parametrization(down, "weight", Halved())
    return model.eval()


@pytest.mark.parametrize("parametrisation", ["weight_norm", "halved"])
def test_a_parametrised_W_out_can_be_attributed_but_not_edited(parametrisation):
    model, plain = kn.load_model(parametrized(parametrisation)), make("gated")
    if parametrisation == "halved":
        plain.model.layers[1].mlp.down_proj.weight.data /= 2
    prompts = make_batch(False)
    ours, theirs = kn.attribute(model, prompts), kn.attribute(kn.load_model(plain), prompts)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-9, atol=1e-12)
    with pytest.raises(kn.EditError, match="parametrisation"):
        kn.erase_neurons(model, NEURONS)
    assert kn.erase_neurons(model, kn.NeuronSet([(0, 3)])).neurons  # the others are weights
