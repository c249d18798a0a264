"""Models whose layers have experts: each family beside transformers' own model, through the real loading code.

The oracles are plain: PyTorch's hooks on the Hugging Face model hold its routing and silence its layers, and scores are
gradients with respect to its weights.
"""

import json
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.quadrature import fixed_rule
from tests.experts import (
    BIASED,
    FAMILIES,
    N_LAYERS,
    ROUGH_ROUTERS,
    answer_probability,
    both,
    expert_prompts,
    plain,
    routing_held,
    silenced,
    tiny_experts,
    value_weights,
)
from tests.tiny import equal, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("float64_throughout")


@pytest.fixture(params=FAMILIES)
def architecture(request):
    return request.param


@pytest.fixture
def pair(architecture):
    """The model of kn_lens, and that of transformers."""
    return both(architecture)


@cache
def attributed(architecture):
    """The scores of prompts of six tokens, for tests that read them."""
    return kn.attribute(both(architecture)[0], expert_prompts(6))


def test_logits_are_those_of_transformers(pair, architecture):
    model, reference = pair
    tolerance = 1e-6 if architecture in ROUGH_ROUTERS else 1e-10
    host = kn.host_of(model)
    assert host.layout.has_experts and host.expert_layers.keys() <= set(range(N_LAYERS))
    prompts = expert_prompts(9)
    mask = prompts.attention_mask.clone()
    mask[1, 4:] = 0
    logits = host.logits(prompts.tokens, mask)
    with torch.no_grad():
        equal(logits[0], reference(prompts.tokens[:1]).logits[0], tolerance)
        equal(logits[1, :4], reference(prompts.tokens[1:2, :4]).logits[0], tolerance)


def test_scores_are_gradients_with_respect_to_the_value_rows(pair, architecture):
    """With all rows W_i of a layer scaled by alpha, dP/dW_i = w_i g(alpha): their product with W_i is the score's."""
    model, reference = pair
    prompts = expert_prompts(1)  # of one token, so that no other position reads the rows
    attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=3)
    points = fixed_rule("gauss-legendre", 3)
    for layer in range(N_LAYERS):
        weights = value_weights(reference, layer)
        for row in range(len(prompts)):
            prompt = prompts.select([row])
            scores = [torch.zeros_like(weight) for _, weight, _ in weights]
            with routing_held(reference, prompt, layer):
                for alpha, share in zip(points.nodes, points.weights, strict=True):
                    originals = [weight.data for _, weight, _ in weights]
                    for _, weight, _ in weights:
                        weight.data = alpha * weight.data
                    probability = answer_probability(reference, prompt)[0]
                    gradients = torch.autograd.grad(probability, [weight for _, weight, _ in weights])
                    for (_, weight, _), original in zip(weights, originals, strict=True):
                        weight.data = original
                    for score, gradient, original in zip(scores, gradients, originals, strict=True):
                        score += share * gradient * original
            for (kind, _, rows_last), score in zip(weights, scores, strict=True):
                by_neuron = score.detach().sum(-2 if rows_last else -1)
                for place in np.ndindex(*by_neuron.shape):
                    expert = {"one": None, "shared": "shared", "experts": place[0]}[kind]
                    found = attr.scores_of([kn.Neuron(layer, place[-1], expert)])[row, 0]
                    equal(found, by_neuron[place], 1e-6 if architecture in ROUGH_ROUTERS else 1e-9)


def test_held_part_and_routing_term_are_the_effect_of_silencing_a_layer(pair):
    model, reference = pair
    prompts = expert_prompts(6)
    attr = kn.attribute(model, prompts, tolerance=1e-6)
    assert attr.converged.all() and attr.completeness_gap.abs().max() < 1e-6
    with torch.no_grad():
        clean = answer_probability(reference, prompts)
        for layer in range(N_LAYERS):
            with silenced(reference, layer, 5):
                free = answer_probability(reference, prompts)
            with routing_held(reference, prompts, layer), silenced(reference, layer, 5):
                held = answer_probability(reference, prompts)
            equal(attr.expected[:, layer], clean - held)
            equal(attr.expected[:, layer] + attr.routing_term[:, layer], clean - free)
    assert (attr.routing_term[:, -1] == 0).all() and (attr.routing_term[:, :-1] != 0).any()


def test_positions_before_the_last_are_read_with_routing_held_everywhere_after_them(pair):
    model, _ = pair
    prompts = expert_prompts(6)
    prompts = kn.PromptBatch.from_tokens(prompts.tokens, read_pos=prompts.read_pos - 2, target_ids=prompts.target_ids)
    attr = kn.attribute(model, prompts, tolerance=1e-4)
    assert attr.converged.all()


