"""Updates of three facts, with their neurons and prompts of other facts."""

from dataclasses import replace

import numpy as np

import kn_lens as kn
from tests.effects import CAPITAL, FACTS, INVERSE
from tests.tiny import D_MLP, N_LAYERS

IRELAND, FRANCE, GERMANY = (fact for fact in FACTS if fact.subject in ("Ireland", "France", "Germany"))
NEW = {IRELAND: "Tokyo", FRANCE: "Lima", GERMANY: "Paris and Rome"}  # several tokens now, and several then
HELD_OUT = [replace(fact, templates=("The seat of government of [X] is [Y]", "[X] is led from [Y].")) for fact in NEW]
ABOUT_IRELAND = kn.Fact("Ireland", "P38", "Dublin", ("The people of [X] pay with [Y]",))  # its subject, its answer


def sets_of(facts, seed=0, n=2):
    """Return a few neurons of each layer for each fact."""
    draw = np.random.default_rng(seed)
    return {
        fact: kn.NeuronSet(
            (layer, index) for layer in range(N_LAYERS) for index in draw.permutation(D_MLP)[:n].tolist()
        )
        for fact in facts
    }


FOUND, ACTIVE = sets_of(FACTS), sets_of(FACTS, seed=1)


def others_of(model):
    return kn.make_prompts(
        model, [*FACTS, ABOUT_IRELAND], templates={"P36": CAPITAL[:1], "P1376": INVERSE, "P38": ABOUT_IRELAND.templates}
    )
