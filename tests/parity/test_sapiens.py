"""A trained masked model of another field: the antibody RoBERTa of the package ``sapiens``, in fairseq's form.

It is read here by a few lines of its own, so that logits and scores are compared with a plain forward pass over the
weights as they are stored.
"""

import argparse
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional

import kn_lens as kn
from tests.tiny import equal

PACKAGE = find_spec("sapiens")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs pip install --no-deps sapiens")

HEAVY_CHAIN = (
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCAR"
    "RDYRFDMGFDYWGQGTTVTVSS"
)
"""The variable heavy chain of pembrolizumab."""
BEGIN, PAD, END, UNKNOWN = range(4)
MASK = 24
N_HEADS = 8
POSITIONS = (3, 10, 21, 38, 41, 94, 95, 104)
"""Residues that are masked: in the framework, which is alike in all antibodies."""


@pytest.fixture(scope="module")
def weights():
    """The stored weights by fairseq's names, in float64."""
    folder = Path(PACKAGE.submodule_search_locations[0]) / "models" / "v1"
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored = torch.load(folder / "checkpoint_vh.pt", weights_only=True, map_location="cpu")["model"]
    return {name.removeprefix("decoder."): weight.double() for name, weight in stored.items()}


@pytest.fixture(scope="module")
def tokens():
    """One row for each masked residue."""
    folder = Path(PACKAGE.submodule_search_locations[0]) / "models" / "v1"
    residues = [line.split()[0] for line in (folder / "dict.txt").read_text().splitlines()]
    ids = [BEGIN, *(4 + residues.index(residue) for residue in HEAVY_CHAIN), END]
    return torch.tensor(ids)


@pytest.fixture(scope="module")
def prompts(tokens):
    rows = tokens.repeat(len(POSITIONS), 1)
    read_pos = torch.tensor(POSITIONS) + 1  # after the token of the beginning
    targets = tokens[read_pos]
    rows[torch.arange(len(rows)), read_pos] = MASK
    return kn.PromptBatch.from_tokens(rows, read_pos=read_pos, target_ids=targets)


@pytest.fixture(scope="module")
def model(weights):
    return kn.load_model(_as_hugging_face(weights))


@torch.no_grad()
def test_logits_are_those_of_a_plain_forward_pass_over_the_stored_weights(weights, model, prompts):
    host = kn.host_of(model)
    assert (host.kind, host.n_layers, host.d_model, host.d_mlp) == ("masked", 4, 128, 256)
    logits = host.logits(prompts.tokens, prompts.attention_mask)
    equal(logits, _plain_logits(weights, prompts.tokens), 1e-8)


def test_the_model_knows_the_framework_of_an_antibody(model, prompts):
    answers = kn.measure(model, prompts, [])
    assert (answers.rank_before == 0).mean() >= 0.75
    assert answers.before.mean() > 0.7


def test_scores_are_the_definitions_and_complete(model, prompts):
    attribution = kn.attribute(model, prompts)
    assert len(attribution.unconverged) == 0
    assert attribution.completeness_gap.abs().max() < 2e-3
    fixed = kn.attribute(model, prompts.select([0, 5]), quadrature="gauss-legendre", n_steps=3)
    for layer in range(4):
        reference = kn.reference_attribution(model, prompts.select([0, 5]), layer, rule="gauss-legendre", n_steps=3)
        equal(fixed.scores[:, layer], reference, 1e-8)


def test_the_most_important_neurons_matter_more_than_random_ones(model, prompts):
    attribution = kn.attribute(model, prompts)
    mean_scores = attribution.scores.mean(0)
    top = mean_scores.flatten().topk(8).indices.tolist()
    neurons = kn.NeuronSet([(index // 256, index % 256) for index in top])
    off = kn.measure(model, prompts, kn.Suppress(neurons))
    control = kn.measure(model, prompts, kn.Suppress(kn.random_neurons(neurons, model, seed=0)))
    assert off.change.mean() < 5 * control.change.mean() - 1e-3


def _as_hugging_face(weights):
    """Return the model as Hugging Face's RoBERTa."""
    config = transformers.RobertaConfig(
        vocab_size=25,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=N_HEADS,
        intermediate_size=256,
        max_position_embeddings=146,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    replacements = (
        (r"^sentence_encoder\.layers\.", "roberta.encoder.layer."),
        (r"^sentence_encoder\.embed_tokens\.", "roberta.embeddings.word_embeddings."),
        (r"^sentence_encoder\.embed_positions\.", "roberta.embeddings.position_embeddings."),
        (r"^sentence_encoder\.emb_layer_norm\.", "roberta.embeddings.LayerNorm."),
        (r"self_attn\.(q|k|v)_proj", r"attention.self.\1"),
        (r"self_attn\.out_proj", "attention.output.dense"),
        (r"self_attn_layer_norm", "attention.output.LayerNorm"),
        (r"fc1", "intermediate.dense"),
        (r"fc2", "output.dense"),
        (r"final_layer_norm", "output.LayerNorm"),
        (r"^lm_head\.weight", "lm_head.decoder.weight"),
    )
    names = {"attention.self.q": "attention.self.query", "attention.self.k": "attention.self.key"}
    names["attention.self.v"] = "attention.self.value"
    converted = {"roberta.embeddings.token_type_embeddings.weight": torch.zeros(1, 128, dtype=torch.float64)}
    for name, weight in weights.items():
        for pattern, replacement in replacements:
            name = re.sub(pattern, replacement, name)
        for short, long in names.items():
            name = name.replace(f"{short}.", f"{long}.")
        converted[name] = weight
    converted["lm_head.decoder.bias"] = converted["lm_head.bias"]
    hf_model = transformers.RobertaForMaskedLM(config).double().eval()
    missing, unexpected = hf_model.load_state_dict(converted, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)
    return hf_model


def _plain_logits(weights, tokens):
    """Return the logits of fairseq's RoBERTa, written out: the norms come after attention and MLP."""

    def linear(values, name):
        return functional.linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(values, name):
        return functional.layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    stem = "sentence_encoder"
    positions = PAD + 1 + torch.arange(tokens.shape[1])
    embedded = weights[f"{stem}.embed_tokens.weight"][tokens] + weights[f"{stem}.embed_positions.weight"][positions]
    resid = norm(embedded, f"{stem}.emb_layer_norm")
    for layer in range(4):
        name = f"{stem}.layers.{layer}"
        q, k, v = (
            linear(resid, f"{name}.self_attn.{part}_proj").unflatten(-1, (N_HEADS, -1)).transpose(1, 2)
            for part in "qkv"
        )
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        resid = norm(resid + linear(attended, f"{name}.self_attn.out_proj"), f"{name}.self_attn_layer_norm")
        post = functional.gelu(linear(resid, f"{name}.fc1"))
        resid = norm(resid + linear(post, f"{name}.fc2"), f"{name}.final_layer_norm")
    hidden = norm(functional.gelu(linear(resid, "lm_head.dense")), "lm_head.layer_norm")
    return functional.linear(hidden, weights["lm_head.weight"], weights["lm_head.bias"])
