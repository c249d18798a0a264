"""Encoder-decoders as hosts: the decoder's layers, logits to Hugging Face's own, and what is refused."""

import copy
from importlib.metadata import version
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers

import kn_lens as kn
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts import EncoderInput, host_of
from tests.encoder_decoders import (
    FACTS,
    NAMES,
    NEED_VERSION_4,
    TEMPLATES,
    loaded,
    logits_of,
    plain,
    prompts_of,
    rows_of,
)
from tests.public_calls import CALLS, SOME, Case
from tests.public_calls import FACTS as PUBLIC_FACTS
from tests.reliability.state import differences, state_of
from tests.tiny import D_MLP, D_MODEL, ENCODER_DECODERS, N_CTX, N_LAYERS, equal, tiny_checkpoint, tiny_hf_model


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_are_those_of_the_decoder(name):
    model = loaded(name)
    host = host_of(model)
    assert (host.kind, host.side, host.architecture) == ("encoder-decoder", "decoder", ENCODER_DECODERS[name][0])
    assert (host.n_layers, host.d_mlp, host.d_model) == (N_LAYERS, D_MLP, D_MODEL)
    assert host.n_ctx == (N_CTX if name in ("BART", "mBART", "T5Gemma") else None)
    assert host.norm_after_mlp == (name == "T5Gemma")
    assert ("gate" in host.blocks[0].mlp.submodules) == (name in ("FLAN-T5", "mT5", "T5Gemma"))
    prompts = prompts_of(name)
    inputs = {"attention_mask": prompts.encoder_attention_mask, "decoder_input_ids": prompts.tokens}
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.encoder_tokens, **inputs)
    for layer in range(N_LAYERS):
        post, mlp_out = cache[host.hook_post(layer)], cache[host.hook_mlp_out(layer)]
        assert post.shape == (*prompts.tokens.shape, D_MLP)
        assert host.is_W_out_product(layer, post.flatten(0, 1), mlp_out.flatten(0, 1))
        assert cache[host.hook_attn_out(layer)].shape == cache[host.resid_pre(layer)].shape
    if name in ("BART", "T5"):  # T5 has a norm and a scale between the residual stream and the head
        resid = cache[host.resid_post(N_LAYERS - 1)][:, -1]
        with torch.no_grad():
            expected = model(prompts.encoder_tokens, **inputs)[:, -1]
        equal(host.unembed(resid), expected)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_hugging_face(name, float64_throughout):
    """Each row alone, without padding, in Hugging Face's model; all rows together, padded, in the host."""
    host, prompts, hf_model = host_of(loaded(name)), prompts_of(name), plain(name)
    with torch.no_grad():
        expected = torch.stack([logits_of(hf_model, row) for row in rows_of(prompts)])
        logits = host.logits_at_read_pos(
            prompts.tokens, prompts.attention_mask, prompts.read_pos, encoder=prompts.encoder_input
        )
    equal(logits, expected)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_one_prompt_equal_hugging_faces_to_the_bit(name):
    """But for the bias that TransformerLens moves into the head of a BART."""
    host, hf_model = host_of(loaded(name)), plain(name)
    prompts = kn.make_prompts(loaded(name), FACTS[0], templates=TEMPLATES[0])
    (row,) = rows_of(prompts)
    with torch.no_grad():
        expected = logits_of(hf_model, row)
        logits = host.logits(prompts.tokens, prompts.attention_mask, encoder=prompts.encoder_input)[0, -1]
    if name in ("BART", "mBART"):
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_passes_the_check_of_its_logits(name, tmp_path):
    architecture, settings = ENCODER_DECODERS[name]
    tiny_checkpoint(architecture, tmp_path, dtype=torch.float32, **settings)
    model = kn.load_model(tmp_path, device="cpu")
    check = kn.check_host(model)
    assert check.reference == f"the same weights in a plain {architecture}"
    assert check.difference < check.limit
    assert kn.check_host(model, tmp_path).difference < check.limit


@pytest.mark.parametrize("name", ["BART", "T5Gemma"])
def test_other_logits_are_refused(name):
    """A reference that reads its text otherwise: the encoder is part of the comparison."""
    model, other = loaded(name), copy.deepcopy(plain(name))
    encoder = other.get_encoder()
    layers = encoder.layers
    layers[0], layers[1] = layers[1], layers[0]
    with pytest.raises(UnsupportedModelError, match="computes other logits"):
        kn.check_host(model, other)


def test_the_encoder_runs_once_for_each_text(monkeypatch):
    """However many rows and passes there are."""
    from transformers.models.bart.modeling_bart import BartEncoder

    n_texts: list[int] = []
    forward = BartEncoder.forward

    def counted(self, input_ids=None, *args, **kwargs):
        n_texts.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    prompts = prompts_of("BART")
    monkeypatch.setattr(BartEncoder, "forward", counted)
    kn.attribute(loaded("BART"), prompts, preset="paper")
    assert sum(n_texts) == len({tuple(row.encoder_tokens.tolist()) for row in rows_of(prompts)})


