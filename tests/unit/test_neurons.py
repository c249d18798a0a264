"""Neuron sets, refining against a plain restatement of its definition, controls, overlap and files."""

import json
import math
import pickle
import random
from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens import _refining, overlap
from kn_lens.neurons import match_facts, matched_neurons, refine_released
from tests.tiny import D_MLP, N_LAYERS, tiny_model

PAIRS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5)))
MANY_EXAMPLES = settings(max_examples=60, deadline=None)


tiny_model_once = cache(tiny_model)  # only asked for its sizes


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


# --- Neuron and NeuronSet -----------------------------------------------------------------------------------


@MANY_EXAMPLES
@given(PAIRS, PAIRS)
def test_set_algebra_is_that_of_python_sets(a, b):
    left, right = kn.NeuronSet(a), kn.NeuronSet(b)
    for ours, theirs in (
        (left | right, a | b),
        (left & right, a & b),
        (left - right, a - b),
        (left ^ right, a ^ b),
        (left | b, a | b),
        (left - list(b), a - b),
        ({kn.Neuron(*pair) for pair in a} - right, a - b),
        ({kn.Neuron(*pair) for pair in a} | right, a | b),
    ):
        assert isinstance(ours, kn.NeuronSet)
        assert as_pairs(ours) == theirs
        assert len(ours) == len(theirs)
    assert (left == right, left <= right, left < right, left.isdisjoint(right)) == (
        a == b,
        a <= b,
        a < b,
        a.isdisjoint(b),
    )
    assert [(neuron.layer, neuron.index) for neuron in left] == sorted(a)
    assert all((kn.Neuron(*pair) in left) == (pair in a) for pair in a | b)


@MANY_EXAMPLES
@given(PAIRS)
def test_a_set_is_a_value(pairs):
    neurons = kn.NeuronSet(pairs)
    frozen = frozenset(kn.Neuron(*pair) for pair in pairs)
    assert neurons == frozen and frozen == neurons and hash(neurons) == hash(frozen)
    assert pickle.loads(pickle.dumps(neurons)) == neurons
    assert eval(repr(neurons), {"NeuronSet": kn.NeuronSet}) == neurons
    assert sum(neurons.layer_counts(4)) == len(neurons)
    assert {(layer, i) for layer, indices in neurons.by_layer().items() for i in indices} == pairs


@pytest.mark.parametrize("layer, index", [(-1, 0), (0, -3), (1.0, 2), ("1", 2), (True, 0), (None, 0)])
def test_a_neuron_is_two_whole_numbers(layer, index):
    with pytest.raises(kn.ArgumentError, match="expected a whole number from 0"):
        kn.Neuron(layer, index)
    with pytest.raises(kn.ArgumentError):
        kn.NeuronSet([(layer, index)])


@pytest.mark.parametrize("item", [3, (1, 2, 3), "ab", None])
def test_a_set_takes_neurons_and_pairs_only(item):
    with pytest.raises(kn.ArgumentError):
        kn.NeuronSet([item])


def test_numpy_integers_become_plain_ones():
    neuron = kn.Neuron(*torch.tensor([1, 2]).numpy())
    assert type(neuron.layer) is int and json.dumps(neuron.layer) == "1"


@pytest.mark.parametrize("pair", [(N_LAYERS, 0), (0, D_MLP)])
def test_neurons_that_the_model_does_not_have(pair):
    model = tiny_model()
    neurons = kn.NeuronSet([(0, 0), pair])
    for check in (neurons.check, lambda model: kn.random_neurons(neurons, model)):
        with pytest.raises(kn.ArgumentError, match=rf"layers 0 to {N_LAYERS - 1} and indices 0 to {D_MLP - 1}"):
            check(model)
    if pair[0]:
        with pytest.raises(kn.ArgumentError, match="L3N0"):
            neurons.layer_counts(N_LAYERS)


# --- refining -----------------------------------------------------------------------------------------------


