"""Editors beside one another: what is measured, what the controls are, and what a table of several facts leaves out."""

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.edits.comparison import active_control, random_control
from tests.edit_cases import FACTS, IRELAND, bits, random_edit, same
from tests.tiny import equal, loaded, tiny_model

UPDATES = {IRELAND: "Tokyo", FACTS[1]: "Rome", FACTS[2]: "Lima"}
SETS = {fact: kn.NeuronSet([(0, number), (1, 3), (2, 5)]) for number, fact in enumerate(FACTS)}
QUESTIONS = {"reworded": {IRELAND: kn.Question(kn.Fact("Ireland", "P36", "Dublin", ("Go to [X], see [Y]",)), "Tokyo")}}
pytestmark = pytest.mark.usefixtures("float64_throughout")


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "BertForMaskedLM"])
def test_rows_of_knowledge_neurons_are_those_of_update_effects(architecture):
    """The same edits, scored in passes of their own there and in the edited model here."""
    model = loaded(architecture)
    before, others = bits(model), kn.make_prompts(model, FACTS)
    table = kn.compare_edits(model, UPDATES, [kn.KN(neurons=SETS)], questions=QUESTIONS, others=others)
    assert same(before, bits(model))
    expected = kn.update_effects(model, UPDATES, SETS, questions=QUESTIONS, others=others)
    found, expected = (rows.query("neuron_set == 'found'").reset_index(drop=True) for rows in (table, expected))
    shared = [column for column in expected if column != "dose"]
    assert list(found["question"]) == list(expected["question"]) and "reworded" in set(found["question"])
    for column in shared:
        if expected[column].dtype == float:
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, err_msg=column)
        else:
            assert found[column].tolist() == expected[column].tolist()
    assert set(table["neuron_set"]) == {"found", "activation", "random"}
    assert (found["seconds"] > 0).all() and table.query("neuron_set != 'found'")["seconds"].isna().all()
    controlled = table.groupby("key")["norm"].agg(np.ptp)
    np.testing.assert_allclose(controlled, 0, atol=1e-12)


def test_controls_have_the_same_rows_of_change_in_other_places():
    model = loaded("GPT2LMHeadModel")
    host = kn.host_of(model)
    prompts = kn.make_prompts(model, FACTS[:2]).at("subject_last")
    activity = kn.attribute(model, prompts, method="activation").scores.abs().mean(0)
    whole = kn.NeuronSet((1, index) for index in range(host.d_mlp))
    few = kn.NeuronSet([(0, 3), (1, 0), (1, 7)])
    for neurons in (few, whole):
        edit = random_edit(model, neurons)
        change = edit.new - edit.old
        for control in (random_control(host, edit, 1), active_control(host, edit, prompts)):
            moved = control.new - control.old
            assert [neuron.layer for neuron in control.neurons] == [neuron.layer for neuron in edit.neurons]
            for layer, rows in edit.neurons.rows_by_layer(host).items():
                own = [number for number, neuron in enumerate(edit.neurons) if neuron.layer == layer]
                assert len(rows) == len(own)
                lengths = [rows_of[own].norm(dim=-1).sort().values for rows_of in (change, moved)]
                equal(*lengths)
        drawn, again = (random_control(host, edit, 1) for _ in range(2))
        assert drawn.digest == again.digest != random_control(host, edit, 2).digest
        if neurons is few:
            assert drawn.neurons.isdisjoint(few)
        active = active_control(host, edit, prompts)
        of_layer = [number for number, neuron in enumerate(active.neurons) if neuron.layer == 1]
        length = (active.new - active.old)[of_layer].norm(dim=-1)
        chosen = torch.tensor([neuron.index for neuron in active.neurons if neuron.layer == 1])
        by_activity = activity[1][chosen].argsort(descending=True)
        assert torch.equal(length[by_activity], length.sort(descending=True).values)
        assert set(chosen.tolist()) == set(activity[1].topk(len(chosen)).indices.tolist())


