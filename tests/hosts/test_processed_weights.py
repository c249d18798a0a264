"""Edits of weights that TransformerLens has processed: erasing means the same there, and nothing else is allowed."""

import functools
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from tests.edit_cases import FACTS, NEURONS, UPDATE, bits, logits, random_edit, same
from tests.tiny import D_MODEL, tiny_model


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_erased_neurons_of_processed_weights(architecture):
    """They are suppressed, exactly, and the raw model's; TransformerLens processes in float32, whatever the weights."""
    raw, model = tiny_model(architecture), tiny_model(architecture)
    model.enable_compatibility_mode(disable_warnings=True)
    prompts = kn.make_prompts(raw, FACTS)
    edits = [kn.erase_neurons(one, NEURONS) for one in (raw, model)]
    assert not torch.equal(edits[0].old, edits[1].old)

    def log_probs(model, hooks=()):
        return kn.host_of(model).logits(prompts.tokens, prompts.attention_mask, fwd_hooks=hooks).log_softmax(-1)

    with torch.no_grad():
        clean = log_probs(model)
        off = log_probs(model, kn.Suppress(NEURONS, position="all").hooks(model, prompts))
        by_hooks = log_probs(model, edits[1].hooks(model))
        with edits[0].applied(raw), edits[1].applied(model):
            expected, found = log_probs(raw), log_probs(model)
        assert torch.equal(log_probs(model), clean)
    for other in (off, by_hooks):
        torch.testing.assert_close(found, other, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - clean).abs().max() > 0.1


def test_erased_neurons_of_centred_weights_are_the_raw_models():
    """As above in float64 throughout: only what centring does is done, by its definition."""
    raw, model = tiny_model("GPT2LMHeadModel"), tiny_model("GPT2LMHeadModel")
    for name, weight in model.original_model.named_parameters():
        if "wpe" in name or "c_proj" in name:  # what writes to the residual stream, but the embeddings tied to the head
            weight -= weight.mean(-1, keepdim=True)
    centred = replace(kn.host_of(model), raw=False)
    erased = kn.WeightEdit.of(centred, NEURONS, torch.zeros(len(NEURONS), D_MODEL))
    assert not torch.equal(erased.old, kn.erase_neurons(raw, NEURONS).old)
    with kn.erase_neurons(raw, NEURONS).applied(raw), erased.applied(centred):
        expected, found = (logits(one).log_softmax(-1) for one in (raw, model))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_what_has_no_meaning_in_processed_weights_is_refused(tmp_path):
    raw, model = tiny_model("GPT2LMHeadModel"), tiny_model("GPT2LMHeadModel")
    kn.erase_neurons(raw, NEURONS).save(tmp_path / "raw")
    applied = kn.erase_neurons(model, NEURONS).apply_(model)
    model.enable_compatibility_mode(disable_warnings=True)
    before = bits(model)
    edit = kn.WeightEdit.load(tmp_path / "raw")
    for use in (
        applied.undo_,  # what was zero still is, and its old value is no longer what it was
        edit.apply_,
        edit.hooks,
        functools.partial(edit.apply_, force=True),
        lambda model: kn.update_fact(model, **UPDATE),
        lambda model: kn.erase_neurons(model, NEURONS, value="Tokyo"),
        lambda model: kn.export(model, kn.erase_neurons(model, NEURONS), tmp_path / "edited"),
    ):
        with pytest.raises(kn.EditError, match=r"processed by TransformerLens \(norms folded, rows centred\)"):
            use(model)
    for use in (random_edit, lambda model: kn.erase_neurons(model, kn.NeuronSet([(0, 4)])).scaled(0.5)):
        with pytest.raises(kn.EditError, match="where only zero means for a row what it means"):
            use(model)
    assert same(before, bits(model)) and not (tmp_path / "edited").exists()


def test_an_edit_of_processed_weights_says_so_in_its_file(tmp_path):
    raw, model = tiny_model("GPT2LMHeadModel"), tiny_model("GPT2LMHeadModel")
    model.enable_compatibility_mode(disable_warnings=True)
    kn.erase_neurons(model, NEURONS).save(tmp_path / "edit")
    edit = kn.WeightEdit.load(tmp_path / "edit")
    assert not edit.checkpoint.raw and "of processed weights of" in repr(edit)
    with edit.applied(model):
        assert not kn.host_of(model).W_out(1)[7].any()
    for force in (False, True):
        with pytest.raises(kn.EditError, match=r"made of weights .* processed, and those of .* are raw"):
            edit.apply_(raw, force=force)
    with pytest.raises(kn.EditError, match=r"for different models: .*, processed"):
        kn.erase_neurons(raw, NEURONS) + edit


def test_processed_weights_of_masked_models_are_attributed_as_the_raw_ones():
    raw, model = tiny_model("BertForMaskedLM"), tiny_model("BertForMaskedLM")
    with pytest.warns(UserWarning, match="does not support fold_ln"):
        model.enable_compatibility_mode(disable_warnings=True)
    prompts = kn.make_prompts(raw, FACTS[:2])
    for positions in ("read", "subject_last"):
        expected, found = (kn.attribute(one, prompts, positions=positions) for one in (raw, model))
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-6)