@MANY_EXAMPLES
@given(attributions(), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_coarse_sets_are_those_of_the_definition(attr, threshold):
    found = kn.coarse(attr, threshold)
    for row, scores in enumerate(attr.scores.tolist()):
        assert {tuple(cell) for cell in found[row].nonzero().tolist()} == naive_coarse(scores, threshold)


@MANY_EXAMPLES
@given(
    attributions(),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.sampled_from([0.0, 0.35, 0.55, 0.7, 1.0]),
    st.integers(1, 3),
)
def test_refined_sets_are_those_of_the_definition(attr, t, p, floor):
    expected = naive_refine(attr, t, p, floor)
    counts = torch.bincount(attr.prompts.fact_index).tolist()
    if min(counts) < floor:
        with pytest.raises(kn.ArgumentError, match="min_prompts"):
            kn.refine(attr, attr_threshold=t, share_threshold=p, min_prompts=floor)
    else:
        found = kn.refine(attr, attr_threshold=t, share_threshold=p, min_prompts=floor)
        assert {fact: as_pairs(neurons) for fact, neurons in found.items()} == expected


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.randoms(use_true_random=False))
def test_neither_order_nor_portions_change_the_sets(attr, shuffler):
    order = list(range(len(attr.prompts)))
    shuffler.shuffle(order)
    facts, fact_of = attr.prompts.facts, attr.prompts.fact_index
    shuffled = attribution(attr.scores[order], fact_of[order].tolist(), facts)
    found = kn.refine(attr)
    assert kn.refine(shuffled) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_refining, "CELLS_AT_ONCE", 1)  # one fact and one prompt at a time
        assert kn.refine(attr) == found == kn.refine(shuffled)


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.sampled_from([0.0, 0.1, 0.2]), st.sampled_from([0.2, 0.5, 1.0]))
def test_thresholded_scores_give_the_sets_of_whole_ones(attr, keep, t):
    kept = kept_from(attr, keep)
    assert torch.equal(kn.coarse(kept, t), kn.coarse(attr, t))
    found = kn.refine(attr, attr_threshold=t)
    assert kn.refine(kept, attr_threshold=t) == found
    assert kn.refine(kept, attr_threshold=t, negatives=kept) == kn.refine(attr, attr_threshold=t, negatives=found)
    assert kn.refine_by_relation(kept, attr_threshold=t) == kn.refine_by_relation(attr, attr_threshold=t)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_refining, "CELLS_AT_ONCE", 1)
        assert kn.refine(kept, attr_threshold=t) == found


@pytest.mark.parametrize(
    "n, p, floor, expected",
    [
        (10, 0.7, 3, 7),
        (20, 0.55, 3, 11),
        (20, 0.35, 3, 7),
        (9, 0.7, 3, 7),
        (4, 0.7, 3, 3),
        (3, 1.0, 3, 3),
        (9, 0, 1, 1),
    ],
)
def test_the_share_that_is_needed(n, p, floor, expected):
    """Neuron j is in the coarse set of j prompts: the first that stays tells how many were asked for."""
    scores = torch.zeros(n, 1, n + 1)
    for j in range(n + 1):
        scores[:j, 0, j] = 1.0
    scores[:, 0, n] = 1.0
    found = kn.refine(attribution(scores, [0] * n, facts_of("P", n=1)), share_threshold=p, min_prompts=floor)
    (neurons,) = found.values()
    assert min(neuron.index for neuron in neurons) == expected


def test_a_prompt_without_a_positive_score_has_no_neurons_but_counts_as_a_prompt():
    scores = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[-1.0, -2.0]], [[math.nan, math.nan]]])
    attr = attribution(scores, [0] * 5, facts_of("P", n=1))
    assert kn.coarse(attr).sum((1, 2)).tolist() == [1, 1, 1, 0, 0]
    assert list(kn.refine(attr, share_threshold=0.6).values()) == [kn.NeuronSet([(0, 0)])]
    assert list(kn.refine(attr, share_threshold=0.7).values()) == [kn.NeuronSet()]


def test_facts_without_prompts_are_absent_and_facts_with_too_few_are_named():
    facts = facts_of("P36", n=3)
    scores = torch.ones(5, 1, 1)
    assert list(kn.refine(attribution(scores, [0, 0, 0, 2, 2], facts), min_prompts=2)) == [facts[0], facts[2]]
    with pytest.raises(kn.ArgumentError, match=r"P36/s2/P36-o2 has 2 prompts.*lower min_prompts"):
        kn.refine(attribution(scores, [0, 0, 0, 2, 2], facts))


