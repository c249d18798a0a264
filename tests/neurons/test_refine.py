"""Refining, compared with a plain restatement of its definition."""

import math
import pickle
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.neurons import matched_neurons
from tests.refining import (
    MANY_EXAMPLES,
    as_pairs,
    attribution,
    attributions,
    facts_of,
    kept_from,
    naive_coarse,
    naive_refine,
)

REFINE = import_module("kn_lens.neurons.refine")  # the package exports the function by this name

# --- refining --------------------------------------------------------------------------------------------


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
    counts = attr.prompts.prompts_per_fact()
    too_few = {fact: n for fact, n in counts.items() if n < floor}
    if len(too_few) == len(counts):
        with pytest.raises(kn.ArgumentError, match="min_prompts"):
            kn.refine(attr, attr_threshold=t, share_threshold=p, min_prompts=floor)
    else:
        found = kn.refine(attr, attr_threshold=t, share_threshold=p, min_prompts=floor)
        enough = {fact: cells for fact, cells in expected.items() if fact not in too_few}
        assert {fact: as_pairs(neurons) for fact, neurons in found.items()} == enough
        assert found.left_out == too_few


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.randoms(use_true_random=False))
def test_refined_sets_do_not_depend_on_the_order_or_the_chunks_of_prompts(attr, shuffler):
    order = list(range(len(attr.prompts)))
    shuffler.shuffle(order)
    facts, fact_of = attr.prompts.facts, attr.prompts.fact_index
    shuffled = attribution(attr.scores[order], fact_of[order].tolist(), facts)
    found = kn.refine(attr)
    assert kn.refine(shuffled) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REFINE, "CELLS_AT_ONCE", 1)  # one fact and one prompt at a time
        assert kn.refine(attr) == found == kn.refine(shuffled)


@MANY_EXAMPLES
@given(attributions(min_prompts=3), st.sampled_from([0.0, 0.1, 0.2]), st.sampled_from([0.2, 0.5, 1.0]))
def test_thresholded_scores_give_the_same_sets_as_dense_scores(attr, keep, t):
    kept = kept_from(attr, keep)
    assert torch.equal(kn.coarse(kept, t), kn.coarse(attr, t))
    assert kn.coarse(kept, t).dtype == kn.coarse(attr, t).dtype == torch.bool
    found = kn.refine(attr, attr_threshold=t)
    assert kn.refine(kept, attr_threshold=t) == found
    assert kn.refine(kept, attr_threshold=t, negatives=kept) == kn.refine(attr, attr_threshold=t, negatives=found)
    assert kn.refine_by_relation(kept, attr_threshold=t) == kn.refine_by_relation(attr, attr_threshold=t)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REFINE, "CELLS_AT_ONCE", 1)
        assert kn.refine(kept, attr_threshold=t) == found


@MANY_EXAMPLES
@given(attributions(), st.sampled_from([0.0, 0.1, 0.2, 1.0]))
def test_thresholding_keeps_exactly_the_coarse_sets(attr, share):
    kept, expected = attr.thresholded(share), kept_from(attr, share)
    assert kept.keep == share
    assert torch.equal(kept.scores.indices(), expected.scores.indices())
    assert torch.equal(kept.scores.values(), expected.scores.values())


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
def test_the_share_threshold_is_rounded_up_to_a_number_of_prompts(n, p, floor, expected):
    """Neuron j is in the coarse set of j prompts, so that the first neuron kept shows the number needed."""
    scores = torch.zeros(n, 1, n + 1)
    for j in range(n + 1):
        scores[:j, 0, j] = 1.0
    scores[:, 0, n] = 1.0
    found = kn.refine(attribution(scores, [0] * n, facts_of("P", n=1)), share_threshold=p, min_prompts=floor)
    (neurons,) = found.values()
    assert min(neuron.index for neuron in neurons) == expected


def test_a_prompt_without_a_positive_score_has_an_empty_set_and_counts():
    scores = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[-1.0, -2.0]], [[math.nan, math.nan]]])
    attr = attribution(scores, [0] * 5, facts_of("P", n=1))
    assert kn.coarse(attr).sum((1, 2)).tolist() == [1, 1, 1, 0, 0]
    assert list(kn.refine(attr, share_threshold=0.6).values()) == [kn.NeuronSet([(0, 0)])]
    assert list(kn.refine(attr, share_threshold=0.7).values()) == [kn.NeuronSet()]