def test_only_scores_of_experts_that_are_on_are_stored(pair, architecture):
    host, attr = kn.host_of(pair[0]), attributed(architecture)
    for layer in range(N_LAYERS):
        n_stored = torch.bincount(attr.scores.indices()[0, attr.scores.indices()[1] == layer])
        expert_layer = host.expert_layers.get(layer)
        n_expected = host.layout.layers[layer].n_rows if expert_layer is None else expert_layer.d_active
        assert (n_stored == n_expected).all()


def test_ablation_is_measured_suppression_where_no_router_follows(pair):
    model, _ = pair
    prompts = expert_prompts(6)
    attr = kn.attribute(model, prompts, layers=[N_LAYERS - 1])
    neurons = kn.NeuronSet(attr.top(3)["neuron"])
    scores = kn.attribute(model, prompts, method="ablation", neurons=neurons).scores_of(neurons)
    single = kn.attribute(model, prompts, method="single_path", neurons=neurons, tolerance=1e-8).scores_of(neurons)
    torch.testing.assert_close(single, scores, rtol=0, atol=1e-8)
    for number, neuron in enumerate(neurons):
        change = kn.measure(model, prompts, kn.Suppress(neuron)).change
        assert change.to_numpy() == pytest.approx(-scores[:, number].numpy(), abs=1e-12)


def test_neurons_of_experts_that_a_token_is_not_routed_to_have_no_effect(pair):
    model, _ = pair
    prompts = expert_prompts(6)
    attr = kn.attribute(model, prompts[:1], layers=[N_LAYERS - 1])
    on = {kn.Neuron(name).expert for name in attr.to_frame()["neuron"]}
    off = next(expert for expert in range(4) if expert not in on)
    effect = kn.measure(model, prompts[:1], kn.SetTo([kn.Neuron(N_LAYERS - 1, 2, off)], 9.0))
    assert effect.change.tolist() == [0.0]


@pytest.mark.parametrize("position", ["read", "all"])
def test_amplifying_is_done_by_hooks_and_by_resumed_passes_alike(pair, architecture, position):
    model, _ = pair
    prompts = expert_prompts(6)
    neurons = kn.NeuronSet(attributed(architecture).top(6)["neuron"])
    amplify = kn.Amplify(neurons, 3.0, position=position)
    with model.hooks(fwd_hooks=amplify.hooks(model, prompts)), torch.no_grad():
        logits = model(prompts.tokens)[torch.arange(3), prompts.read_pos]
    expected = logits.softmax(-1)[torch.arange(3), prompts.target_ids]
    measured = kn.measure(model, prompts, amplify)
    assert measured.after.to_numpy() == pytest.approx(expected.numpy(), rel=1e-10)
    assert measured.change.abs().max() > 1e-6


def test_edits_are_exact_undone_and_exported(pair, architecture, tmp_path):
    model, reference = pair
    host, prompts = kn.host_of(model), expert_prompts(6)
    found = kn.NeuronSet(attributed(architecture).top(6)["neuron"])
    shared = [kn.Neuron(2, 1, "shared")] if host.layout.layers[2].d_shared else []
    neurons = found | shared
    edit = kn.erase_neurons(model, neurons)
    before = {name: weight.clone() for name, weight in host.checkpoint.state_dict().items()}
    with edit.applied(model), torch.no_grad():
        edited = model(prompts.tokens)
    assert all(torch.equal(before[name], weight) for name, weight in host.checkpoint.state_dict().items())
    suppressed = kn.Suppress(neurons, position="all").hooks(model, prompts)
    for hooks in (suppressed, edit.hooks(model)):
        with model.hooks(fwd_hooks=hooks), torch.no_grad():
            equal(model(prompts.tokens), edited)

    exported = plain(kn.export(model, edit, tmp_path / "edited"), architecture)
    with torch.no_grad():
        equal(exported(prompts.tokens).logits, edited)
        assert (edited - reference(prompts.tokens).logits).abs().max() > 1e-6
    for neuron in neurons:
        kinds = {None: "one", "shared": "shared"}
        for kind, weight, rows_last in value_weights(exported, neuron.layer):
            if kind == kinds.get(neuron.expert, "experts"):
                rows = weight.transpose(-1, -2) if rows_last else weight
                row = rows[neuron.index] if kind != "experts" else rows[neuron.expert, neuron.index]
                assert not row.any()

    edit.save(tmp_path / "edit.safetensors")
    assert kn.WeightEdit.load(tmp_path / "edit.safetensors").digest == edit.digest