@pytest.mark.parametrize(
    "bad",
    [
        {"attr_threshold": 1.5},
        {"attr_threshold": math.nan},
        {"share_threshold": -0.1},
        {"min_prompts": 0},
        {"min_prompts": 2.5},
    ],
)
def test_thresholds_out_of_range(bad):
    attr = attribution(torch.ones(3, 1, 1), [0] * 3, facts_of("P", n=1))
    for refine in (kn.refine, kn.refine_by_relation):
        with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
            refine(attr, **bad)
    with pytest.raises(kn.ArgumentError, match="threshold"):
        kn.coarse(attr, -1)


# --- the moving threshold -----------------------------------------------------------------------------------


def naive_moving(attr, low, high, max_moves):
    """Per relation, in hundredths: down below the target, up above it."""
    by_relation = {}
    for relation in {fact.relation for fact in attr.prompts.facts}:
        p = 70
        for move in range(max_moves + 1):
            found = {f: s for f, s in naive_refine(attr, 0.2, p / 100, 3).items() if f.relation == relation}
            mean = sum(map(len, found.values())) / len(found)
            moved = min(max(p + (5 if mean > high else -5), 0), 100)
            if low <= mean <= high or move == max_moves or moved == p:
                break
            p = moved
        by_relation[relation] = (p, mean, found)
    return by_relation


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.sampled_from([(2, 5), (0.5, 1), (4, 9)]), st.sampled_from([0, 2, 6, 30]))
def test_the_moving_threshold_is_that_of_the_definition(attr, target, max_moves):
    result = kn.refine_by_relation(attr, target=target, max_moves=max_moves)
    for relation, (p, mean, found) in naive_moving(attr, *target, max_moves).items():
        assert result.share_threshold[relation] == p / 100
        assert result.mean_neurons[relation] == mean
        refined = kn.refine(attr, share_threshold=p / 100)
        for fact, cells in found.items():
            assert as_pairs(result.neurons[fact]) == cells == as_pairs(refined[fact])


@pytest.mark.parametrize("in_prompts, p, moves", [(20, 0.7, 0), (13, 0.65, 1), (8, 0.4, 6)])
def test_the_threshold_moves_down_without_drift(in_prompts, p, moves):
    """Three neurons in exactly `in_prompts` of 20 prompts: 13 is 0.65 * 20 only if the moves do not drift."""
    scores = torch.zeros(20, 1, 4)
    scores[:in_prompts, 0, :3] = 1.0
    attr = attribution(scores, [0] * 20, facts_of("P", n=1))
    result = kn.refine_by_relation(attr, max_moves=moves)
    assert result.share_threshold == {"P": p} and result.mean_neurons == {"P": 3}
    if moves:
        assert kn.refine_by_relation(attr, max_moves=moves - 1).mean_neurons == {"P": 0}


@pytest.mark.parametrize("bad", [{"target": (5, 2)}, {"target": (-1, 2)}, {"step": 0}, {"max_moves": -1}])
def test_moves_that_make_no_sense(bad):
    attr = attribution(torch.ones(3, 1, 1), [0] * 3, facts_of("P", n=1))
    with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
        kn.refine_by_relation(attr, **bad)


# --- negative examples --------------------------------------------------------------------------------------


def test_negatives_remove_the_neurons_of_the_phrasing_and_no_others():
    template = ("The capital of [X] is [Y].",)
    ireland = kn.Fact("Ireland", "P36", "Dublin", template)
    france = kn.Fact("France", "P36", "Paris", template)
    eire = kn.Fact("Éire", "P36", "Dublin", template)
    likewise = kn.Fact("Kenya", "capital", "Nairobi", template)
    scores = torch.zeros(12, 1, 4)
    scores[:, 0, 0] = 1.0  # the phrasing: all facts
    scores[:3, 0, 1:3] = 1.0  # Ireland's own, and one that it shares
    scores[3:9, 0, 3] = 1.0  # of France and Éire
    attr = attribution(scores, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3, [ireland, france, eire, likewise])
    plain = kn.refine(attr)
    assert as_pairs(plain[ireland]) == {(0, 0), (0, 1), (0, 2)} and as_pairs(plain[france]) == {(0, 0), (0, 3)}

    clean = kn.refine(attr, negatives=plain)
    assert as_pairs(clean[ireland]) == {(0, 1), (0, 2)}
    assert as_pairs(clean[france]) == set() == as_pairs(clean[likewise])
    assert (
        clean == kn.refine(attr, negatives=attr) == kn.refine_by_relation(attr, target=(0, 9), negatives=attr).neurons
    )

    # Éire has Ireland's answer, so what both carry may well be the answer; a fact is no negative of itself either.
    assert kn.refine(attr, negatives={eire: plain[eire], ireland: plain[ireland]})[ireland] == plain[ireland]
    # The same template makes a negative of another relation, for the facts that have it.
    assert as_pairs(kn.refine(attr, negatives={likewise: kn.NeuronSet([(0, 2)])})[ireland]) == {(0, 0), (0, 1)}


