"""What is refused before the model runs, with the cure, and what may be given in more than one way."""

import json

import pytest
import torch

import kn_lens as kn
from kn_lens.circuits import HeadNode, NeuronNode, PromptPairs
from tests import tiny
from tests.circuits.conftest import made_pairs
from tests.prompts_of_tokens import batch_of

FACTS = [
    kn.Fact(country, "P36", capital, ("The capital of [X] is [Y].",))
    for country, capital in list(tiny.COUNTRIES.items())[:4]
]


@pytest.fixture(scope="module")
def model():
    return tiny.loaded("GPT2LMHeadModel")


@pytest.fixture(scope="module")
def scores(model):
    return kn.circuit_scores(model, made_pairs())


@pytest.fixture
def no_passes(model, monkeypatch):
    """Fail where the model runs."""

    def run(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(model.original_model), "forward", run)


def test_pairs_are_of_facts_alone(model):
    for facts, others in ((3, None), (None, None), ("Ireland", None), (FACTS, 3), (FACTS, [3])):
        with pytest.raises(kn.ArgumentError, match="Fact"):
            kn.counterfactual_pairs(model, facts, others=others)


def test_pairs_are_chosen_as_prompts_are(model):
    pairs = kn.counterfactual_pairs(model, FACTS)
    assert len(pairs[1:3]) == 2 and len(pairs[0]) == len(pairs[[3]]) == 1
    assert pairs[FACTS[2]].clean.text == pairs.select([2]).clean.text == pairs[2].clean.text
    assert torch.equal(pairs[-1].counterfactual.tokens, pairs.select([3]).counterfactual.tokens)
    for chosen, message in ((0, r"as pairs\[...\]"), ("ab", "list of numbers"), (FACTS[0], "list of numbers")):
        with pytest.raises(kn.ArgumentError, match=message):
            pairs.select(chosen)
    with pytest.raises(IndexError, match="no prompt 9"):
        pairs[9]


def test_nodes_are_named_or_given(scores):
    assert scores[0, "L1N3@4"] == scores[0, NeuronNode(1, 3, 4)] and scores[1, "L0H1@2"] == scores[1, HeadNode(0, 1, 2)]
    for key, message in ((0, r"scores\[0, 'L9N1234@4'\]"), ((0, 3), "a node or its name"), ((0, "N3"), "not the name")):
        with pytest.raises(kn.ArgumentError, match=message):
            scores[key]
    with pytest.raises(IndexError, match="no row 2; there are 0 to 1"):
        scores[2, "L1N3@4"]


