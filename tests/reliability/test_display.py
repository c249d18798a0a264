"""What values show in a console and in a notebook: never more than 30 lines, whatever their size."""

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.interventions import Effect
from kn_lens.neurons import Refined, SetsByFact
from kn_lens.reports import Comparison
from tests.edit_cases import FACTS, random_edit
from tests.tiny import D_MLP, N_LAYERS, loaded

N = 500
MANY_FACTS = [kn.Fact(f"subject {i} <b>", f"P{i % 40}", "object", relation_label=f"label {i % 40}") for i in range(N)]
EVERY_NEURON = kn.NeuronSet((layer, index) for layer in range(N_LAYERS) for index in range(D_MLP))


def effect(n):
    column = np.linspace(0, 1, n)
    texts = [f"In a sentence with many words about the subject {i} <b> stands [MASK]." for i in range(n)]
    columns = {"relation": "P36", "subject": "subject", "object": "object", "text": texts, "before": column}
    columns |= {"after": column / 2, "change": -column / 2, "log_prob_before": column, "log_prob_after": column}
    return Effect({**columns, "rank_before": 0, "rank_after": 1, "top_before": "Dublin", "top_after": "Cork"})


def long_edit():
    model = loaded("BertForMaskedLM")
    edit = kn.erase_neurons(model, EVERY_NEURON)
    for _ in range(40):
        edit = edit.scaled(1.0)
    return edit


VALUES = {
    "FactSet": lambda: kn.FactSet(MANY_FACTS),
    "NeuronSet": lambda: EVERY_NEURON,
    "SetsByFact": lambda: SetsByFact(dict.fromkeys(MANY_FACTS, EVERY_NEURON)),
    "Refined": lambda: Refined(dict.fromkeys(MANY_FACTS, EVERY_NEURON), {FACTS[0]: 1}, {}),
    "Effect": lambda: effect(N),
    "WeightEdit": long_edit,
    "Suppress": lambda: kn.Suppress(EVERY_NEURON),
    "Amplify": lambda: kn.Amplify(dict.fromkeys(MANY_FACTS, EVERY_NEURON)),
    "SetTo": lambda: kn.SetTo([EVERY_NEURON] * N, torch.zeros(N, N_LAYERS, D_MLP)),
}
INTERVENTIONS = ("Suppress", "Amplify", "SetTo")


@pytest.mark.parametrize("name", VALUES)
def test_a_large_value_has_a_short_line_and_a_short_table(name):
    value = VALUES[name]()
    assert repr(value).startswith(name) and "\n" not in repr(value) and len(repr(value)) < 400
    assert str(value).count("\n") < 15
    if name not in INTERVENTIONS:
        html = value._repr_html_()
        assert html.count("\n") < 30 and html.count("<tr>") <= 11 and len(html) < 8000
        assert "<b>" not in html and " more<" in html


def test_an_intervention_names_its_neurons_and_its_numbers():
    neurons = kn.NeuronSet(["L0N1"])
    assert repr(kn.Suppress("L0N1")) == "Suppress(NeuronSet(['L0N1']))"
    assert repr(kn.Amplify({FACTS[0]: neurons}, 3.0)) == "Amplify(sets of 1 fact, factor=3.0)"
    values = torch.zeros(2, N_LAYERS, D_MLP)
    assert f"SetTo(sets of 2 prompts, value=tensor of shape {list(values.shape)}, position=all)" == repr(
        kn.SetTo([neurons, neurons], values, position="all")
    )


def test_a_comparison_counts_its_runs_and_rows():
    table = pd.DataFrame({"value": range(N)})
    names = [field.name for field in fields(Comparison)]
    comparison = Comparison(**{**dict.fromkeys(names, table), "notes": ()})
    assert repr(comparison).startswith("Comparison(500 runs; rows of its tables: runs (500), values (500), ")
    assert "\n" not in repr(comparison) and len(repr(comparison)) < 300


def test_refined_sets_say_how_many_neurons_facts_have_and_how_many_are_left_out():
    sets = {MANY_FACTS[0]: EVERY_NEURON, MANY_FACTS[1]: kn.NeuronSet(["L1N2"])}
    refined = Refined(sets, {FACTS[0]: 1}, {})
    assert repr(refined) == f"Refined(2 facts, 1 to {len(EVERY_NEURON)} neurons each, 1 left out)"
    assert "<td>L1N2</td>" in refined._repr_html_() and "label 1 (P1)" in refined._repr_html_()
    assert repr(Refined({}, {}, {})) == "Refined(0 facts)" and Refined({}, {}, {})._repr_html_()
    assert refined == sets


def test_an_effect_says_the_mean_and_prints_its_first_rows():
    value = effect(N)
    line = "Effect(500 prompts: mean probability of the answer 0.5 before, 0.25 after (-0.25))"
    assert repr(value) == line
    printed = str(value)
    assert "top_after" in printed and "In a sentence" in printed and "log_prob" not in printed
    assert repr(value.head()).startswith("Effect(5 prompts: ") and isinstance(value.head(), Effect)
    # Parts without the columns of a measurement are shown by pandas.
    part = value[["text", "before"]]
    assert repr(part) == str(part) and repr(part).count("\n") > 5
    assert part._repr_html_().startswith("<div>")
    assert repr(value.iloc[:0]).startswith("Empty")


def test_an_edit_shows_its_first_steps_and_the_change_of_its_rows():
    edit = random_edit(loaded("BertForMaskedLM"))
    html = edit._repr_html_()
    lengths = (edit.new - edit.old).norm(dim=-1)
    for neuron, length in zip(edit.neurons, lengths, strict=True):
        assert f"<tr><td>{neuron}</td>" in html and f"<td>{float(length):.3g}</td></tr>" in html
    long = edit
    for _ in range(5):
        long = long.scaled(1.0)
    assert "+ 3 more'" in repr(long) or "more" in repr(long)
    assert torch.equal(long.old, edit.old)