def test_a_negative_that_is_phrased_like_no_fact_is_a_mistake():
    attr = attribution(torch.ones(3, 1, 1), [0] * 3, facts_of("P36", n=1))
    with pytest.raises(kn.ArgumentError, match=r"P37/x/y is phrased like none.*Did you mean 'P36'"):
        kn.refine(attr, negatives={kn.Fact("x", "P37", "y"): kn.NeuronSet([(0, 0)])})


# --- controls -----------------------------------------------------------------------------------------------


@MANY_EXAMPLES
@given(st.sets(st.tuples(st.integers(0, N_LAYERS - 1), st.integers(0, D_MLP - 1)), max_size=12), st.integers(0, 99))
def test_random_neurons_match_each_layer_and_avoid_the_set(pairs, seed):
    model, neurons = tiny_model_once(), kn.NeuronSet(pairs)
    control = kn.random_neurons(neurons, model, seed)
    assert control.layer_counts(N_LAYERS) == neurons.layer_counts(N_LAYERS)
    assert control.isdisjoint(neurons)
    assert control == kn.random_neurons(neurons, model, seed)


def test_random_neurons_are_drawn_evenly():
    model, neurons = tiny_model_once(), kn.NeuronSet([(1, 0), (1, 5)])
    drawn = [neuron.index for seed in range(600) for neuron in kn.random_neurons(neurons, model, seed)]
    counts = torch.bincount(torch.tensor(drawn), minlength=D_MLP)
    assert counts[[0, 5]].sum() == 0
    expected = 2 * 600 / (D_MLP - 2)
    chi_squared = ((counts - expected) ** 2 / expected).sum() - 2 * expected  # less the two that cannot be drawn
    assert chi_squared < 50  # 21 degrees of freedom: p < 0.001