def test_facts_with_too_few_prompts_are_listed_in_left_out():
    facts = facts_of("P36", "P30", n=3)
    attr = attribution(torch.ones(11, 1, 1), [0] * 3 + [2] * 2 + [3] * 3 + [4] + [5] * 2, facts)
    refined = kn.refine(attr)
    assert refined == {facts[0]: kn.NeuronSet([(0, 0)]), facts[3]: kn.NeuronSet([(0, 0)])}
    assert refined.left_out == {facts[2]: 2, facts[4]: 1, facts[5]: 2} and refined.negatives_left_out == {}
    assert refined.left_out.keys() | refined.keys() == {f for f, n in attr.prompts.prompts_per_fact().items() if n}
    by_relation = kn.refine_by_relation(attr, target=(0, 9))
    assert by_relation.neurons == refined and by_relation.neurons.left_out == refined.left_out
    assert list(kn.refine(attr, min_prompts=2)) == [facts[0], facts[2], facts[3], facts[5]]
    again = pickle.loads(pickle.dumps(refined))
    assert (again, again.left_out) == (refined, refined.left_out)


def test_left_out_facts_do_not_change_the_other_sets():
    facts, scores = facts_of("P36", "P30", n=2), torch.rand(12, 2, 8, generator=torch.Generator().manual_seed(0))
    attr = attribution(scores, [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2, facts)
    rest = attribution(torch.cat([scores[:4], scores[6:10]]), [0] * 4 + [2] * 4, facts)
    for refine in (kn.refine, lambda attr: kn.refine_by_relation(attr).neurons):
        assert refine(attr) == refine(rest) and refine(rest).left_out == {}


def test_no_fact_with_enough_prompts_is_an_error():
    with pytest.raises(kn.ArgumentError, match=r"P36/s0/P36-o0 has 2 prompts.*lower min_prompts"):
        kn.refine(attribution(torch.ones(2, 1, 1), [0, 0], facts_of("P36", n=1)))


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
def test_thresholds_out_of_range_are_refused(bad):
    attr = attribution(torch.ones(3, 1, 1), [0] * 3, facts_of("P", n=1))
    for refine in (kn.refine, kn.refine_by_relation):
        with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
            refine(attr, **bad)
    with pytest.raises(kn.ArgumentError, match="threshold"):
        kn.coarse(attr, -1)


def test_a_threshold_below_the_kept_scores_is_refused():
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


# --- the moving threshold --------------------------------------------------------------------------------


def naive_moving(attr, low, high, max_moves):
    """Return the sets by moving the threshold of each relation in hundredths: down below the target, up above it."""
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
def test_refine_by_relation_equals_its_definition(attr, target, max_moves):
    result = kn.refine_by_relation(attr, target=target, max_moves=max_moves)
    for relation, (p, mean, found) in naive_moving(attr, *target, max_moves).items():
        assert result.share_threshold[relation] == p / 100
        assert result.mean_neurons[relation] == mean
        refined = kn.refine(attr, share_threshold=p / 100)
        for fact, cells in found.items():
            assert as_pairs(result.neurons[fact]) == cells == as_pairs(refined[fact])


@pytest.mark.parametrize("in_prompts, p, moves", [(20, 0.7, 0), (13, 0.65, 1), (8, 0.4, 6)])
def test_repeated_moves_of_the_threshold_do_not_drift(in_prompts, p, moves):
    """Three neurons are in exactly `in_prompts` of 20 prompts: 13 is 0.65 * 20 only if the moves do not drift."""
    scores = torch.zeros(20, 1, 4)
    scores[:in_prompts, 0, :3] = 1.0
    attr = attribution(scores, [0] * 20, facts_of("P", n=1))
    result = kn.refine_by_relation(attr, max_moves=moves)
    assert result.share_threshold == {"P": p} and result.mean_neurons == {"P": 3}
    if moves:
        assert kn.refine_by_relation(attr, max_moves=moves - 1).mean_neurons == {"P": 0}


def test_by_itself_the_threshold_moves_six_times_by_a_twentieth_towards_two_to_five_neurons():
    """Of a relation a neuron in n prompts of 20 for each n in a range: 6 moves from 0.7 reach 0.4, 8 prompts."""
    facts = facts_of("two", "one", "five", "six", n=1)
    scores = torch.zeros(80, 1, 6)
    for number, in_prompts in enumerate([(14, 14), (14, 8), (14,) * 5, (20, 20, 16, 16, 15, 14)]):
        for neuron, n in enumerate(in_prompts):
            scores[20 * number : 20 * number + n, 0, neuron] = 1.0
    result = kn.refine_by_relation(attribution(scores, [i // 20 for i in range(80)], facts))
    assert result.share_threshold == {"two": 0.7, "one": 0.4, "five": 0.7, "six": 0.75}
    assert result.mean_neurons == {"two": 2, "one": 2, "five": 5, "six": 5}
    scores[20:40] = 0.0
    scores[20:27, 0, :2] = 1.0  # the seventh move would find them
    assert kn.refine_by_relation(attribution(scores, [i // 20 for i in range(80)], facts)).mean_neurons["one"] == 0


@pytest.mark.parametrize("n_neurons, target, p", [(4, (0, 2), 1.0), (1, (2, 5), 0.0), (4, (4, 4), 0.7)])
def test_the_threshold_stays_within_0_and_1_and_where_the_target_is_met(n_neurons, target, p):
    attr = attribution(torch.ones(20, 1, n_neurons), [0] * 20, facts_of("P", n=1))
    for step in (0.05, 1):
        result = kn.refine_by_relation(attr, target=target, step=step, max_moves=30)
        assert result.share_threshold == {"P": p} and result.mean_neurons == {"P": n_neurons}


def attribution_of_four_facts(exponent):
    """Scores of neurons that facts of one relation share in part; the larger the exponent, the fewer are high."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(48, 2, 30, generator=generator) ** exponent * torch.rand(2, 30, generator=generator) ** 2
    return attribution(scores, [i // 12 for i in range(48)], facts_of("P", n=4))


@pytest.mark.parametrize(
    "option",
    [
        {"target": (9, 11)},
        {"step": 0.2},
        {"max_moves": 1},
        {"attr_threshold": 0.4},
        {"share_threshold": 0.35},
        {"min_prompts": 9},
    ],
    ids=lambda option: next(iter(option)),
)
def test_negatives_are_refined_with_the_same_options(option):
    attr = attribution_of_four_facts(exponent=4)

    def sets(**options):
        return kn.refine_by_relation(attr, **options).neurons

    assert sets(**option, negatives=attr) == sets(**option, negatives=sets(**option))
    assert sets(**option, negatives=sets(**option)) != sets(**option, negatives=sets())  # the option counts


@pytest.mark.parametrize("option", [{"attr_threshold": 0.4}, {"share_threshold": 0.35}, {"min_prompts": 11}])
def test_negatives_are_refined_with_the_same_thresholds(option):
    attr = attribution_of_four_facts(exponent=1)
    negatives = kn.refine(attr, **option)
    assert kn.refine(attr, **option, negatives=attr) == kn.refine(attr, **option, negatives=negatives)
    assert kn.refine(attr, **option, negatives=negatives) != kn.refine(attr, **option, negatives=kn.refine(attr))


@pytest.mark.parametrize(
    "bad", [{"target": (5, 2)}, {"target": (-1, 2)}, {"step": 0}, {"step": 1.5}, {"max_moves": -1}]
)
def test_targets_and_moves_out_of_range_are_refused(bad):
    attr = attribution(torch.ones(3, 1, 1), [0] * 3, facts_of("P", n=1))
    with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
        kn.refine_by_relation(attr, **bad)


# --- negative examples -----------------------------------------------------------------------------------


def test_negatives_remove_only_neurons_of_the_same_phrasing():
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


def test_unused_negatives_are_listed_in_negatives_left_out():
    facts = facts_of("P36", "P30", n=2)
    attr = attribution(torch.ones(9, 1, 1), [0] * 3 + [1] * 3 + [2] * 2 + [3], facts)  # P30 has too few prompts
    stray = kn.Fact("x", "P19", "y")
    here = kn.NeuronSet([(0, 0)])
    refined = kn.refine(attr, negatives={facts[1]: here, facts[3]: here, stray: here})
    assert refined == {facts[0]: kn.NeuronSet(), facts[1]: here}
    assert refined.negatives_left_out == {stray: "it is phrased like none of the facts"}
    assert refined.left_out == {facts[2]: 2, facts[3]: 1}
    itself = kn.refine(attr, negatives=attr)
    assert itself.negatives_left_out == {
        facts[2]: "it has 2 prompts, fewer than min_prompts",
        facts[3]: "it has 1 prompts, fewer than min_prompts",
    }


def test_negatives_that_are_all_phrased_like_no_fact_are_refused():
    attr = attribution(torch.ones(3, 1, 1), [0] * 3, facts_of("P36", n=1))
    assert kn.refine(attr, negatives={}) == kn.refine(attr)  # no negatives at all are none
    with pytest.raises(kn.ArgumentError, match=r"P37/x/y is phrased like none.*Did you mean 'P36'"):
        kn.refine(attr, negatives={kn.Fact("x", "P37", "y"): kn.NeuronSet([(0, 0)])})
