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
    if before.keys() != after.keys():
        return False
    return all(torch.equal(before[name], after[name]) for name in before)


def changed_rows(model, other):
    """The neurons whose rows differ between two models."""
    host, other_host = kn.host_of(model), kn.host_of(other)
    neurons = []
    for layer in range(N_LAYERS):
        differ = (host.W_out(layer) != other_host.W_out(layer)).any(-1)
        for index in differ.nonzero():
            neurons.append((layer, int(index)))
    return kn.NeuronSet(neurons)


def logits(model, hooks=()):
    host = kn.host_of(model)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(8, host.d_vocab, (3, 9), generator=generator)
    with torch.no_grad():
        return host.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks)


def mean_embedding(model, token_ids):
    """The mean input embedding of tokens, by hand, with the projection of the two families that have one."""
    modules = dict(model.original_model.named_modules())
    embedding = sum(model.embed.W_E[token_id] for token_id in token_ids) / len(token_ids)
    for name in ("electra.embeddings_project", "model.decoder.project_in"):
        if name in modules:
            embedding = embedding @ modules[name].weight.T
    return embedding.detach()


def random_edit(model, neurons=NEURONS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    new = torch.randn(len(neurons), kn.host_of(model).d_model, generator=generator)
    return kn.WeightEdit.of(model, neurons, new.double(), [{"kind": "test", "seed": seed}])