@pytest.mark.parametrize("n", [D_MLP // 2, D_MLP // 2 + 1, D_MLP - 1, D_MLP])
def test_random_neurons_of_a_full_layer_share_as_few_as_can_be(n):
    model, neurons = tiny_model_once(), kn.NeuronSet([(0, 3), *((1, i) for i in range(n))])
    control = kn.random_neurons(neurons, model)
    assert control.layer_counts(N_LAYERS) == neurons.layer_counts(N_LAYERS)
    assert len(control & neurons) == max(0, 2 * n - D_MLP)


@MANY_EXAMPLES
@given(attributions(min_prompts=2), st.randoms(use_true_random=False))
def test_activation_neurons_are_as_many_and_the_highest(attr, shuffler):
    facts, fact_of = attr.prompts.facts, attr.prompts.fact_index.tolist()
    activations = attribution(torch.randn(attr.scores.shape), fact_of, facts, method="activation")
    cells = [(layer, i) for layer in range(attr.scores.shape[1]) for i in range(attr.scores.shape[2])]
    found = {fact: kn.NeuronSet(shuffler.sample(cells, shuffler.randint(0, len(cells)))) for fact in facts}
    control = kn.activation_neurons(activations, found)
    assert list(control) == list(found)
    for i, fact in enumerate(facts):
        means = activations.scores[[j == i for j in fact_of]].mean(0)
        ranked = sorted(cells, key=lambda cell: -means[cell])
        assert as_pairs(control[fact]) == set(ranked[: len(found[fact])])


def test_activation_neurons_want_activations_of_every_fact():
    facts = facts_of("P36")
    found = {fact: kn.NeuronSet([(0, 0)]) for fact in facts}
    scores = torch.tensor([[[1.0, math.nan]]] * 2)
    with pytest.raises(kn.ArgumentError, match=r"integrated_gradients.*matched_neurons"):
        kn.activation_neurons(attribution(scores, [0, 1], facts), found)
    with pytest.raises(kn.ArgumentError, match=r"no prompts of P36/s1/P36-o1"):
        kn.activation_neurons(attribution(scores, [0, 0], facts, "activation"), found)
    both = {facts[0]: kn.NeuronSet([(0, 0), (0, 1)])}
    with pytest.raises(kn.ArgumentError, match="fewer scores"):
        matched_neurons(attribution(scores, [0, 1], facts), both)


def test_low_scores_that_were_not_kept_are_not_there():
    facts = facts_of("P36", n=1)
    kept = kept_from(attribution(torch.rand(3, 1, 4, dtype=torch.float64), [0] * 3, facts, "activation"), 0.3)
    for low in (
        lambda: kn.coarse(kept, 0.2),
        lambda: kn.refine(kept),
        lambda: kn.refine(kept, attr_threshold=0.3, negatives=replace(kept, keep=0.5)),
        lambda: kn.refine_by_relation(kept),
    ):
        with pytest.raises(
            kn.ArgumentError, match=r"but only the scores from 0\.[35] times .* expected 0\.[35] or more"
        ):
            low()
    for mean_of_what_is_left in (matched_neurons, kn.activation_neurons):
        with pytest.raises(kn.ArgumentError, match=r"need all scores.* 0\.3 times .* keep=None"):
            mean_of_what_is_left(kept, {facts[0]: kn.NeuronSet([(0, 0)])})


# --- overlap ------------------------------------------------------------------------------------------------


@MANY_EXAMPLES
@given(st.dictionaries(st.tuples(st.sampled_from("ABC"), st.integers(0, 3)), PAIRS, min_size=1))
def test_overlap_is_that_of_all_pairs(sets):
    found = {kn.Fact(f"s{i}", relation, "o", uid=str(i)): kn.NeuronSet(pairs) for (relation, i), pairs in sets.items()}
    pairs = [len(found[a] & found[b]) for a, b in combinations(found, 2) if a.relation == b.relation]
    within = overlap.shared_within_relation(found)
    assert within == pytest.approx(sum(pairs) / len(pairs)) if pairs else math.isnan(within)

    relations = {fact.relation for fact in found}
    expected = []  # a random relation first, then a random fact of it
    for fact in found:
        others = [
            [len(found[fact] & found[other]) for other in found if other.relation == relation]
            for relation in relations - {fact.relation}
        ]
        expected += [sum(sum(one) / len(one) for one in others) / len(others)] if others else []
    across = overlap.shared_across_relations(found)
    assert across == pytest.approx(sum(expected) / len(expected)) if expected else math.isnan(across)

    table = overlap.relation_table(found).set_index("relation")
    assert table.n_facts["all"] == len(found) == table.n_facts[:-1].sum()
    assert table.neurons_per_fact["all"] == sum(map(len, found.values())) / len(found)
    layers = overlap.layer_distribution(found, 4)
    assert layers.n_neurons.sum() == sum(map(len, found.values()))
    assert layers.share.sum() == pytest.approx(1 if layers.n_neurons.sum() else 0)


def test_jaccard_and_overlap():
    a, b = kn.NeuronSet([(0, 1), (0, 2), (0, 3)]), kn.NeuronSet([(0, 3), (1, 3)])
    assert (overlap.overlap(a, b), overlap.jaccard(a, b)) == (1, 0.25)
    assert overlap.jaccard(kn.NeuronSet(), kn.NeuronSet()) == 1 and overlap.jaccard(a, kn.NeuronSet()) == 0


def test_relation_neurons():
    facts = facts_of("P", n=20)
    found = {fact: kn.NeuronSet([(0, 0)] + [(1, 1)] * (i < 2) + [(2, 2)] * (i < 1)) for i, fact in enumerate(facts)}
    assert overlap.relation_neurons(found) == {"P": kn.NeuronSet([(0, 0), (1, 1)])}  # in 20 and 2 of 20 sets
    assert overlap.relation_neurons(found, top=1) == {"P": kn.NeuronSet([(0, 0)])}
    assert overlap.relation_neurons(found, top=20) == {"P": kn.NeuronSet([(0, 0), (1, 1), (2, 2)])}
    for bad in ({"min_share": 2}, {"top": 0}):
        with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
            overlap.relation_neurons(found, **bad)


# --- files --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@MANY_EXAMPLES
@given(sets=st.dictionaries(TEXT, PAIRS, min_size=1), note=TEXT)
def test_our_files_come_back_as_they_were(tmp_path_factory, sets, note):
    path = tmp_path_factory.mktemp("sets") / "neurons.json"
    written = {key: kn.NeuronSet(pairs) for key, pairs in sets.items()}
    kn.NeuronSet.write_many(path, written, model=note)
    assert kn.NeuronSet.read_many(path) == written
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["format"], document["version"], document["meta"]) == ("kn_lens.neurons", 1, {"model": note})
    assert [other.name for other in path.parent.iterdir()] == ["neurons.json"]


def test_one_set_and_sets_by_fact(tmp_path):
    facts = [kn.Fact("Ireland", "P36", "Dublin", uid="a/b"), kn.Fact("France", "P36", "Paris")]
    found = {facts[0]: kn.NeuronSet([(0, 1)]), facts[1]: kn.NeuronSet()}
    kn.NeuronSet.write_many(tmp_path / "many.json", found)
    assert match_facts(kn.NeuronSet.read_many(tmp_path / "many.json"), facts) == found
    with pytest.raises(kn.DataError, match=r"2 neuron sets.*read_many"):
        kn.NeuronSet.read(tmp_path / "many.json")
    found[facts[0]].write(tmp_path / "one.json", note=1)
    assert kn.NeuronSet.read(tmp_path / "one.json") == found[facts[0]]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "neurons.json"
    kn.NeuronSet([(0, 1)]).write(path)
    old = path.read_bytes()
    with pytest.raises(kn.ArgumentError, match="JSON"):
        kn.NeuronSet([(0, 2)]).write(path, model=object())

    def full(self, text, **options):
        open(self, "w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(kn.DataError, match="No space left"):
        kn.NeuronSet([(0, 2)]).write(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_two_facts_of_one_key_are_not_written(tmp_path):
    fact = kn.Fact("Ireland", "P36", "Dublin")
    with pytest.raises(kn.ArgumentError, match=r"P36/Ireland/Dublin"):
        kn.NeuronSet.write_many(tmp_path / "x.json", {fact: kn.NeuronSet(), fact.key: kn.NeuronSet()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, document, expected",
    [
        ("kn_bag-P36.json", [[[10, 188], [11, 500]], []], {"P36[0]": {(10, 188), (11, 500)}, "P36[1]": set()}),
        ("base_kn_bag-P101.json", [[], [[0, 1]]], {"P101[0]": set(), "P101[1]": {(0, 1)}}),
        ("kn_rel-P36.json", [[10, 188], [11, 500]], {"P36": {(10, 188), (11, 500)}}),
        ("mine.json", [[[3, 4, 0.25]]], {"[0]": {(3, 4)}}),  # a score behind the index
        ("neurons_0.json", {"48a2b323-a09c": [[10, 188], [6, 1096]]}, {"48a2b323-a09c": {(10, 188), (6, 1096)}}),
    ],
)
def test_files_of_others(tmp_path, name, document, expected):
    path = tmp_path / name
    path.write_text(json.dumps(document, indent=2))
    found = kn.NeuronSet.read_many(path)
    assert {key: as_pairs(neurons) for key, neurons in found.items()} == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 1, column 2"),
        ("", "not JSON"),
        ("[]", "expected neuron sets"),
        ("{}", "no neuron sets"),
        ("3", "expected neuron sets"),
        ("[1, 2]", "expected a list"),
        ('{"a": 3}', "'a': got 3"),
        ('{"a": [[1, 2, 3, 4]]}', "whole numbers from 0"),
        ('{"a": [[1, -2]]}', "whole numbers from 0"),
        ('{"a": [[1, 2.0]]}', "whole numbers from 0"),
        ('{"a": [[true, 2]]}', "whole numbers from 0"),
        ('{"a": [[1, 2]], "a": []}', "'a' stands there twice"),
        ('{"format": "kn_lens.neurons", "version": 2, "neurons": {}}', "version 2"),
        ('{"format": "other", "version": 1, "neurons": {}}', "'other'"),
        ('{"format": "kn_lens.neurons", "version": 1}', "'neurons' is None"),
        ("[" * 100_000, "JSON|nested"),
        ("\udcff", "cannot be read|not JSON"),
    ],
)
def test_malformed_files(tmp_path, text, message):
    path = tmp_path / "neurons.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(kn.DataError, match=message):
        kn.NeuronSet.read_many(path)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "neurons.json").write_text("{}")
    with pytest.raises(kn.DataError, match=r"Did you mean 'neurons.json'"):
        kn.NeuronSet.read_many(tmp_path / "neuron.json")
    with pytest.raises(kn.DataError, match="no file"):
        kn.NeuronSet.read_many(tmp_path / "nowhere" / "neuron.json")


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from([0.35, 0.7]))
def test_stored_attributions_are_refined_as_fresh_ones(tmp_path_factory, attr, t, p):
    """Write what the released code would: of each prompt the scores from a tenth of the largest."""
    path = tmp_path_factory.mktemp("released") / "TREx-all.rlt.jsonl"
    lines = []
    for i, fact in enumerate(attr.prompts.facts):
        line = []
        for scores in attr.scores[attr.prompts.fact_index == i].tolist():
            kept = [[layer, j, scores[layer][j]] for layer, j in sorted(naive_coarse(scores, 0.1))]
            line.append([{"relation": f"{fact.relation}(label)", "gold_obj": fact.object}, {"ig_gold": kept}])
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines))
    stored = refine_released(path, attr_threshold=t, share_threshold=p)
    assert match_facts(stored, attr.prompts.facts) == kn.refine(attr, attr_threshold=t, share_threshold=p)


