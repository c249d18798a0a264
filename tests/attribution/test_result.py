"""Attributions as values: parts of them, tables and arrays of their scores, and what they show."""

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from tests.tiny import COUNTRIES, D_MLP, N_LAYERS, tiny_model

TEMPLATES = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "[Y] is the capital of [X].")
FACTS = [
    kn.Fact(country, "P36", capital, TEMPLATES, relation_label="capital")
    for country, capital in list(COUNTRIES.items())[:4]
]


@pytest.fixture(scope="module")
def attr():
    model = tiny_model()
    return kn.attribute(model, kn.make_prompts(model, FACTS), method="gradient_x_activation")


@pytest.fixture(scope="module", params=["dense", "sparse"])
def either(attr, request):
    return attr if request.param == "dense" else attr.thresholded(0.3)


def prompts_of(attr, fact):
    return [number for number in range(len(attr.prompts)) if attr.prompts.fact(number) == fact]


@pytest.mark.parametrize(
    "index, expected",
    [
        (FACTS[2], [6, 7, 8]),
        (slice(None, 3), [0, 1, 2]),
        (slice(None, None, -5), [11, 6, 1]),
        (4, [4]),
        (-1, [11]),
        ([5, 0, 5], [5, 0, 5]),
        (torch.tensor([7]), [7]),
    ],
)
def test_a_part_has_the_values_of_its_prompts(either, index, expected):
    part = either[index]
    assert part.prompts.text == tuple(either.prompts.text[number] for number in expected)
    assert len(part) == len(expected) and part.scores.is_sparse == either.scores.is_sparse
    assert np.array_equal(np.asarray(part), np.asarray(either)[expected])
    for name in ("total", "clean", "expected", "n_points", "tolerance", "completeness_gap", "converged"):
        assert torch.equal(getattr(part, name).nan_to_num(), getattr(either, name)[expected].nan_to_num())
    assert (part.method, part.keep) == (either.method, either.keep)


def test_the_parts_of_the_facts_refine_as_the_whole(either):
    whole = kn.refine(either, attr_threshold=0.4, min_prompts=1)
    for fact in FACTS:
        assert kn.refine(either[fact], attr_threshold=0.4, min_prompts=1)[fact] == whole[fact]


def test_other_indices_are_refused(attr):
    stranger = kn.Fact("Ireland", "P36", "Dubln")
    with pytest.raises(kn.ArgumentError, match=r"has no prompts here\. Did you mean 'P36/Ireland/Dublin'"):
        attr[stranger]
    for number in (12, -13):
        with pytest.raises(IndexError, match=f"no prompt {number}; there are 0 to 11"):
            attr[number]
    with pytest.raises(kn.ArgumentError, match="chosen by a list of their numbers; got 'Ireland'"):
        attr["Ireland"]
    with pytest.raises(kn.ArgumentError, match="no prompt in the batch"):
        attr[5:5]
    assert [len(part) for part in attr] == [1] * 12


def test_the_table_has_each_computed_and_kept_score_once(attr, either):
    frame = either.to_frame()
    expected = {}
    dense = np.asarray(either)
    for cell in zip(*np.nonzero(dense) if either.keep else np.nonzero(~np.isnan(dense)), strict=True):
        expected[cell] = dense[cell]
    assert frame.set_index(["prompt", "layer", "index"])["score"].to_dict() == expected
    for row in frame.sample(min(30, len(frame)), random_state=0).itertuples():
        fact = attr.prompts.fact(row.prompt)
        assert (row.relation, row.subject, row.object) == ("P36", fact.subject, fact.object)
        assert kn.Neuron(row.neuron) == (row.layer, row.index)
    assert frame[["prompt", "layer", "index"]].apply(tuple, axis=1).is_monotonic_increasing