def test_an_encoder_that_sees_windows_reads_texts_of_one_length(float64_throughout):
    """The padding of the shorter ones, beyond the window, would attend to nothing."""
    architecture, _ = ENCODER_DECODERS["T5Gemma"]
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    side = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, **sizes}
    side |= {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    with TemporaryDirectory() as directory:
        tiny_checkpoint(architecture, directory, encoder=side, decoder=side)
        hf_model = getattr(transformers, architecture).from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager"
        )
        model = kn.load_model(directory, dtype=torch.float64, device="cpu")
    prompts = kn.make_prompts(model, FACTS)
    lengths = prompts.encoder_attention_mask.sum(-1)
    assert lengths.max() > lengths.min() + 4
    found = kn.predict(model, prompts, k=1)["probability"].to_numpy()
    with torch.no_grad():
        expected = [float(logits_of(hf_model.eval(), row).softmax(-1).max()) for row in rows_of(prompts)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_encoders_input_is_padded_and_selected_by_rows():
    tokens = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0], [5, 6, 0, 0]])
    encoder = EncoderInput(tokens=tokens, attention_mask=(tokens > 0).long())
    texts, text_of_row = encoder.distinct()
    assert torch.equal(texts.tokens[text_of_row], tokens) and len(texts.tokens) == 2
    assert encoder.select(torch.tensor([2, 0])).cropped().tokens.tolist() == [[5, 6], [5, 6]]


@pytest.mark.parametrize("name", ["BART", "mBART"])
def test_a_load_that_fails_leaves_the_bias_of_the_head(name, monkeypatch):
    """TransformerLens moves it while it wraps the model."""
    architecture, settings = ENCODER_DECODERS[name]
    hf_model = tiny_hf_model(architecture, **settings)
    bias = hf_model.final_logits_bias.clone()
    assert bias.any()

    def fail(model):
        raise UnsupportedModelError("no")

    monkeypatch.setattr("kn_lens.hosts.loading.host_of", fail)
    with pytest.raises(UnsupportedModelError, match="no"):
        kn.load_model(hf_model)
    assert torch.equal(hf_model.final_logits_bias, bias)


@pytest.mark.parametrize("name", ["BART", "T5Gemma"])
def test_hooks_of_the_user_on_the_encoder_are_part_of_the_model(name, float64_throughout):
    model, prompts = loaded(name), prompts_of(name)
    hooks = [("encoder_blocks.1.hook_out", lambda value, hook: 0.5 * value)]
    inputs = {"attention_mask": prompts.encoder_attention_mask, "decoder_input_ids": prompts.tokens}
    with torch.no_grad():
        logits = model.run_with_hooks(prompts.encoder_tokens, fwd_hooks=hooks, **inputs)
    rows = torch.arange(prompts.n_rows)
    expected = logits[rows, prompts.read_pos].softmax(-1).amax(-1)
    with model.hooks(fwd_hooks=hooks):
        found = kn.predict(model, prompts, k=1)
        attr = kn.attribute(model, prompts, method="gradient_x_activation")
    equal(torch.tensor(found["probability"].to_numpy()), expected)
    with model.hooks(fwd_hooks=hooks):
        reference = kn.reference_attribution(model, prompts, 1, rule="right", n_steps=1)
    equal(attr.scores[:, 1], reference)


def test_every_public_call_takes_an_encoder_decoder(tmp_path):
    model = loaded("BART")
    prompts = kn.make_prompts(model, PUBLIC_FACTS, unknown_answers="leave_out")
    edit = kn.WeightEdit.of(model, SOME, torch.full((3, D_MODEL), 0.25))
    case = Case(model=model, prompts=prompts, edit=edit, folder=tmp_path)
    before = state_of(model)
    for calls in CALLS.values():
        for call in calls:
            call(case)
    assert not differences(before, state_of(model))


@pytest.mark.parametrize("architecture", ["LongT5ForConditionalGeneration", "PegasusForConditionalGeneration"])
def test_other_encoder_decoders_are_refused(architecture):
    cls = getattr(transformers, architecture)
    with torch.device("meta"):
        hf_model = cls(cls.config_class()).eval()
    with pytest.raises(UnsupportedModelError, match="not known where an answer is read; take a T5"):
        kn.load_model(hf_model)


@pytest.mark.skipif(not version("transformer-lens").startswith("3."), reason="of TransformerLens 3")
@pytest.mark.parametrize("name", NEED_VERSION_4)
def test_t5_needs_a_newer_transformer_lens(name):
    architecture, settings = ENCODER_DECODERS[name]
    with pytest.raises(UnsupportedModelError, match=r"TransformerLens 3 cannot run its blocks .* TransformerLens 4"):
        kn.load_model(tiny_hf_model(architecture, **settings))