@pytest.mark.parametrize(
    "line, error, message",
    [
        ("{", kn.DataError, "line 1 is not JSON"),
        ("[]", kn.DataError, "line 1: got"),
        ("3", kn.DataError, "line 1: got 3"),
        ('[[{"relation": "P36"}, {"base": []}]]', kn.DataError, "no 'ig_gold' among base"),
        ('[[{"relation": "P36"}, {"ig_gold": [[1, 2]]}]]', kn.DataError, r"\[layer, index, score\]"),
        ('[[{"relation": "P36"}, {"ig_gold": 5}]]', kn.DataError, "got 5"),
        ('[[{"relation": "P36"}, {"ig_gold": []}]]', kn.ArgumentError, r"P36\[0\] has 1 prompt,"),
        ("", kn.DataError, "is empty"),
    ],
)
def test_malformed_attributions(tmp_path, line, error, message):
    path = tmp_path / "P36.rlt.jsonl"
    path.write_text(line)
    with pytest.raises(error, match=message):
        refine_released(path)


def test_stored_attributions_have_no_low_scores(tmp_path):
    with pytest.raises(kn.ArgumentError, match=r"0\.1 or more"):
        refine_released(tmp_path / "none.jsonl", attr_threshold=0.05)


def test_keys_stand_for_facts():
    facts = [kn.Fact("Ireland", "P36", "Dublin", uid="u1"), kn.Fact("Dublin", "P1376", "Ireland"), *facts_of("P36")]
    one = kn.NeuronSet([(0, 1)])
    assert match_facts({"u1": one, "P36[2]": one, "P1376/Dublin/Ireland": one}, facts) == dict.fromkeys(
        [facts[0], facts[3], facts[1]], one
    )
    with pytest.raises(kn.DataError, match=r"'P36\[3\]' of the neuron sets stands for 0 .*Did you mean 'P36"):
        match_facts({"P36[3]": one}, facts)
    with pytest.raises(kn.DataError, match="two of the neuron sets"):
        match_facts({"u1": one, "P36[0]": one}, facts)
    twins = [kn.Fact("a", "P", "x", uid="u"), kn.Fact("b", "P", "y", uid="u")]
    with pytest.raises(kn.DataError, match="stands for 2"):
        match_facts({"u": one}, twins)


def test_many_facts_are_matched_by_uid():
    facts = [kn.Fact(f"s{i}", f"P{i % 34}", "o", uid=str(i)) for i in range(3000)]
    shuffled = random.Random(0).sample(facts, len(facts))
    sets = {fact.uid: kn.NeuronSet([(0, int(fact.uid))]) for fact in shuffled}
    assert all(as_pairs(found) == {(0, int(fact.uid))} for fact, found in match_facts(sets, facts).items())