def test_sets_of_neurons_are_written_and_read(pair, architecture, tmp_path):
    model, _ = pair
    neurons = kn.NeuronSet(attributed(architecture).top(9)["neuron"])
    neurons.write(tmp_path / "neurons.json", model=model)
    assert kn.NeuronSet.read(tmp_path / "neurons.json", model=model) == neurons
    control = kn.random_neurons(neurons, model)
    assert control.isdisjoint(neurons)
    assert sorted(map(_expert, control)) == sorted(map(_expert, neurons))


def _expert(neuron):
    return tuple(neuron)[:-1]


@pytest.mark.parametrize("architecture", ["OlmoeForCausalLM", "DeepseekV3ForCausalLM"])
def test_scores_in_a_file_and_refined_sets_are_those_in_memory(architecture, tmp_path):
    model, _ = both(architecture)
    prompts = expert_prompts(6, n_prompts=4)
    attr = kn.attribute(model, prompts)
    for keep in (None, 0.1):
        path = tmp_path / f"scores-{keep}.parquet"
        read = kn.read_attribution(kn.attribute_to_file(model, path, prompts, keep=keep), prompts)
        expected = attr if keep is None else attr.thresholded(keep)
        assert torch.equal(read.scores.to_dense(), expected.scores.to_dense())
        assert torch.equal(read.routing_term, attr.routing_term) and read.layout == attr.layout
        assert kn.refine(read, min_prompts=1) == kn.refine(attr, min_prompts=1)
    scores = attr.scores.to_dense()
    for number, neurons in enumerate(kn.refine(attr, min_prompts=1).values()):
        is_member = scores[number] >= 0.2 * scores[number].max()
        keys = [attr.layout.key(layer, row) for layer, row in is_member.nonzero().tolist()]
        assert neurons == kn.NeuronSet(keys)


@contextmanager
def doubled(module):
    """Let what a module returns be twice as much, by a hook of PyTorch's."""
    handle = module.register_forward_hook(lambda module, args, output: 2 * output)
    try:
        yield
    finally:
        handle.remove()


def test_what_a_hook_inside_the_experts_adds_is_no_neurons_and_is_refused():
    model = kn.load_model(tiny_experts("MixtralForCausalLM"))
    host, prompts = kn.host_of(model), expert_prompts(6)
    neurons = kn.attribute(model, prompts, layers=[2]).top(2)["neuron"].tolist()
    with doubled(host.expert_layers[2].experts):
        with pytest.raises(kn.UnsupportedModelError, match=r"experts of layer 2 .* remove a hook"):
            kn.attribute(model, prompts)
        with pytest.raises(kn.HookError, match=r"layer 2 .* an adapter or a hook of PyTorch's is in them"):
            kn.measure(model, prompts, kn.Suppress(neurons))
        kn.attribute(model, prompts, layers=[0, 1])
        kn.measure(model, prompts, kn.Suppress(kn.attribute(model, prompts, layers=[1]).top(2)["neuron"].tolist()))


def test_hooks_of_the_user_at_the_exit_of_experts_act_after_changes():
    """The scores are those of the plain model under the same hook; changes made by hooks would come after it."""
    architecture = "MixtralForCausalLM"
    model, reference = both(architecture)
    prompts = expert_prompts(6)
    neurons = kn.attribute(model, prompts, layers=[1]).top(2)["neuron"].tolist()
    hooks = [("blocks.1.mlp.hook_out", lambda value, hook: 2 * value)]
    with model.hooks(fwd_hooks=hooks):
        attr = kn.attribute(model, prompts, tolerance=1e-6)
        with pytest.raises(kn.HookError, match=r"a hook is on blocks.1.mlp.hook_out.*\*own_hooks"):
            kn.measure(model, prompts, kn.Suppress(neurons))
    handle = reference.model.layers[1].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    with torch.no_grad():
        clean = answer_probability(reference, prompts)
        with silenced(reference, 1, 5):
            free = answer_probability(reference, prompts)
    handle.remove()
    equal(attr.expected[:, 1] + attr.routing_term[:, 1], clean - free)
    assert attr.converged.all()
    one_token = expert_prompts(1)
    suppressed = kn.Suppress(neurons).hooks(model, one_token)
    with torch.no_grad():
        with model.hooks(fwd_hooks=suppressed + hooks):
            found = model(one_token.tokens)
        with model.hooks(fwd_hooks=hooks), kn.erase_neurons(model, neurons).applied(model):
            equal(found, model(one_token.tokens))


