"""Attributions with given scores, and refining by its definition, prompt by prompt."""

import math
from dataclasses import replace

import torch
from hypothesis import settings
from hypothesis import strategies as st

import kn_lens as kn

MANY_EXAMPLES = settings(max_examples=60, deadline=None)
PAIRS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5)))


def attribution(scores, fact_of, facts, method="integrated_gradients"):
    """An attribution with the given scores, one row a prompt; the tokens play no part."""
    n = len(scores)
    prompts = kn.PromptBatch.from_tokens(
        torch.ones(n, 2, dtype=torch.long),
        read_pos=torch.ones(n, dtype=torch.long),
        target_ids=torch.ones(n, dtype=torch.long),
        fact_index=torch.tensor(fact_of),
        facts=facts,
    )
    nothing = torch.full(scores.shape[:2], torch.nan)
    return kn.Attribution(
        scores=scores,
        total=nothing,
        clean=torch.ones(n),
        expected=nothing,
        n_points=torch.zeros(scores.shape[:2], dtype=torch.long),
        tolerance=torch.ones(n),
        prompts=prompts,
        method=method,
        output="prob",
        quadrature="none",
        keep=None,
    )


def facts_of(*relations, n=2):
    return [kn.Fact(f"s{i}", relation, f"{relation}-o{i}") for relation in relations for i in range(n)]


@st.composite
def attributions(draw, n_relations=2, min_prompts=1, max_prompts=9):
    """Few distinct scores, so that ties and exact thresholds occur; some NaN, some prompts without a positive score."""
    facts = facts_of(*(f"P{i}" for i in range(n_relations)), n=draw(st.integers(1, 3)))
    fact_of = [i for i in range(len(facts)) for _ in range(draw(st.integers(min_prompts, max_prompts)))]
    n_layers, d_mlp = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    value = st.sampled_from([math.nan, -1.0, 0.0, 0.1, 0.2, 0.5, 0.9, 1.0])
    n = len(fact_of) * n_layers * d_mlp
    scores = torch.tensor(draw(st.lists(value, min_size=n, max_size=n)), dtype=torch.float64)
    return attribution(scores.reshape(-1, n_layers, d_mlp), fact_of, facts)


def naive_coarse(scores, threshold):
    cells = {(layer, i): s for layer, row in enumerate(scores) for i, s in enumerate(row) if not math.isnan(s)}
    peak = max(cells.values(), default=0)
    return {cell for cell, s in cells.items() if peak > 0 and s >= threshold * peak}


def naive_refine(attr, t, p, floor):
    """The definition, prompt by prompt, with the shares as exact fractions of hundredths."""
    refined = {}
    for i, fact in enumerate(attr.prompts.facts):
        mine = [row for row, j in enumerate(attr.prompts.fact_index.tolist()) if j == i]
        sets = [naive_coarse(attr.scores[row].tolist(), t) for row in mine]
        cells = set().union(*sets)
        refined[fact] = {
            cell
            for cell in cells
            if 100 * sum(cell in one for one in sets) >= round(100 * p) * len(mine)
            and sum(cell in one for one in sets) >= floor
        }
    return refined


def kept_from(attr, share):
    """The attribution with only the scores of the coarse sets at ``share``, sparse."""
    kept = [(row, *cell) for row, one in enumerate(attr.scores.tolist()) for cell in sorted(naive_coarse(one, share))]
    indices = torch.tensor(kept, dtype=torch.long).reshape(-1, 3).T
    scores = torch.sparse_coo_tensor(
        indices, attr.scores[tuple(indices)], attr.scores.shape, is_coalesced=True, check_invariants=True
    )
    return replace(attr, scores=scores, keep=share)


def as_pairs(neurons):
    return {(neuron.layer, neuron.index) for neuron in neurons}