def test_edits_of_several_facts_are_measured_after_all_and_leave_each_other_out():
    model = loaded("GPT2LMHeadModel")
    others = kn.make_prompts(model, FACTS[:4])
    editor = kn.KN(neurons=SETS)
    table = kn.compare_edits(model, UPDATES, [editor], others=others, sizes=(1, 2), controls=False)
    counts = table.query("question == 'own wording'").groupby("n_edits").size()
    assert counts.to_dict() == {1: 3, 2: 2}  # the third fact is the rest of edits of two
    pair = dict(list(UPDATES.items())[:2])
    edit = editor.edit(model, pair)
    with edit.applied(model):
        scores = kn.measure(model, others, kn.Suppress(kn.NeuronSet([])))["before"]
    rest = [number for number in range(len(others)) if others.fact(number) not in pair]
    together = table.query("n_edits == 2 and question == 'same relation'")
    assert (together["n_prompts"] == len(rest)).all()
    expected = -np.log(scores.to_numpy()[rest]).mean()
    np.testing.assert_allclose(together["nll_after"], expected, rtol=1e-6)
    alone = table.query("n_edits == 1 and question == 'same relation'")
    assert (alone["n_prompts"] > len(rest)).all()


def test_facts_without_subjects_leave_the_others_of_their_relation_to_be_measured():
    """Complete prompts, as the released code has them, all share the empty subject."""
    model = loaded("BertForMaskedLM")
    names = (("Ireland", "Dublin"), ("Peru", "Lima"), ("Italy", "Rome"))
    facts = []
    for subject, object_ in names:
        facts.append(kn.Fact("", "P36", object_, (f"The capital of {subject} is [Y].",), subject))
    updates, others = {facts[0]: "Tokyo", facts[1]: "Rome"}, kn.make_prompts(model, facts)
    editor = kn.KN(neurons={fact: kn.NeuronSet([(0, 1)]) for fact in facts})
    table = kn.compare_edits(model, updates, [editor], others=others, sizes=(1, 2), controls=False)
    measured = table.loc[table["question"] == "same relation"].groupby("n_edits")["n_prompts"].unique()
    assert measured[1].tolist() == [2] and measured[2].tolist() == [1]  # all but the facts of the edit


def test_the_table_is_summarised_by_editor():
    model = loaded("GPT2LMHeadModel")
    editors = [kn.KN(neurons=SETS, name="second"), kn.KN(neurons=SETS, name="first", lambdas=(1, 8))]
    table = kn.edit_table(kn.compare_edits(model, UPDATES, editors, controls=False), n_resamples=5)
    assert list(dict.fromkeys(table["editor"])) == ["second", "first"] and set(table["n_edits"]) == {1}
    assert {"success", "changed", "perplexity_growth"} <= set(table["measure"])


def test_a_model_is_left_as_it_was_when_an_editor_fails():
    model = tiny_model("GPT2LMHeadModel")
    before = bits(model)

    class Failing:
        name = "failing"

        def edit(self, model, updates, **options):
            if FACTS[1] in updates:
                raise RuntimeError
            return kn.KN(neurons=SETS).edit(model, updates, **options)

    with pytest.raises(RuntimeError):
        kn.compare_edits(model, UPDATES, [Failing()])
    assert same(before, bits(model))