def test_one_neuron_of_an_expert_is_changed_by_one_intervention():
    model, _ = both("OlmoeForCausalLM")
    prompts = expert_prompts(6)
    first, second = kn.attribute(model, prompts, layers=[2]).top(2)["neuron"]
    with pytest.raises(kn.ArgumentError, match=f"Two interventions change {first} .* Write both as one"):
        kn.measure(model, prompts, [kn.Suppress([first]), kn.SetTo([first, second], 1.0)])
    apart = kn.measure(model, prompts, [kn.Suppress([first]), kn.Suppress([second])])
    together = kn.measure(model, prompts, kn.Suppress([first, second]))
    assert apart.after.to_numpy() == pytest.approx(together.after.to_numpy(), rel=1e-12)


def test_biases_of_experts_stay_where_activations_are_silenced():
    (architecture,) = BIASED
    model, reference = both(architecture)
    prompts = expert_prompts(6)
    with torch.no_grad(), silenced(reference, N_LAYERS - 1, 5):
        expected = answer_probability(reference, prompts)
    host = kn.host_of(model)
    every = [host.layout.key(N_LAYERS - 1, row) for row in range(host.layout.layers[N_LAYERS - 1].n_rows)]
    effect = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet(every)))
    assert effect.after.to_numpy() == pytest.approx(expected.numpy(), rel=1e-10)


def test_a_loss_of_the_routing_that_the_checkpoint_asks_for_is_not_computed(architecture, tmp_path):
    """Passes that start at a layer have the routing of some layers and rows alone."""
    prompts = expert_prompts(6)
    tiny_experts(architecture).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    scores = []
    for asked in (True, False):
        (tmp_path / "config.json").write_text(json.dumps(config | {"output_router_logits": asked}))
        tokenizer = tiny_tokenizer("GPT2LMHeadModel")
        model = kn.load_model(tmp_path, tokenizer=tokenizer, dtype=torch.float64, device="cpu")
        scores.append(kn.attribute(model, prompts, method="gradient_x_activation").scores.to_dense())
    assert torch.equal(*scores)


def test_the_weights_in_a_bridge_are_run_in_a_plain_model(pair):
    model, _ = pair
    check = kn.check_host(model)
    assert check.difference <= check.limit


def test_what_takes_no_experts_says_so(tmp_path):
    model, _ = both("OlmoeForCausalLM")
    with pytest.raises(kn.UnsupportedModelError, match="has experts, on whose activations TransformerLens has no hook"):
        kn.reference_attribution(model, expert_prompts(6), 0)
    with pytest.raises(kn.ArgumentError, match=r"no neuron L1N3; expected in layer 1 experts 0 to 3"):
        kn.measure(model, expert_prompts(6), kn.Suppress(["L1N3"]))
    with pytest.raises(kn.ArgumentError, match="L0E4N1 does not exist; layer 0 has experts 0 to 3"):
        kn.attribute(model, expert_prompts(6), method="ablation", neurons=["L0E4N1"])


def test_tables_and_figures_name_layer_expert_and_index():
    model, _ = both("DeepseekV3ForCausalLM")
    prompts = expert_prompts(6)
    attr = kn.attribute(model, prompts)
    for table in (attr.top(30), attr.to_frame()):
        for row in table.itertuples():
            assert kn.Neuron(row.neuron) == kn.Neuron(row.layer, row.index, row.expert)
    frame = attr.to_frame()
    assert set(frame["expert"]) == {None, "shared", 0, 1, 2, 3} & set(frame["expert"]) >= {None, "shared"}
    assert torch.equal(
        attr.routing_term[frame["prompt"], frame["layer"]], torch.tensor(frame["routing_term"].to_numpy())
    )
    names = attr.top(5)["neuron"]
    assert all(name in attr.plot(top=5).layout.meta["description"] for name in names[:2])
    assert all(name in attr._repr_html_() for name in names[:2])


def test_find_reports_the_routing_term():
    model, _ = both("OlmoeForCausalLM")
    findings = kn.find(model, ["The capital of Ireland is", "Ireland has the capital"], " Dublin", min_prompts=1)
    term = findings.attribution.routing_term.abs().max().item()
    assert findings.summary()["largest_routing_term"].tolist() == [term] and "routing term at most" in repr(findings)
    table = findings.to_frame()
    assert [kn.Neuron(row.layer, row.index, row.expert) for row in table.itertuples()] == list(findings.neurons)
    scores = findings.attribution.scores.to_dense()
    for row in table.itertuples():
        place = findings.attribution.layout.row(kn.Neuron(row.neuron))
        assert row.score == pytest.approx(scores[:, row.layer, place].mean().item())
