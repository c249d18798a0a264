"""Edits of tiny models with random rows, and weights compared bit by bit."""

import torch

import kn_lens as kn
from tests.effects import CAPITAL
from tests.tiny import COUNTRIES, N_LAYERS

FACTS = tuple(kn.Fact(country, "P36", capital, CAPITAL) for country, capital in COUNTRIES.items())
IRELAND = FACTS[0]
NEURONS = kn.NeuronSet([(0, 3), (1, 0), (1, 7), (2, 23)])
UPDATE = {"fact": IRELAND, "new_object": "Tokyo", "neurons": NEURONS, "allow_unknown": True}


def bits(model):
    """Every weight of the model, bit for bit."""
    weights = model.original_model.state_dict()
    return {name: weight.contiguous().view(torch.uint8).clone() for name, weight in weights.items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def changed_rows(model, other):
    """The neurons whose rows differ between two models."""
    one, two = kn.host_of(model), kn.host_of(other)
    differ = [(one.W_out(layer) != two.W_out(layer)).any(-1) for layer in range(N_LAYERS)]
    return kn.NeuronSet((layer, int(index)) for layer, rows in enumerate(differ) for index in rows.nonzero())


def logits(model, hooks=()):
    host = kn.host_of(model)
    tokens = torch.randint(8, host.d_vocab, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return host.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks)


def random_edit(model, neurons=NEURONS, seed=0):
    new = torch.randn(len(neurons), kn.host_of(model).d_model, generator=torch.Generator().manual_seed(seed))
    return kn.WeightEdit.of(model, neurons, new.double(), [{"kind": "test", "seed": seed}])