@pytest.mark.parametrize("options", [{"k": -1}, {"k": 1.5}, {"by": "size"}, {"row": FACTS[0]}, {"row": True}])
def test_the_largest_scores_are_of_a_row_and_a_number(scores, options):
    with pytest.raises(kn.ArgumentError, match=f"{next(iter(options))}(=| as |;)|as row"):
        scores.top(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": None}, "kinds=None; expected 'neuron', 'head', or both"),
        ({"kinds": 3}, "kinds=3"),
        ({"kinds": "neurons"}, "Did you mean 'neuron'"),
        ({"n_steps": 0}, "n_steps=0; expected a whole number from 1"),
        ({"method": "eap"}, "Did you mean 'eap_ig'"),
        ({"scores": 3}, "as scores; expected CircuitScores"),
        ({"selection": None}, "selection=None"),
    ],
)
@pytest.mark.usefixtures("no_passes")
def test_searches_are_refused_before_a_pass(model, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.find_circuits(model, made_pairs(), edges=True, **options)


@pytest.mark.usefixtures("no_passes")
def test_scores_have_their_own_method(model, scores):
    with pytest.raises(kn.ArgumentError, match="beside scores=, which were computed by 'eap_ig'"):
        kn.find_circuits(model, scores.pairs, scores=scores, method="attribution_patching")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": 5}, "sizes=5; expected numbers of nodes"),
        ({"sizes": [1.5]}, "sizes=1.5; expected a whole number from 0"),
        ({"sizes": [10**6]}, "of which the pairs have 390"),
        ({"seed": None}, "seed=None"),
        ({"circuits": "L0H1"}, "Got 0 circuits for 2 pairs"),
        ({"circuits": kn.Circuit(["L0N1@7"])}, "has 5 tokens; expected positions from 0 to 4"),
        ({"circuits": kn.Circuit(["L9N1@1"])}, "There is no L9N1@1"),
    ],
)
@pytest.mark.usefixtures("no_passes")
def test_measurements_are_refused_before_a_pass(model, scores, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.faithfulness(model, scores, reference="mean", **options)


def test_measurements_are_of_the_model_of_the_scores(scores):
    masked = kn.counterfactual_pairs(tiny.loaded("BertForMaskedLM"), FACTS)
    of_masked = kn.circuit_scores(tiny.loaded("BertForMaskedLM"), masked)
    with pytest.raises(kn.ArgumentError, match="made for a masked model"):
        kn.faithfulness(tiny.loaded("GPT2LMHeadModel"), of_masked)


def test_sizes_are_measured_once(model, scores):
    trials = kn.faithfulness(model, scores, sizes=[5, 5, 10**6], controls=False).trials
    assert trials["size"].tolist() == [5, 5] and trials["pair"].tolist() == [0, 1]
    with pytest.raises(kn.ArgumentError, match="n_resamples=0"):
        kn.faithfulness(model, scores, sizes=[5]).curve(n_resamples=0)


def test_a_node_at_all_positions_and_at_one_counts_once(model, scores):
    both, every = kn.Circuit(["L1N3", "L1N3@4"]), kn.Circuit(["L1N3"])
    trials = [kn.faithfulness(model, scores, circuit, controls=False).trials for circuit in (both, every)]
    assert trials[0]["size"].tolist() == [5, 5]
    assert trials[0].equals(trials[1])


def test_a_circuit_of_longer_prompts_is_refused_in_shorter_ones(model):
    short, long = made_pairs(1, 3, subject=slice(1, 2)), made_pairs(1, 5)
    sides = {}
    for name in ("clean", "counterfactual"):
        prompts = [getattr(short, name), getattr(long, name)]
        tokens = torch.zeros(2, 5, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, one in enumerate(prompts):
            tokens[row, : one.tokens.shape[1]] = one.tokens
            mask[row, : one.tokens.shape[1]] = 1
        contrast = torch.cat([one.contrast_ids for one in prompts]) if name == "clean" else None
        sides[name] = kn.PromptBatch.from_tokens(
            tokens,
            attention_mask=mask,
            read_pos=torch.tensor([2, 4]),
            target_ids=torch.cat([one.target_ids for one in prompts]),
            contrast_ids=contrast,
        )
    of_both = kn.circuit_scores(model, PromptPairs(**sides, left_out={}))
    with pytest.raises(kn.ArgumentError, match="'tokens 0' has 3 tokens"):
        kn.faithfulness(model, of_both, kn.Circuit(["L1N3@4"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": torch.ones(8)}, "expected one for a HeadNode"),
        ({"target": HeadNode(1, 1, 3), "direction": "v"}, "as direction; expected a vector"),
        ({"target": HeadNode(1, 1, 3), "direction": torch.ones(3)}, r"shape \[3\]; expected \[8\]"),
        ({"input": "key"}, "The answer has no input 'key'"),
    ],
)
def test_inputs_and_directions_belong_to_their_target(model, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.direct_effects(model, batch_of(torch.tensor([[5, 16, 27, 38, 9]])), **options)


def test_edges_lead_upwards_from_node_to_node():
    head, neuron = HeadNode(1, 0, 2), NeuronNode(1, 3, 2)
    assert str(kn.Edge(head, neuron, "key")) == "L1H0@2 -> L1N3@2 (key)"
    for source, target, input in ((neuron, head, "v"), (neuron, neuron, "key"), (head, HeadNode(1, 1, 3), "v")):
        with pytest.raises(kn.ArgumentError, match="does not read what"):
            kn.Edge(source, target, input)
    for source, target in (("L0N1@1", neuron), (neuron, "answer")):
        with pytest.raises(kn.ArgumentError, match=r"as (source|target); expected a NeuronNode"):
            kn.Edge(source, target, "key")
    with pytest.raises(kn.ArgumentError, match="position=False"):
        NeuronNode(0, 1, False)


def test_circuits_are_made_of_nodes_names_and_neurons(tmp_path):
    circuit = kn.Circuit(kn.NeuronSet(["L0N1", "L2N3"]))
    assert circuit == kn.Circuit(["L0N1", "L2N3"]) and "L2N3" in circuit and "L2N3@1" not in circuit
    assert circuit & ["L0N1"] == kn.Circuit(["L0N1"])
    for nodes in ("L0N1@2", None, 3, [(0, 1)]):
        with pytest.raises(kn.ArgumentError, match=r"nodes or their names: Circuit\(\['L2N7@4'"):
            kn.Circuit(nodes)
    path = tmp_path / "circuit.json"
    with pytest.raises(kn.ArgumentError, match="The circuit's meta cannot be written"):
        kn.Circuit(["L0N1"], meta={"logits": torch.zeros(1)}).save(path)
    assert not path.exists()
    circuit.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "nodes": []}), encoding="utf-8")
    with pytest.raises(kn.DataError, match="is no circuit of kn_lens"):
        kn.Circuit.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": None}, "values=None; expected 'attention', 'mlp', or both"),
        ({"values": "heads"}, "values='heads'"),
        ({"n_values": 0}, "n_values=0; expected a whole number from 1"),
        ({"weighting": "gains"}, "Did you mean 'gain'"),
    ],
)
def test_query_neurons_are_refused_before_a_pass(model, no_passes, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.query_neurons(model, batch_of(torch.tensor([[5, 16, 27, 38, 9]])), **options)


def test_a_kind_that_is_named_twice_counts_once(model):
    prompts = batch_of(torch.tensor([[5, 16, 27, 38, 9]]))
    (once,), (twice,) = (
        kn.query_neurons(model, prompts, values=kinds, n_values=6) for kinds in ("mlp", ("mlp", "mlp"))
    )
    assert twice.values == once.values and len(once.values) == 6
    assert once.top(0) == {} and list(once.to_frame(0)) == ["node", "layer", "index", "position", "score"]
    with pytest.raises(kn.ArgumentError, match="k=-1"):
        once.top(-1)
