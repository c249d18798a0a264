"""TransformerLens' analysis tools: what ``docs/howto/analysis_tools.md`` says of neurons holds in float64."""

import pytest
import torch

import kn_lens as kn

interchange = pytest.importorskip(
    "transformer_lens.tools.analysis.interchange", reason="TransformerLens 3 has no interchange interventions"
)

TEMPLATE = "The country [X] has the capital [Y]"


@pytest.fixture(scope="module")
def pair(model, fact):
    """Return a prompt about Ireland and the same about France."""
    france = kn.FactSet.world().find("France", relation="P36")
    return [kn.make_prompts(model, one, templates=[TEMPLATE]) for one in (fact, france)]


def test_interchange_of_a_neuron_basis_sets_the_neurons_of_the_set(model, pair, neurons):
    """The basis of a layer's indices sets these neurons to the source's activations, and no others."""
    host = kn.host_of(model)
    base, source = pair
    layer, indices = max(neurons.by_layer().items())
    _, cache = model.run_with_cache(source.tokens)
    values = cache[host.hook_post(layer)][:, -1]

    def answers(tokens):
        return model(tokens)[:, -1]

    step = interchange.SubspaceInterchange(interchange.neuron_basis(host.d_mlp, indices))
    found = interchange.intervened_logits(
        model, host.hook_post(layer), step, base.tokens, values, answers, positions=base.read_pos
    )
    hooks = []
    for index in indices:
        one = kn.NeuronSet([(layer, index)])
        hooks += kn.SetTo(one, values[0, index].item()).hooks(model, base)
    expected = model.run_with_hooks(base.tokens, fwd_hooks=hooks)[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert not torch.allclose(found, answers(base.tokens), atol=1e-3)


def test_placebo_of_random_neurons_moves_them_as_far_and_leaves_the_set(model, pair, neurons):
    host = kn.host_of(model)
    layer, indices = max(neurons.by_layer().items())
    control = kn.random_neurons(neurons, model, seed=0).by_layer()[layer]
    activations = []
    for prompts in pair:
        _, cache = model.run_with_cache(prompts.tokens)
        activations.append(cache[host.hook_post(layer)][:, -1])
    base, source = activations
    step = interchange.SubspaceInterchange(interchange.neuron_basis(host.d_mlp, indices))
    placebo = interchange.NormMatchedPlacebo(step, interchange.neuron_basis(host.d_mlp, control))
    moved = placebo(base, source) - base
    torch.testing.assert_close(moved.norm(), (step(base, source) - base).norm(), atol=1e-12, rtol=0)
    assert set(moved[0].nonzero().flatten().tolist()) <= set(control)


def test_untrained_model_takes_the_same_prompts_and_is_no_copy(model, prompts):
    """Its scores add up like those of a trained model, and are far smaller."""
    host = kn.host_of(model)
    untrained = interchange.random_init_bridge(host.checkpoint.name_or_path, seed=0)
    other = kn.host_of(untrained)
    assert torch.equal(kn.make_prompts(untrained, list(prompts.facts)).tokens[:4], prompts.tokens)
    assert (other.n_layers, other.d_mlp, other.hook_post(1)) == (host.n_layers, host.d_mlp, host.hook_post(1))
    assert not torch.allclose(other.W_out(1).double(), host.W_out(1), atol=0.1)
    trained, noise = (kn.attribute(one, prompts) for one in (model, untrained))
    assert noise.converged.all() and noise.scores.max() < trained.scores.max() / 100


def test_logit_readout_of_a_value_row_is_that_of_the_head_of_transformers(model, neurons):
    from transformer_lens.tools.analysis import logit_readout

    host = kn.host_of(model)
    layer, index = neurons[0]
    row = host.W_out(layer)[index]
    hf = host.checkpoint
    with torch.no_grad():
        expected = hf.lm_head(hf.transformer.ln_f(row))
    torch.testing.assert_close(logit_readout(model, row[None]).values[0], expected, atol=1e-10, rtol=0)


def test_attribution_patching_of_hook_post_is_the_slope_of_setting_each_neuron(model, pair):
    """The gradient at a neuron is the change of the metric by a small change of its activation, by difference."""
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    host = kn.host_of(model)
    clean, corrupt = pair
    good, bad = int(clean.target_ids[0]), int(corrupt.target_ids[0])

    def metric(logits):
        return logits[0, -1, good] - logits[0, -1, bad]

    hook_names = [host.hook_post(layer) for layer in range(host.n_layers)]
    model.requires_grad_(True)
    run = cache_activation_and_gradient(model, corrupt.tokens, metric, hook_names)
    model.requires_grad_(False)
    to = cache_activation_and_gradient(model, clean.tokens, metric, hook_names, compute_gradient=False)
    delta = torch.stack([(to.activations[name] - run.activations[name])[0, -1] for name in hook_names])
    scores = delta * torch.stack([run.gradients[name][0, -1] for name in hook_names])
    largest = kn.NeuronSet.from_mask(scores >= scores.flatten().topk(5).values[-1])
    assert len(largest) == 5
    for neuron in largest:
        before = run.activations[host.hook_post(neuron.layer)][0, -1, neuron.index].item()
        ends = []
        for step in (1e-4, -1e-4):
            hooks = kn.SetTo(kn.NeuronSet([neuron]), before + step).hooks(model, corrupt)
            ends.append(metric(model.run_with_hooks(corrupt.tokens, fwd_hooks=hooks)).item())
        slope = (ends[0] - ends[1]) / 2e-4
        assert scores[neuron] == pytest.approx(slope * delta[neuron].item(), rel=1e-5)


def test_selected_features_of_a_sparse_probe_are_a_neuron_set():
    """A neuron that alone carries the label is the one that the probe selects."""
    from transformer_lens.tools.analysis import fit_sparse_probe

    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(80, 16, generator=generator)
    labels = torch.arange(80) % 2
    activations[:, 11] += 3 * labels
    probe = fit_sparse_probe(activations, labels, k=1)
    selected = kn.NeuronSet((2, index) for index in probe.selected_features.tolist())
    assert selected == kn.NeuronSet(["L2N11"])