def test_wrong_arguments_are_told_before_any_pass():
    model = loaded("GPT2LMHeadModel")
    for arguments, message in (
        (({}, [kn.KN()]), "There are no facts to edit"),
        ((UPDATES, []), "There are no editors to compare"),
        ((UPDATES, [kn.KN(), kn.KN()]), "Two editors have the name 'KN'"),
        ((UPDATES, ["KN"]), "Got the text 'KN' as one of the editors"),
        ((UPDATES, [kn.KN]), r"as one of the editors; expected an editor, which a call makes: kn_lens\.KN\(\)"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.compare_edits(model, *arguments)
    for sizes, message in (((0,), "sizes has 0; expected numbers from 1 to 3"), ((1, 1), "each once")):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.compare_edits(model, UPDATES, [kn.KN()], sizes=sizes)


def test_fluency_is_the_entropy_of_what_the_edited_model_writes():
    """Beside a plain loop over the Hugging Face model, one subject at a time, in both models."""
    model, n_tokens = loaded("GPT2LMHeadModel"), 12
    editor = kn.KN(neurons=SETS, lambdas=(1, 8))
    table = kn.compare_edits(model, UPDATES, [editor], controls=False, n_generated=n_tokens)

    def written(subject):
        ids = model.tokenizer(subject, return_tensors="pt").input_ids
        n_before = ids.shape[1]
        for _ in range(n_tokens):
            with torch.no_grad():
                logits = model.original_model(ids).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        return ids[0, n_before:].tolist()

    def entropy(tokens):
        total = 0.0
        for n, weight in ((2, 1 / 3), (3, 2 / 3)):
            grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
            shares = [grams.count(gram) / len(grams) for gram in set(grams)]
            total -= weight * sum(share * np.log2(share) for share in shares)
        return total

    for fact, new_object in UPDATES.items():
        row = table.loc[(table["key"] == fact.key) & (table["question"] == "own wording")].iloc[0]
        assert row["fluency_before"] == pytest.approx(entropy(written(fact.subject)))
        with editor.edit(model, {fact: new_object}).applied(model):
            assert row["fluency"] == pytest.approx(entropy(written(fact.subject)))
    summary = kn.edit_table(table, n_resamples=5).set_index("measure")
    assert summary.loc["fluency", "value"] == pytest.approx(table["fluency"].mean())
    assert kn.compare_edits(model, UPDATES, [editor], controls=False)["fluency"].isna().all()
    for n, message in ((2, "a number from 3"), (10**6, "reads at most")):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.compare_edits(model, UPDATES, [editor], n_generated=n)
    with pytest.raises(kn.UnsupportedModelError, match=r"Fluency: .* is a masked model"):
        kn.compare_edits(loaded("BertForMaskedLM"), UPDATES, [kn.KN(neurons=SETS)], n_generated=5)


def test_a_refused_edit_counts_as_no_change_where_asked():
    """KN refuses the second fact; its rows and those of its controls are those of the unedited model."""
    model = loaded("GPT2LMHeadModel")
    sets = {**SETS, FACTS[1]: kn.NeuronSet([])}
    editor = kn.KN(neurons=sets)
    others = kn.make_prompts(model, FACTS)
    with pytest.raises(kn.EditError, match="changes nothing for"):
        kn.compare_edits(model, UPDATES, [editor])
    table = kn.compare_edits(model, UPDATES, [editor], others=others, refused="unchanged")
    refused = table["key"] == FACTS[1].key
    assert (
        table.loc[refused, "why"].str.contains("changes nothing for").all() and (table.loc[~refused, "why"] == "").all()
    )
    for measure in ("right", "nll", "new_right", "new_nll"):
        before, after = (table.loc[refused, f"{measure}_{when}"] for when in ("before", "after"))
        np.testing.assert_allclose(before, after, rtol=1e-12)
    assert (table.loc[refused, ["n_neurons", "norm", "edit_bytes", "disturbed"]].fillna(0) == 0).all(axis=None)
    assert set(table.loc[refused, "neuron_set"]) == {"found", "activation", "random"}
    rows = table.loc[~refused]
    assert (rows["edit_bytes"] == rows["n_neurons"] * model.cfg.d_model * 2 * 8).all()  # old and new, in float64
    with pytest.raises(kn.ArgumentError, match=r"refused='unchange'; .* Did you mean 'unchanged'"):
        kn.compare_edits(model, UPDATES, [editor], refused="unchange")
