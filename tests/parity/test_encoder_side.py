"""The encoder of an encoder-decoder: its neurons, at all tokens that it reads, against loops over transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.quadrature import fixed_rule
from tests.encoder_decoders import (
    FACTS,
    NAMES,
    Place,
    changed_post,
    integrated_gradients,
    loaded,
    log_probs_in_own_pass,
    logits_of,
    plain,
    prompts_of,
    rows_of,
)
from tests.public_calls import CALLS, Case
from tests.public_calls import FACTS as PUBLIC_FACTS
from tests.public_calls import SOME as SOME_NEURONS
from tests.reliability.state import differences, state_of
from tests.tiny import D_MLP, equal, memory_for, tiny_model

RULE = {"quadrature": "gauss-legendre", "n_steps": 2, "start": "zero"}
SOME = [0, 4]
"""Prompts with an answer of one token and of several, at the end and at the beginning of their texts."""

LOG_PROB_GAIN = 3
"""The number of the call of ``attribute`` by that method."""


def encoder_of(name):
    return kn.host_of(loaded(name), side="encoder")


def probability(hf_model, rows, layer=None, change=None, place=None):
    """The probability of the answer of a prompt, with the activations of a layer changed, or as they are."""
    result = torch.ones((), dtype=torch.float64)
    for row in rows:
        if layer is None:
            logits = logits_of(hf_model, row)
        else:
            with changed_post(hf_model, layer, change, place):
                logits = logits_of(hf_model, row)
        result = result * logits.softmax(-1)[row.target]
    return result


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_those_of_the_text_that_the_encoder_reads(name):
    """The placeholder, the subject wherever the answer stands, and every token of a text but none of its padding."""
    model, prompts = loaded(name), prompts_of(name, "encoder")
    of_decoder = prompts_of(name)
    assert torch.equal(prompts.tokens, of_decoder.tokens) and torch.equal(prompts.read_pos, of_decoder.read_pos)
    assert (prompts.side, of_decoder.side) == ("encoder", "decoder")
    rows = torch.arange(prompts.n_rows)
    placeholder = prompts.encoder_tokens[rows, prompts.encoder_pos].unique()
    assert len(placeholder) == 1 and int((prompts.encoder_tokens == placeholder).sum()) == prompts.n_rows
    tokenizer = kn.host_of(model).tokenizer
    for number in range(len(prompts)):
        row = int(prompts.rows_of([number])[0])
        start, stop = prompts.subject[row, 0].tolist()
        assert tokenizer.decode(prompts.encoder_tokens[row, start:stop]).strip() == prompts.fact(number).subject
        assert int(prompts.at("subject_last").post_pos[row]) == stop - 1
    assert torch.equal(prompts.post_pos, prompts.encoder_pos)
    every = kn.attribute(model, prompts[:2], method="activation", positions="all").positions
    assert (every >= 0).sum(-1).tolist() == [len(rows_of(prompts[number])[0].encoder_tokens) for number in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_scores_at_every_position_are_those_of_a_plain_loop(name, float64_throughout):
    """In batches, with padding; there, each row alone."""
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name, "encoder")
    before = state_of(model)
    attr = kn.attribute(model, prompts[SOME], positions="all", **RULE)
    assert not differences(before, state_of(model))
    rule = fixed_rule("gauss-legendre", 2)
    for number in range(len(SOME)):
        rows = rows_of(prompts[SOME[number]])
        with torch.no_grad():
            equal(attr.clean[number], probability(hf_model, rows))
        n_pos = len(rows[0].encoder_tokens)
        for position in {0, int(prompts[SOME[number]].encoder_pos[0]), n_pos - 1}:
            place = Place("encoder", position)
            for layer in (0, encoder_of(name).n_layers - 1):
                scores = integrated_gradients(hf_model, rows, layer, rule.nodes, rule.weights, place)
                largest = scores.abs().max()
                assert largest > 0
                equal(attr.scores[number, position, layer] / largest, scores / largest, 1e-8)
    at_placeholder = kn.attribute(model, prompts[SOME], **RULE)
    equal(attr.at("read").scores, at_placeholder.scores)
    reference = kn.reference_attribution(model, prompts[SOME], 1, rule="gauss-legendre", n_steps=2)
    equal(at_placeholder.scores[:, 1], reference)


@pytest.mark.parametrize("name", NAMES)
def test_the_scores_of_each_position_and_layer_add_up_to_what_is_lost_without_them(name, float64_throughout):
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name, "encoder")[SOME]
    attr = kn.attribute(model, prompts, positions="subject", **RULE)
    for number in range(len(prompts)):
        rows = rows_of(prompts[number])
        place = Place("encoder", int(attr.positions[number, 0]))
        with torch.no_grad():
            clean = probability(hf_model, rows)
            for layer in range(encoder_of(name).n_layers):
                without = probability(hf_model, rows, layer, torch.zeros_like, place)
                gap = attr.scores[number, 0, layer].sum() - (clean - without)
                equal(attr.completeness_gap[number, 0, layer], gap, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_neither_on_the_batch_nor_on_its_order(name, float64_throughout):
    model, prompts = loaded(name), prompts_of(name, "encoder")[:3].at("subject_last")
    options = {"method": "ablation", "layers": [1]}
    whole = kn.attribute(model, prompts, **options).scores[:, 1]
    order = torch.arange(len(prompts)).flip(0)
    equal(kn.attribute(model, prompts.select(order), **options).scores[:, 1], whole[order])
    few = memory_for(8, model, prompts)
    equal(kn.attribute(model, prompts, memory_budget=few, **options).scores[:, 1], whole)


@pytest.mark.parametrize("name", NAMES)
def test_neurons_are_switched_off_at_the_position_of_the_prompts(name, float64_throughout):
    """In kn_lens' passes, in those of its controls, and in the user's own pass."""
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name, "encoder").at("subject_last")
    neurons = kn.NeuronSet([(1, 1), (1, 5)])
    kept = torch.ones(D_MLP)
    kept[[1, 5]] = 0
    effect = kn.measure(model, prompts, kn.Suppress(neurons))
    for number in SOME:
        rows = rows_of(prompts[number])
        place = Place("encoder", int(prompts[number].post_pos[0]))
        with torch.no_grad():
            before = probability(hf_model, rows)
            off = probability(hf_model, rows, 1, lambda post: post * kept, place)
        assert effect["before"][number] == pytest.approx(float(before), rel=1e-9)
        assert effect["after"][number] == pytest.approx(float(off), rel=1e-9)

    by_fact = {fact: neurons for fact in FACTS}
    controlled = kn.controlled_effects(model, prompts, by_fact, across_relations=False)
    found = controlled.query("neuron_set == 'found'").set_index("key")["after"]
    for fact in FACTS:
        assert found[fact.key] == pytest.approx(effect["after"][prompts.indices_of(fact)].mean(), rel=1e-6)

    hooks = kn.Suppress(neurons).hooks(model, prompts)
    assert [hook_name for hook_name, _ in hooks] == ["encoder_blocks.1.mlp.hook_post"]
    np.testing.assert_allclose(effect["after"], log_probs_in_own_pass(model, prompts, hooks).exp(), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_path_starts_and_facts_that_are_found(name):
    """The mean over subjects, prompts of other subjects, and what ``find`` makes of facts with the host alone."""
    host, prompts = encoder_of(name), prompts_of(name, "encoder")
    mean = kn.attribute(host, prompts, positions="subject_last", start="mean", quadrature="gauss-legendre", n_steps=8)
    assert mean.start.startswith("mean") and mean.scores.isfinite().all()
    found = kn.find(host, FACTS, share_threshold=0.3, position="subject_last")
    assert list(found.neurons_by_fact) == FACTS
    assert found.neurons_by_fact == kn.refine(kn.attribute(host, prompts.at("subject_last")), share_threshold=0.3)


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_hooks_of_the_user_are_part_of_the_function(side, float64_throughout):
    """The encoder runs in every pass, whatever is hooked, and the effect of a hook on it is in the scores."""
    model, hf_model, prompts = loaded("T5Gemma"), plain("T5Gemma"), prompts_of("T5Gemma", side)[SOME]
    rule = fixed_rule("gauss-legendre", 2)

    def halved(value, hook):
        return value * 0.5

    hooks = [("encoder_blocks.0.mlp.hook_post", halved)]
    with model.hooks(fwd_hooks=hooks):
        attr = kn.attribute(model, prompts, **RULE)
    for number in range(len(prompts)):
        rows = rows_of(prompts[number])
        place = Place(side, int(prompts[number].post_pos[0]) if side == "encoder" else -1)
        down = hf_model.get_encoder().layers[0].mlp.down_proj
        handle = down.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
        try:
            scores = integrated_gradients(hf_model, rows, 1, rule.nodes, rule.weights, place)
        finally:
            handle.remove()
        equal(attr.scores[number, 1], scores)


def test_texts_longer_than_the_window_beside_shorter_ones(float64_throughout):
    """Padding that sees no token of a text would be NaN; with hooks of the user and without, on both sides."""
    window = 6
    model = tiny_model("T5GemmaForConditionalGeneration", encoder={"sliding_window": window})
    long = kn.Fact("Ireland", "P36", "Dublin", ("It is said that the capital of [X] is the city of [Y].",))
    short = kn.Fact("France", "P36", "Paris", ("[X] [Y]",))
    for side in ("decoder", "encoder"):
        host = kn.host_of(model, side=side)
        prompts = kn.make_prompts(host, [long, short])
        assert prompts.text_length.diff().abs().min() > window
        together = kn.attribute(host, prompts, method="ablation", layers=[0]).scores[:, 0]
        alone = [kn.attribute(host, prompts[number], method="ablation", layers=[0]).scores[:, 0] for number in (0, 1)]
        equal(together[:1], alone[0])
        equal(together[-1:], alone[1])
        probabilities = kn.predict(host, prompts, k=1)["probability"]
        with model.hooks(fwd_hooks=[("encoder_blocks.0.mlp.hook_post", lambda value, hook: value)]):
            hooked = kn.predict(host, prompts, k=1)["probability"]
        np.testing.assert_allclose(hooked, probabilities, rtol=1e-9)
        assert np.isfinite(probabilities).all()


def test_sides_are_not_mixed_up():
    """Errors say whose prompts, layers and rows they are, and what to do."""
    bart, encoder = loaded("BART"), encoder_of("BART")
    of_decoder, of_encoder = prompts_of("BART"), prompts_of("BART", "encoder")
    assert kn.host_of(encoder) is encoder and kn.host_of(encoder, side="decoder").side == "decoder"
    assert (kn.host_of(bart).side, encoder.side) == ("decoder", "encoder")
    with pytest.raises(kn.ArgumentError, match=r"prompts are for the decoder of an encoder-decoder.*side='encoder'"):
        kn.attribute(encoder, of_decoder)
    with pytest.raises(kn.ArgumentError, match="prompts are for the encoder"):
        kn.measure(kn.host_of(bart), of_encoder, kn.Suppress([(0, 1)]))
    with pytest.raises(kn.ArgumentError, match=r"make_prompts\(host_of\(model, side='encoder'\), facts\)"):
        of_decoder.at("subject_last")
    with pytest.raises(kn.ArgumentError, match=r"side='encodr'.*Did you mean 'encoder'"):
        kn.host_of(bart, side="encodr")
    from tests.tiny import loaded as other

    with pytest.raises(kn.ArgumentError, match="has one stack of layers; leave side out"):
        kn.host_of(other("GPT2LMHeadModel"), side="encoder")
    with pytest.raises(kn.UnsupportedModelError, match="stands for no logits"):
        encoder.unembed(torch.zeros(1, encoder.d_model, dtype=encoder.dtype))
    with pytest.raises(kn.ArgumentError, match="encoder_pos is a token of the encoder"):
        replace(of_encoder, encoder_tokens=None, encoder_attention_mask=None)
    with pytest.raises(kn.ArgumentError, match="encoder_pos of row 0 is 99, outside the tokens"):
        replace(of_encoder, encoder_pos=torch.full_like(of_encoder.encoder_pos, 99))


def test_every_public_call_takes_the_host_of_an_encoder(tmp_path):
    """In the place of the model, but where the user runs it."""
    model = loaded("BART")
    encoder = encoder_of("BART")
    prompts = kn.make_prompts(encoder, PUBLIC_FACTS, unknown_answers="leave_out")
    edit = kn.WeightEdit.of(encoder, SOME_NEURONS, torch.full((3, encoder.d_model), 0.25))
    before = state_of(model)
    with pytest.raises(kn.ArgumentError, match="log_prob_gain reads the answer off the residual stream"):
        kn.attribute(encoder, prompts, method="log_prob_gain", neurons=SOME_NEURONS)
    own_passes = {f"{name}.hooks" for name in ("Suppress", "Amplify", "SetTo", "WeightEdit")}
    own_passes |= {"load_model", "reference_attribution"}
    for name, calls in CALLS.items():
        given = model if name in own_passes else encoder
        for index, call in enumerate(calls):
            if (name, index) != ("attribute", LOG_PROB_GAIN):
                call(Case(model=given, prompts=prompts, edit=edit, folder=tmp_path))
    assert not differences(before, state_of(model))
