import pytest
import torch

import kn_lens as kn
from kn_lens.circuits.ablation import Ablation, References
from kn_lens.circuits.nodes import AnswerNode, Edge, NeuronNode
from kn_lens.circuits.orders import is_node, order_by
from kn_lens.circuits.scores import path_gradients, path_rule
from kn_lens.hosts import Budget, host_of
from tests import tiny
from tests.circuits.conftest import made_pairs
from tests.circuits.hf_components import HFComponents


@pytest.mark.parametrize("selection", ["threshold", "greedy"])
@pytest.mark.parametrize("kinds", ["neuron", ("neuron", "head")])
def test_circuits_keep_the_share(selection, kinds, pairs):
    model = tiny.loaded("LlamaForCausalLM")
    circuits = kn.find_circuits(model, pairs, share=0.7, selection=selection, kinds=kinds)
    scores = kn.circuit_scores(model, pairs)
    measured = kn.faithfulness(model, scores, circuits, kinds=kinds, controls=False).trials
    for row, circuit in enumerate(circuits):
        assert 0 < len(circuit) < circuit.meta["n_nodes"]
        assert kinds != "neuron" or circuit.n_heads == 0
        assert circuit.meta["faithfulness"] >= 0.7
        assert measured["faithfulness"][row] == pytest.approx(circuit.meta["faithfulness"], abs=1e-6)
        for node in circuit:
            assert circuit.scores[node] == pytest.approx(scores[row, node], abs=1e-9)


@pytest.mark.parametrize("by", ["score", "magnitude"])
def test_threshold_takes_the_largest_scores_and_one_less_does_not_do(by, pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    scores = kn.circuit_scores(model, pairs)
    for row, circuit in enumerate(kn.find_circuits(model, pairs, share=0.6, scores=scores, by=by)):
        assert set(circuit) == set(scores.top(row, len(circuit), by=by))
        smaller = kn.faithfulness(model, scores, sizes=[len(circuit) - 1], by=by, controls=False).trials
        assert smaller["faithfulness"][row] < 0.6


def test_circuits_do_not_depend_on_memory_or_on_the_other_pairs():
    model = tiny.loaded("LlamaForCausalLM")
    four = made_pairs(n_pairs=4)
    small = four.select([3, 1])  # pairs of small circuits
    for pairs, options in (
        (four, {}),
        (small, {"edges": True}),
        (small, {"selection": "greedy", "kinds": "head"}),
    ):
        whole = kn.find_circuits(model, pairs, share=0.5, **options)
        one_by_one = kn.find_circuits(model, pairs, share=0.5, memory_budget=1.0, **options)
        backwards = kn.find_circuits(model, pairs[::-1], share=0.5, **options)
        assert whole == one_by_one == backwards[::-1]
        assert [set(circuit.edges) for circuit in whole] == [set(circuit.edges) for circuit in one_by_one]


def test_greedy_rounds_never_take_more_nodes_than_all():
    model = tiny.loaded("GPT2LMHeadModel")
    pairs = made_pairs(n_pairs=1, n_pos=3, subject=slice(1, 2))
    (circuit,) = kn.find_circuits(model, pairs, share=1.0, selection="greedy", kinds="head")
    assert len(circuit) <= circuit.meta["n_nodes"] == 3 * 2 * 3


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "BertForMaskedLM"])
def test_gains_are_slopes_beside_the_circuit(architecture, pairs):
    """Move one node outside the circuit a little from its reference, by a second order of TransformerLens' hooks."""
    model = tiny.loaded(architecture)
    host = host_of(model)
    scores = kn.circuit_scores(model, pairs)
    order = order_by(scores.values, is_node(scores, ("neuron", "head")))
    references = References(host, pairs, "counterfactual", Budget.of(host, None)).of(pairs)
    ablation = Ablation(host=host, pairs=pairs, references=references, orders=[order], rows_per_pass=1)
    size = 20
    gains = ablation.gains(0, torch.tensor([size, size]))
    assert float(gains[order < size].abs().max()) == 0
    row = 0
    outside = (order[row, 1, 4, : scores.n_neurons] >= size).nonzero().flatten()
    node = NeuronNode(1, int(outside[0]), 4)
    place = (row, *scores.place(node))

    def moved(step):
        hooks = []
        for layer in range(tiny.N_LAYERS):

            def set_post(value, hook, layer=layer):
                kept = (order[row, layer] < size)[..., : scores.n_neurons]
                set_to = torch.where(kept, value, references.neurons[layer][row])
                if layer == node.layer:
                    reference = references.neurons[layer][row, node.position, node.index]
                    change = value[0, node.position, node.index].detach() - reference
                    set_to[0, node.position, node.index] = reference + step * change
                return set_to

            def set_z(value, hook, layer=layer):
                kept = (order[row, layer] < size)[..., scores.n_neurons :]
                return torch.where(kept[..., None], value, references.heads[layer][row])

            hooks += [(f"blocks.{layer}.attn.hook_z", set_z), (f"blocks.{layer}.mlp.hook_post", set_post)]
        with torch.no_grad():
            logits = model.run_with_hooks(pairs.clean.tokens[[row]], fwd_hooks=hooks)[0, 4]
        return float(logits[pairs.clean.target_ids[row]] - logits[pairs.clean.contrast_ids[row]])

    slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
    assert float(gains[place]) == pytest.approx(slope, abs=1e-6)


