import pytest
import torch

import kn_lens as kn
from kn_lens.circuits import HeadNode, NeuronNode
from tests import tiny
from tests.circuits.conftest import made_pairs

ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM", "Gemma2ForCausalLM")


def metric(pairs, row):
    def difference(logits):
        at = logits[0, int(pairs.clean.read_pos[row])]
        return at[pairs.clean.target_ids[row]] - at[pairs.clean.contrast_ids[row]]

    return difference


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"])
def test_attribution_patching_equals_that_of_transformer_lens(architecture, pairs):
    analysis = pytest.importorskip("transformer_lens.tools.analysis")
    model = tiny.tiny_model(architecture)
    model.requires_grad_(True)  # which TransformerLens needs
    scores = kn.circuit_scores(model, pairs, method="attribution_patching")
    n_compared = 0
    for row in range(len(pairs)):
        clean, corrupt = pairs.clean.tokens[[row]], pairs.counterfactual.tokens[[row]]
        expected = analysis.attribution_patch(model, clean, corrupt, metric(pairs, row)).node_scores
        for node, value in expected.items():
            if node.kind == "attn_head_out":
                ours = scores[row, HeadNode(node.layer, node.head, node.position)]
            elif node.kind == "mlp_out":  # the sum of its neurons
                ours = float(scores.neurons[row, node.layer, node.position].sum())
            else:
                ours = float(scores.embedding[row, node.position])
            assert ours == pytest.approx(value, abs=1e-5)
            n_compared += abs(value) > 1e-3
    assert n_compared > 20


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_are_complete_along_their_path(architecture, pairs):
    model = tiny.loaded(architecture)
    gaps = []
    for n_steps in (4, 64):
        scores = kn.circuit_scores(model, pairs, n_steps=n_steps)
        gaps.append(float(scores.completeness_gap.abs().max()))
    assert (scores.clean - scores.counterfactual).abs().min() > 1e-2
    assert gaps[1] < 2e-4
    assert gaps[1] <= gaps[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attribution_patching_is_the_slope_of_patching_at_the_counterfactual(architecture, pairs):
    """A step from the counterfactual activation towards the clean one, by TransformerLens' own hooks."""
    model = tiny.loaded(architecture)
    scores = kn.circuit_scores(model, pairs, method="attribution_patching")
    row, step = 1, 3e-3  # norms compute in float32
    clean, corrupt = pairs.clean.tokens[[row]], pairs.counterfactual.tokens[[row]]
    with torch.no_grad():
        _, clean_cache = model.run_with_cache(clean)
        _, corrupt_cache = model.run_with_cache(corrupt)
    for node in (NeuronNode(0, 3, 2), NeuronNode(2, 7, 4), HeadNode(1, 1, 3), HeadNode(0, 0, 4)):
        is_neuron = isinstance(node, NeuronNode)
        name = f"blocks.{node.layer}." + ("mlp.hook_post" if is_neuron else "attn.hook_z")
        number = node.index if is_neuron else node.head
        values = []
        for factor in (step, -step):
            activation = corrupt_cache[name].clone()
            moved = clean_cache[name][0, node.position, number] - activation[0, node.position, number]
            activation[0, node.position, number] += factor * moved
            with torch.no_grad():
                logits = model.run_with_hooks(
                    corrupt, fwd_hooks=[(name, lambda value, hook, activation=activation: activation)]
                )
            values.append(float(metric(pairs, row)(logits)))
        slope = (values[0] - values[1]) / (2 * step)
        assert scores[row, node] == pytest.approx(slope, abs=1e-3)


def test_scores_do_not_depend_on_the_other_pairs_or_on_memory():
    model = tiny.loaded("LlamaForCausalLM")
    pairs = made_pairs(n_pairs=5)
    whole = kn.circuit_scores(model, pairs)
    small = kn.circuit_scores(model, pairs, memory_budget=1.0)
    backwards = kn.circuit_scores(model, pairs.select([4, 3, 2, 1, 0]))
    tiny.equal(small.values, whole.values, 1e-10)
    tiny.equal(backwards.values.flip(0), whole.values, 1e-10)
    tiny.equal(backwards.clean.flip(0), whole.clean, 1e-10)


def test_pairs_of_several_lengths_have_zeros_after_their_tokens():
    model = kn.load_model("world-bert")
    pairs = kn.counterfactual_pairs(model, kn.FactSet.world().of("P36")[:12])
    pairs = pairs.select(range(0, len(pairs), 9))
    assert len(set(pairs.clean.length.tolist())) > 1
    scores = kn.circuit_scores(model, pairs)
    shortest = int(pairs.clean.length.argmin())
    alone = kn.circuit_scores(model, pairs.select([shortest]))
    n_pos = int(pairs.clean.length[shortest])
    torch.testing.assert_close(scores.values[shortest, :, :n_pos], alone.values[0, :, :n_pos], rtol=1e-3, atol=1e-4)
    assert scores.values[shortest, :, n_pos:].abs().max() == 0


def test_model_leaves_as_it_came(pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    with torch.no_grad():
        before = model(pairs.clean.tokens)
        kn.circuit_scores(model, pairs)
        kn.direct_effects(model, pairs.clean)
        assert torch.equal(model(pairs.clean.tokens), before)


def test_unknown_methods_and_steps_are_refused(pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    with pytest.raises(kn.ArgumentError, match="Did you mean 'eap_ig'"):
        kn.circuit_scores(model, pairs, method="eap-ig")
    with pytest.raises(kn.ArgumentError, match="n_steps=0"):
        kn.circuit_scores(model, pairs, n_steps=0)
    with pytest.raises(kn.UnsupportedModelError, match="encoder-decoder"):
        kn.circuit_scores(tiny.loaded("BartForConditionalGeneration"), pairs)


def test_half_precision_is_summed_in_single_precision(pairs):
    """Scores of a model in bfloat16 are as close to those of its weights in float64 as its passes are."""
    model = tiny.tiny_model("GPT2LMHeadModel", torch.bfloat16)
    scores = kn.circuit_scores(model, pairs)
    assert scores.values.dtype == torch.float32
    assert float(scores.completeness_gap.abs().max()) < 0.03 * float((scores.clean - scores.counterfactual).abs().max())
    found = kn.query_neurons(model, pairs.clean)[0]  # the rounding of heads is no other form of attention
    assert found.scores.dtype == torch.float32 and len(found.values) == 30


def test_processed_weights_have_the_scores_of_the_raw_ones(pairs):
    raw, model = tiny.loaded("LlamaForCausalLM"), tiny.tiny_model("LlamaForCausalLM")
    model.enable_compatibility_mode(disable_warnings=True)
    for method in ("eap_ig", "attribution_patching"):
        expected, found = (kn.circuit_scores(one, pairs, method=method) for one in (raw, model))
        torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-5)
