"""Names such as ``L2N7`` in every argument that takes neurons: the same results as with a ``NeuronSet``."""

import json

import pytest
import torch

import kn_lens as kn
from tests.edit_cases import FACTS, IRELAND, NEURONS
from tests.tiny import D_MODEL, loaded

NAMES = [str(neuron) for neuron in NEURONS]
MIXED = [NAMES[0], tuple(NEURONS[1]), NEURONS[2], NAMES[3]]


@pytest.fixture(scope="module")
def model():
    return loaded("BertForMaskedLM")


@pytest.fixture(scope="module")
def prompts(model):
    return kn.make_prompts(model, FACTS[:2])


ROWS = torch.ones(len(NEURONS), D_MODEL)
CALLS = {
    "Suppress": lambda model, prompts, neurons: kn.measure(model, prompts, kn.Suppress(neurons)).after.tolist(),
    "Amplify": lambda model, prompts, neurons: kn.measure(model, prompts, kn.Amplify(neurons)).after.tolist(),
    "SetTo": lambda model, prompts, neurons: kn.measure(model, prompts, kn.SetTo(neurons, 1.0)).after.tolist(),
    "attribute": lambda model, prompts, neurons: (
        kn.attribute(model, prompts, method="ablation", neurons=neurons).scores.nan_to_num(-9).tolist()
    ),
    "random_neurons": lambda model, prompts, neurons: kn.random_neurons(neurons, model, seed=1),
    "erase_neurons": lambda model, prompts, neurons: kn.erase_neurons(model, neurons).digest,
    "WeightEdit.of": lambda model, prompts, neurons: kn.WeightEdit.of(model, neurons, ROWS).digest,
    "update_fact": lambda model, prompts, neurons: (
        kn.update_fact(model, IRELAND, "Tokyo", neurons, allow_unknown=True).digest
    ),
    "restricted_to": lambda model, prompts, neurons: (
        kn.WeightEdit.of(model, NEURONS | ["L1N9"], torch.ones(len(NEURONS) + 1, D_MODEL)).restricted_to(neurons).digest
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("neurons", [NAMES, MIXED], ids=["names", "mixed"])
def test_names_and_pairs_give_what_the_set_gives(call, neurons, model, prompts):
    compute = CALLS[call]
    assert compute(model, prompts, neurons) == compute(model, prompts, NEURONS)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "WeightEdit.of"])
def test_one_name_gives_what_the_set_of_it_gives(call, model, prompts):
    compute = CALLS[call]
    assert compute(model, prompts, NAMES[0]) == compute(model, prompts, NEURONS[:1])


def test_a_file_may_hold_names_beside_pairs(tmp_path):
    path = tmp_path / "neurons.json"
    path.write_text(json.dumps({"P36/Ireland/Dublin": MIXED, "P36/Kenya/Nairobi": []}))
    assert kn.NeuronSet.read_many(path) == {"P36/Ireland/Dublin": NEURONS, "P36/Kenya/Nairobi": kn.NeuronSet()}
    path.write_text(json.dumps([NAMES, []]))
    assert list(kn.NeuronSet.read_many(path).values()) == [NEURONS, kn.NeuronSet()]
    path.write_text(json.dumps({"P36/Ireland/Dublin": ["L2"]}))
    with pytest.raises(kn.DataError, match="two whole numbers from 0, or a name: 'L9N1234'"):
        kn.NeuronSet.read_many(path)
