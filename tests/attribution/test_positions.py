"""Attributions with an axis for positions: their parts, tables and the errors of those who take one position."""

import numpy as np
import pytest
import torch

import kn_lens as kn
from tests.prompts.cases import FACTS
from tests.tiny import loaded


@pytest.fixture(scope="module")
def attr():
    model = loaded("BertForMaskedLM")
    return kn.attribute(model, kn.make_prompts(model, FACTS), positions="all")


def test_a_position_of_each_prompt_is_an_ordinary_attribution_there(attr):
    at_subject = attr.at("subject_last")
    assert torch.equal(at_subject.prompts.post_pos, attr.prompts.at("subject_last").post_pos)
    alone = kn.attribute(loaded("BertForMaskedLM"), at_subject.prompts)
    torch.testing.assert_close(at_subject.scores, alone.scores, rtol=1e-6, atol=1e-12)
    assert kn.refine(at_subject).keys() == kn.refine(alone).keys()
    assert torch.equal(attr.at(2).scores, attr.scores[:, 2]) and len(attr.at("read").top(3)) == 3


def test_some_prompts_have_their_own_positions(attr):
    fact = attr.prompts.fact(4)
    some = attr[fact]
    numbers = attr.prompts.indices_of(fact)
    torch.testing.assert_close(some.scores, attr.scores[numbers], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(some.positions, attr.positions[numbers]) and len(some) == len(numbers)
    assert torch.equal(some.at("read").scores, attr.at("read")[numbers].scores)


def test_the_table_has_a_row_for_each_score_and_says_whose_it_is(attr):
    some = attr[:2]
    frame = some.to_frame()
    assert len(frame) == int((~some.scores.isnan()).sum())
    row = frame.iloc[1234]
    column = some.positions[row["prompt"]].tolist().index(row["position"])
    assert row["score"] == float(some.scores[row["prompt"], column, row["layer"], row["index"]])
    assert row["role"] == some.roles[row["prompt"]][column]
    assert row["token"] == int(some.prompts.tokens[row["prompt"], row["position"]])
    assert str(np.asarray(some).shape) == str(tuple(some.scores.shape))


def test_the_table_of_roles_averages_over_tokens_and_then_over_prompts(attr):
    table = attr.by_role().set_index(["role", "layer"])
    roles = attr.roles
    for role in ("subject_last", "after", "read"):
        effects, positive = [], []
        for prompt in range(len(attr)):
            columns = [column for column, name in enumerate(roles[prompt]) if name == role]
            if columns:
                effects.append(attr.expected[prompt, columns, 1].mean())
                positive.append(attr.scores[prompt, columns, 1].clamp(min=0).sum(-1).mean())
        row = table.loc[(role, 1)]
        assert row["n_prompts"] == len(effects)
        np.testing.assert_allclose(row["effect"], float(torch.stack(effects).mean()))
        np.testing.assert_allclose(row["positive"], float(torch.stack(positive).mean()))


@pytest.mark.parametrize("value", ["effect", "positive"])
def test_the_heat_map_draws_the_table_of_roles(attr, value):
    figure = attr.plot_positions(value=value)
    table = attr.by_role()
    (cells,) = figure.data
    assert list(cells.y) == [role.replace("_", " ") for role in dict.fromkeys(table["role"])]
    np.testing.assert_allclose(np.array(cells.z, dtype=float).flatten(), table[value])
    assert "subject last: largest in layer" in figure.layout.meta["description"]


def test_other_values_of_the_heat_map_are_refused(attr):
    with pytest.raises(kn.ArgumentError, match="Did you mean 'effect'"):
        attr.plot_positions(value="effects")
    activations = kn.attribute(loaded("BertForMaskedLM"), attr.prompts[:1], positions="subject", method="activation")
    with pytest.raises(kn.ArgumentError, match="value='positive'"):
        activations.plot_positions()


def test_refining_asks_for_one_position(attr):
    with pytest.raises(kn.ArgumentError, match=r"attr.at\('subject_last'\)"):
        kn.refine(attr)
    with pytest.raises(kn.ArgumentError, match="column of positions, 0 to"):
        attr.at(99)
    with pytest.raises(kn.ArgumentError, match="Did you mean 'subject_last'"):
        attr.at("subject_lst")


def test_positions_that_were_left_out_are_named(attr):
    model = loaded("BertForMaskedLM")
    subject = kn.attribute(model, attr.prompts[:2], positions="subject")
    with pytest.raises(kn.ArgumentError, match="was not attributed at 'read', and 1 other prompt likewise"):
        subject.at("read")
    assert repr(subject).startswith("PositionAttribution(2 prompts, up to")


def test_sets_found_at_a_position_do_not_depend_on_what_was_kept(attr):
    model = loaded("BertForMaskedLM")
    kept = kn.attribute(model, attr.prompts, positions="all", keep=0.1)
    for place in ("subject_last", "read"):
        assert kn.refine(kept.at(place), min_prompts=1) == kn.refine(attr.at(place), min_prompts=1)