def test_scores_that_were_not_computed_have_no_row():
    model = tiny_model()
    prompts = kn.make_prompts(model, FACTS[:1])
    chosen = kn.attribute(model, prompts, method="ablation", neurons=["L1N3", "L0N2"])
    assert list(chosen.to_frame()["neuron"]) == ["L0N2", "L1N3"] * 3
    assert set(chosen.top(5)["neuron"]) == {"L0N2", "L1N3"}


def test_top_neurons_are_those_of_highest_mean(either):
    for fact in (None, FACTS[1]):
        chosen = list(range(12)) if fact is None else prompts_of(either, fact)
        mean = np.asarray(either)[chosen].astype(float).mean(0)
        table = either.top(6, fact)
        flat = sorted(mean.ravel(), reverse=True)
        assert table["score"].tolist() == pytest.approx(flat[:6])
        for row in table.itertuples():
            assert mean[row.layer, row.index] == pytest.approx(row.score) and kn.Neuron(row.neuron).index == row.index
            assert (row.low <= row.score <= row.high) if fact is None else np.isnan(row.low)
        pd.testing.assert_frame_equal(table, either[chosen].top(6))
    assert len(either.top(10**6)) == N_LAYERS * D_MLP
    with pytest.raises(kn.ArgumentError, match="k=0; expected a number of neurons"):
        either.top(0)


def test_the_array_has_the_scores(attr):
    array = np.asarray(attr)
    assert array.shape == (12, N_LAYERS, D_MLP) and np.array_equal(array, attr.scores.numpy())
    assert np.asarray(attr, dtype=np.float32).dtype == np.float32
    copy = np.array(attr)
    copy[:] = 0
    assert attr.scores.abs().sum() > 0
    sparse = attr.thresholded(0.3)
    assert np.array_equal(np.asarray(sparse), sparse.scores.to_dense().numpy())
    half = kn.attribution.Attribution(**{**vars(attr), "scores": attr.scores.bfloat16()})
    assert np.asarray(half).dtype == np.float32 and half.to_frame()["score"].dtype == np.float32


def test_a_move_to_a_device_moves_every_tensor(either, monkeypatch):
    tensors = [tensor for tensor in vars(either).values() if isinstance(tensor, torch.Tensor)]
    tensors += [tensor for tensor in vars(either.prompts).values() if isinstance(tensor, torch.Tensor)]
    asked = []
    move = torch.Tensor.to

    def recorded(tensor, *arguments, **options):
        if arguments == ("cuda",):
            asked.append(id(tensor))
            return tensor.clone()
        return move(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    moved = either.to("cuda")
    assert sorted(asked) == sorted(map(id, tensors)) and len(asked) == 13
    assert np.array_equal(np.asarray(moved), np.asarray(either)) and moved.prompts.text == either.prompts.text


def test_the_text_is_one_line_with_the_error_bar(attr):
    text = f"Attribution(12 prompts, {N_LAYERS} layers of {D_MLP} neurons: gradient_x_activation, prob, none"
    assert repr(attr) == f"{text}; completeness gap at most {float(attr.completeness_gap.abs().max()):.2g})"
    active = kn.attribute(tiny_model(), attr.prompts[:1], method="activation")
    assert repr(active).startswith("Attribution(1 prompt, ") and repr(active).endswith(
        ": activation, activation, none)"
    )


def test_prompts_show_their_number_and_the_first(attr):
    prompts = attr.prompts
    assert repr(prompts[:7]) == (f"PromptBatch(7 prompts of 3 facts, masked, cpu, first: {prompts.text[0]!r})")
    html = prompts._repr_html_()
    assert (
        "12 prompts of 4 facts" in html and "capital (P36)" in html and prompts.text[9] in html.replace("&#x27;", "'")
    )
    assert "2 more" in html and html.count("\n") < 30


def test_the_prompts_of_a_fact_are_those_that_ask_for_it(attr):
    for fact in FACTS:
        part = attr.prompts[fact]
        assert part.text == tuple(attr.prompts.text[number] for number in prompts_of(attr, fact))
        assert {part.fact(number) for number in range(len(part))} == {fact}