def test_edges_are_direct_effects_times_the_gradient_of_their_target():
    model = tiny.loaded("GPT2LMHeadModel")
    pairs = made_pairs(n_pairs=1)
    (circuit,) = kn.find_circuits(model, pairs, share=0.9, by="magnitude", edges=True, n_steps=3)
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean.tokens)
        _, other = model.run_with_cache(pairs.counterfactual.tokens)

    def activations(node, cache):
        name = "mlp.hook_post" if isinstance(node, NeuronNode) else "attn.hook_z"
        number = node.index if isinstance(node, NeuronNode) else node.head
        return cache[f"blocks.{node.layer}.{name}"][0, node.position, number]

    to_answer = kn.direct_effects(model, pairs.clean)
    scores = kn.circuit_scores(model, pairs, n_steps=3)
    n_answer = n_keys = 0
    for edge, weight in circuit.edges.items():
        if not isinstance(edge.source, NeuronNode):
            continue
        activation = activations(edge.source, clean)
        share = float((activation - activations(edge.source, other)) / activation)
        if edge.target == AnswerNode():
            assert weight == pytest.approx(to_answer[0, edge.source] * share, abs=1e-8)
            n_answer += 1
        elif isinstance(edge.target, NeuronNode) and n_keys < 8:
            target = edge.target
            on_key = kn.direct_effects(model, pairs.clean, target)[0, edge.source] * share
            key = clean[f"blocks.{target.layer}.mlp.hook_pre"][0, target.position, target.index].clone()
            with torch.enable_grad():
                key.requires_grad_()
                post = model.original_model.transformer.h[target.layer].mlp.act(key)
                slope = torch.autograd.grad(post, key)[0]
            moved = activations(target, clean) - activations(target, other)
            gradient = scores[0, target] / float(moved)
            assert weight == pytest.approx(float(on_key * slope * gradient), abs=1e-7)
            n_keys += 1
    assert n_answer > 3 and n_keys > 3
    assert all(isinstance(edge, Edge) for edge in circuit.edges)


def test_value_edges_are_what_an_intervention_moves_through_the_held_pattern():
    architecture = "GPT2LMHeadModel"
    model, pairs = tiny.loaded(architecture), made_pairs(n_pairs=1)
    reference = HFComponents(model=tiny.tiny_hf_model(architecture), architecture=architecture, n_layers=tiny.N_LAYERS)
    (circuit,) = kn.find_circuits(model, pairs, share=0.97, by="magnitude", edges=True, n_steps=3)
    path = path_gradients(host_of(model), pairs, *path_rule("eap_ig", 3))
    tokens = pairs.clean.tokens
    with torch.no_grad():
        _, clean = model.run_with_cache(tokens)
        _, other = model.run_with_cache(pairs.counterfactual.tokens)

    def values(layer, change):
        found, _ = reference.held(tokens, change)
        joint = found[reference.model.transformer.h[layer].attn.c_attn, "out"][0]
        return joint[:, -tiny.D_MODEL :].unflatten(-1, (2, -1))

    edges = [edge for edge in circuit.edges if edge.input == "v" and isinstance(edge.source, NeuronNode)][:6]
    assert len(edges) == 6
    for edge in edges:
        source, target = edge.source, edge.target

        def swap(layer, name, value, source=source):
            if (layer, name) == (source.layer, "mlp_out"):
                swapped = other[f"blocks.{layer}.mlp.hook_post"][0, source.position, source.index]
                value[0, source.position, source.index] = swapped
            return value

        moved = values(target.layer, lambda layer, name, value: value) - values(target.layer, swap)
        pattern = clean[f"blocks.{target.layer}.attn.hook_pattern"][0, target.head, target.position]
        gradient = path.gradients.heads[target.layer][0, target.position, target.head]
        measured = float(pattern @ moved[:, target.head] @ gradient)
        assert circuit.edges[edge] == pytest.approx(measured, abs=1e-9)


def test_the_constructed_models_give_the_known_answer():
    """Facts in the MLPs at the read position: neurons there make up the circuit, and do not where trained plainly."""
    at_read, sizes = {}, {}
    for name in ("world-gpt2", "world-bert", "world-bert-plain"):
        model = kn.load_model(name)
        facts = kn.FactSet.world().of("P36")[:40:2]
        pairs = kn.counterfactual_pairs(model, facts, known=True)
        pairs = pairs.select(range(0, len(pairs), len(pairs) // 12))
        circuits = kn.find_circuits(model, pairs, kinds="neuron")
        shares = []
        for row, circuit in enumerate(circuits):
            there = [node for node in circuit if node.position == int(pairs.clean.read_pos[row])]
            shares.append(len(there) / len(circuit))
        at_read[name] = sum(shares) / len(shares)
        sizes[name] = sorted(map(len, circuits))[len(circuits) // 2]
    assert at_read["world-gpt2"] > 0.9
    assert at_read["world-bert"] > 0.6
    assert at_read["world-bert-plain"] < 0.45
    assert max(sizes.values()) < 100


def test_arguments_are_checked(pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    for options, message in (
        ({"selection": "greed"}, "Did you mean 'greedy'"),
        ({"share": 80}, "share"),
        ({"by": "magnitudes"}, "Did you mean 'magnitude'"),
        ({"scores": kn.circuit_scores(model, made_pairs(1))}, "of other pairs"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.find_circuits(model, pairs, **options)
