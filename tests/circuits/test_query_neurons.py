"""Query neurons against a plain loop over the authors' published ranking, written from the weights alone."""

import pytest
import torch

import kn_lens as kn
from kn_lens.circuits import HeadValue, NeuronNode
from tests import tiny
from tests.circuits.hf_components import HFComponents
from tests.prompts_of_tokens import batch_of

TOKENS = torch.tensor([[5, 16, 27, 38, 9]])
N_HEADS, D_HEAD = 2, 8
ARCHITECTURES = ("LlamaForCausalLM", "GPT2LMHeadModel")
TOLERANCE = {"LlamaForCausalLM": 2e-5, "GPT2LMHeadModel": 1e-8}  # RMS norms compute in float32


class PublishedLoop:
    """The authors' notebook, step by step, for one prompt: value vectors by gain, then neurons by their shares."""

    def __init__(self, architecture, target_id):
        self.is_llama = architecture == "LlamaForCausalLM"
        self.reference = HFComponents(
            model=tiny.tiny_hf_model(architecture), architecture=architecture, n_layers=tiny.N_LAYERS
        )
        self.model, self.target_id = self.reference.model, target_id
        self.model.set_attn_implementation("eager")
        self.found, _ = self.reference.clean(TOKENS)
        with torch.no_grad():
            self.patterns = self.model(TOKENS, output_attentions=True).attentions

    def norm_weight(self, layer):
        stack = self.model.model.layers if self.is_llama else self.model.transformer.h
        return stack[layer].input_layernorm.weight if self.is_llama else stack[layer].ln_1.weight

    def layer_input(self, layer):
        stack = self.model.model.layers if self.is_llama else self.model.transformer.h
        first = stack[layer].input_layernorm if self.is_llama else stack[layer].ln_1
        return self.found[first, "in"][0]

    def log_prob(self, vectors):
        final = self.model.model.norm if self.is_llama else self.model.transformer.ln_f
        last = self.found[final, "in"][0, -1]
        if self.is_llama:
            normed = vectors * torch.rsqrt(last.square().mean() + final.variance_epsilon) * final.weight
        else:
            scale = (last.var(unbiased=False) + final.eps).sqrt()
            normed = (vectors - vectors.mean(-1, keepdim=True)) / scale * final.weight + final.bias
        return self.model.lm_head(normed).log_softmax(-1)[..., self.target_id]

    def W_O(self, layer):
        weight = self.reference.module(layer, "attn_out").weight
        rows = weight.T if self.is_llama else weight
        return rows.view(N_HEADS, D_HEAD, -1)

    def W_V(self, layer):
        """Return the map to the values of each query head, as rows."""
        if self.is_llama:
            weight = self.reference.module(layer, "v").weight
            return weight.view(-1, D_HEAD, weight.shape[1]).repeat_interleave(N_HEADS * D_HEAD // len(weight), 0)
        return self.model.transformer.h[layer].attn.c_attn.weight[:, -16:].T.view(N_HEADS, D_HEAD, -1)

    def values(self, layer):
        if self.is_llama:
            v = self.found[self.reference.module(layer, "v"), "out"][0].view(len(TOKENS[0]), -1, D_HEAD)
            return v.repeat_interleave(N_HEADS // v.shape[1], 1)
        joint = self.found[self.model.transformer.h[layer].attn.c_attn, "out"][0]
        return joint[:, -16:].view(-1, N_HEADS, D_HEAD)

    def attention_gains(self):
        gains = {}
        for layer in range(tiny.N_LAYERS):
            base = self.layer_input(layer)[-1]
            for head in range(N_HEADS):
                for index in range(D_HEAD):
                    for position in range(TOKENS.shape[1]):
                        weight = self.patterns[layer][0, head, -1, position]
                        coefficient = weight * self.values(layer)[position, head, index]
                        gain = self.log_prob(base + coefficient * self.W_O(layer)[head, index]) - self.log_prob(base)
                        gains[HeadValue(layer, head, index, position)] = float(gain)
        return dict(sorted(gains.items(), key=lambda item: -item[1]))

    def query_scores(self, gains):
        scores = torch.zeros(tiny.N_LAYERS, tiny.D_MLP, dtype=torch.float64)
        for vector, gain in gains.items():
            key = self.W_V(vector.layer)[vector.head, vector.index] * self.norm_weight(vector.layer)
            whole = self.layer_input(vector.layer)[vector.position] @ key
            for layer in range(vector.layer):
                out = self.reference.module(layer, "mlp_out")
                rows = out.weight.T if self.is_llama else out.weight
                for index in range(tiny.D_MLP):
                    contribution = self.found[out, "in"][0, vector.position, index] * rows[index]
                    scores[layer, index] += float(contribution @ key / whole) * gain
        return scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_ranking_is_that_of_the_published_code(architecture):
    loop = PublishedLoop(architecture, target_id=20)
    found = kn.query_neurons(tiny.loaded(architecture), batch_of(TOKENS), n_values=12, hold_means=True)[0]
    gains = dict(list(loop.attention_gains().items())[:12])
    assert list(found.values) == list(gains)
    tolerance = TOLERANCE[architecture]
    tiny.equal(torch.tensor(list(found.values.values())), torch.tensor(list(gains.values())), max(tolerance, 1e-6))
    scores = loop.query_scores(gains)
    tiny.equal(found.by_neuron / scores.abs().max(), scores / scores.abs().max(), tolerance)
    ranked = scores.flatten().argsort(descending=True)[:10]
    assert found.by_neuron.flatten().argsort(descending=True)[:10].tolist() == ranked.tolist()


@torch.no_grad()
def test_scores_sum_to_the_share_that_neurons_have_in_the_keys():
    """Shares of all components of a bias-free model make up a key: with the heads and the embedding, the gains."""
    model = tiny.loaded("LlamaForCausalLM")
    prompts = batch_of(TOKENS)
    found = kn.query_neurons(model, prompts, values="mlp", n_values=1)[0]
    ((vector, gain),) = found.values.items()
    effects = kn.direct_effects(model, prompts, vector)
    shares = effects.neurons[0] / effects.total[0]
    tiny.equal(found.scores, gain * shares, 1e-5)


def test_weighting_by_coefficients_is_the_sum_over_value_neurons_of_direct_effects():
    model = tiny.loaded("GPT2LMHeadModel")
    prompts = batch_of(TOKENS)
    found = kn.query_neurons(model, prompts, values="mlp", n_values=3, weighting="coefficient")[0]
    expected = torch.zeros_like(found.scores)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    for vector in found.values:
        coefficient = cache[f"blocks.{vector.layer}.mlp.hook_post"][0, vector.position, vector.index]
        expected += coefficient * kn.direct_effects(model, prompts, vector).neurons[0]
    tiny.equal(found.scores, expected, 1e-9)


def test_value_neurons_are_those_with_the_largest_gains_of_all():
    """The search by bounds misses none: compare with the gains of every neuron."""
    architecture = "GPT2LMHeadModel"
    loop = PublishedLoop(architecture, target_id=20)
    found = kn.query_neurons(tiny.loaded(architecture), batch_of(TOKENS), values="mlp", n_values=5)[0]
    gains = {}
    with torch.no_grad():
        for layer in range(tiny.N_LAYERS):
            out = loop.reference.module(layer, "mlp_out")
            base = loop.found[loop.model.transformer.h[layer].ln_2, "in"][0, -1]
            for index in range(tiny.D_MLP):
                vector = loop.found[out, "in"][0, -1, index] * out.weight[index]
                gains[NeuronNode(layer, index, 4)] = float(loop.log_prob(base + vector) - loop.log_prob(base))
    best = sorted(gains, key=lambda node: -gains[node])[:5]
    assert list(found.values) == best
    for node in best:
        assert found.values[node] == pytest.approx(gains[node], abs=1e-9)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "Gemma2ForCausalLM", "Olmo2ForCausalLM"])
def test_models_without_a_plain_residual_stream_are_refused(architecture):
    with pytest.raises(kn.UnsupportedModelError, match="no gain of their own"):
        kn.query_neurons(tiny.loaded(architecture), batch_of(TOKENS))


def test_arguments_are_checked():
    model = tiny.loaded("GPT2LMHeadModel")
    for options, message in (
        ({"values": "mlps"}, "Did you mean"),
        ({"weighting": "gains"}, "Did you mean"),
        ({"n_values": 0}, "n_values=0"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.query_neurons(model, batch_of(TOKENS), **options)


def test_table_lists_the_largest_scores():
    found = kn.query_neurons(tiny.loaded("GPT2LMHeadModel"), batch_of(TOKENS), n_values=4)[0]
    table = found.to_frame(k=6)
    assert table["score"].is_monotonic_decreasing and len(table) == 6
    assert table["node"][0] == str(next(iter(found.top(1))))
