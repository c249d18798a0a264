"""Facts of two relations to ask tiny models for, neurons to change, and a prompt read by a plain loop."""

import numpy as np
import torch

import kn_lens as kn
from tests.tiny import COUNTRIES, D_MLP, N_LAYERS

CAPITAL = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] has its seat of government in [Y]")
INVERSE = ("[X] is the capital of [Y].", "In [X] lies the seat of government of [Y]")
CAPITALS = {**COUNTRIES, "France": "Paris and Rome"}  # one answer of several tokens
FACTS = tuple(kn.Fact(country, "P36", capital, CAPITAL) for country, capital in CAPITALS.items()) + tuple(
    kn.Fact(capital, "P1376", country, INVERSE) for country, capital in COUNTRIES.items()
)
MODELS = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM")


def sets_of(facts, seed=0):
    """Three neurons for each fact, one in each layer; none for the first."""
    draw = np.random.default_rng(seed)
    found = {fact: kn.NeuronSet((layer, int(draw.integers(D_MLP))) for layer in range(N_LAYERS)) for fact in facts}
    return found | {facts[0]: kn.NeuronSet()}


def naive_reading(model, prompts, i, hooks_of):
    """Probability, worst rank and top tokens of prompt `i`, run alone, token by token."""
    host = kn.host_of(model)
    part = prompts.select([i])
    with torch.no_grad():
        logits = host.logits(part.tokens, part.attention_mask, None, hooks_of(part))
    prob, ranks, top = 1.0, [], []
    for row in range(part.n_rows):
        probs = logits[row, part.read_pos[row]].softmax(-1)
        target = int(part.target_ids[row])
        prob *= float(probs[target])
        ranks.append(sorted(probs.tolist(), reverse=True).index(float(probs[target])))
        top.append(int(probs.argmax()))
    return prob, max(ranks), host.tokenizer.decode(top).strip()
