"""Hooks of the user are part of the model: results equal those of full passes with these hooks."""

from functools import partial
from importlib.metadata import version

import pytest
import torch

import kn_lens as kn
from kn_lens.attribution import reference
from tests.tiny import CAUSAL, MASKED, N_LAYERS, equal, loaded, tiny_model

ARCHITECTURES = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM")
LENGTHS = torch.tensor([6, 9, 6])
NEURONS = kn.NeuronSet([(0, 3), (1, 4), (1, 9), (2, 0)])


def prompts_for(architecture):
    generator = torch.Generator().manual_seed(5)
    mask = (torch.arange(9) < LENGTHS[:, None]).long()
    tokens = torch.randint(10, 40, (3, 9), generator=generator)
    pad = kn.host_of(loaded(architecture)).tokenizer.pad_token_id or 0
    return kn.PromptBatch.from_tokens(
        torch.where(mask.bool(), tokens, pad),
        attention_mask=mask,
        read_pos=LENGTHS - 1 if architecture in CAUSAL else LENGTHS // 2,
        target_ids=torch.randint(10, 40, (3,), generator=generator),
    )


def zero(value, hook):
    return torch.zeros_like(value)


def bend(value, hook):
    """Return a nonlinear change of the value at every position."""
    return value + 0.3 * torch.tanh(value) ** 2


def shift_second(value, hook):
    """Return the value with a change at one position of the prompt."""
    value = value.clone()
    value[:, 1] += torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype)
    return value


def set_fourth(value, hook):
    """Return the value with one neuron set to one activation at every position."""
    value = value.clone()
    value[..., 4] = 0.7
    return value


def double(value, hook):
    return 2 * value


def hooks_of(model, prompts):
    """Return hooks of many kinds, by name."""
    host = kn.host_of(model)
    edit = kn.erase_neurons(model, NEURONS)
    generator = torch.Generator().manual_seed(1)
    rows = edit.old + 0.3 * torch.randn(edit.old.shape, generator=generator, dtype=edit.old.dtype)
    return {
        "erased": edit.hooks(model),
        "edited": kn.WeightEdit.of(model, NEURONS, rows).hooks(model),
        "bent mlp_out": [(host.hook_mlp_out(1), bend)],
        "bent post": [(host.hook_post(1), bend)],
        "doubled post": [(host.hook_post(0), double), (host.hook_post(2), double)],
        "shifted residual stream": [(host.resid_pre(1), shift_second), (host.resid_post(2), shift_second)],
        "set neuron": [(host.hook_post(1), set_fourth)],
        "suppressed above": [(host.hook_mlp_out(2), lambda value, hook: 0 * value)],
    }


KINDS = tuple(hooks_of(loaded(ARCHITECTURES[0]), prompts_for(ARCHITECTURES[0])))


class WithHooks:
    """A model with hooks of the user, which run on an activation after it is replaced."""

    def __init__(self, model, hooks):
        self.model, self.hooks = model, hooks

    def run_with_hooks(self, tokens, fwd_hooks, **options):
        return self.model.run_with_hooks(tokens, fwd_hooks=[*fwd_hooks, *self.hooks], **options)

    def run_with_cache(self, tokens, names_filter, **options):
        seen = {}
        keep = (names_filter, lambda value, hook: seen.update({names_filter: value}))
        logits = self.run_with_hooks(tokens, [keep], **options)
        return logits, seen


def loss_of_silence(model, prompts, layer):
    """Return P(w) - P(0) of each prompt, from full passes."""

    def answers(*hooks):
        with torch.no_grad():
            logits = model.run_with_hooks(prompts.tokens, list(hooks), attention_mask=prompts.attention_mask)
        rows = torch.arange(len(prompts))
        return logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids]

    def silence(activation, hook):
        rows = torch.arange(len(prompts))
        return activation.index_put((rows, prompts.read_pos), torch.zeros((), dtype=activation.dtype))

    return answers() - answers((f"blocks.{layer}.mlp.hook_post", silence))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attribution_under_user_hooks_equals_full_passes_with_them(architecture, kind, monkeypatch):
    monkeypatch.setattr(reference, "host_for", lambda hooked, prompts: kn.host_of(hooked.model))
    model, prompts = loaded(architecture), prompts_for(architecture)
    hooks = hooks_of(model, prompts)[kind]
    with model.hooks(fwd_hooks=[*hooks]):
        attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=2)
    plain = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=2)
    assert not torch.equal(attr.clean, plain.clean)
    hooked = WithHooks(model, hooks)
    for layer in range(N_LAYERS):
        equal(attr.scores[:, layer], kn.reference_attribution(hooked, prompts, layer, rule="gauss-legendre", n_steps=2))
        equal(attr.expected[:, layer], loss_of_silence(hooked, prompts, layer))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["erased", "edited"])
def test_the_hooks_of_an_edit_give_the_scores_of_the_edited_model(architecture, kind):
    model, prompts = loaded(architecture), prompts_for(architecture)
    edit = kn.erase_neurons(model, NEURONS)
    if kind == "edited":
        edit = kn.WeightEdit.of(model, NEURONS, 0.5 * edit.old.flip(-1))
    with model.hooks(fwd_hooks=edit.hooks(model)):
        hooked = kn.attribute(model, prompts)
    with edit.applied(model):
        applied = kn.attribute(model, prompts)
    for name in ("scores", "clean", "expected", "n_points"):
        equal(getattr(hooked, name).double(), getattr(applied, name).double(), 1e-9)
    scores = torch.stack([hooked.scores[:, neuron.layer, neuron.index] for neuron in NEURONS])
    assert bool((scores.abs() < 1e-15).all()) is (kind == "erased")


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_neurons_of_an_mlp_that_a_hook_silences_score_zero(architecture):
    model, prompts = loaded(architecture), prompts_for(architecture)
    for name in ("blocks.1.mlp.hook_out", kn.host_of(model).hook_mlp_out(1)):
        if name not in kn.host_of(model).hook_names or not fires(model, prompts, name):
            continue
        with model.hooks(fwd_hooks=[(name, zero)]):
            attr = kn.attribute(model, prompts, layers=[0, 1], tolerance=0.1)
        assert float(attr.scores[:, 1].abs().max()) == 0 == float(attr.expected[:, 1].abs().max())
        assert attr.n_points[:, 1].max() <= 3
        if name == kn.host_of(model).hook_mlp_out(1):  # the other holds the residual stream as well in Bloom and MPT
            assert float(attr.scores[:, 0].abs().max()) > 0


def fires(model, prompts, name):
    """Return whether a hook is called at all: some hook points of BERT in TransformerLens 3 are never called."""
    seen = []
    model.run_with_hooks(prompts.tokens, fwd_hooks=[(name, lambda value, hook: seen.append(name))])
    return bool(seen)


@pytest.mark.parametrize("method", ["ablation", "single_path", "gradient_x_activation", "log_prob_gain"])
@pytest.mark.parametrize("architecture", ARCHITECTURES[:3])
def test_simpler_scores_under_the_hooks_of_an_edit_are_those_of_the_edited_model(architecture, method):
    model, prompts = loaded(architecture), prompts_for(architecture)
    chosen = {} if method == "gradient_x_activation" else {"neurons": NEURONS}
    edit = kn.WeightEdit.of(model, NEURONS, 0.5 * kn.erase_neurons(model, NEURONS).old.flip(-1))
    with model.hooks(fwd_hooks=edit.hooks(model)):
        hooked = kn.attribute(model, prompts, method=method, **chosen)
    with edit.applied(model):
        applied = kn.attribute(model, prompts, method=method, **chosen)
    torch.testing.assert_close(hooked.scores, applied.scores, rtol=1e-9, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES[:3])
def test_effects_under_user_hooks_equal_full_passes(architecture, kind):
    model, prompts = loaded(architecture), prompts_for(architecture)
    hooks, off = hooks_of(model, prompts)[kind], kn.Suppress(NEURONS)

    def answers(extra):
        with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, *extra]):
            logits = model(prompts.tokens, attention_mask=prompts.attention_mask)
        rows = torch.arange(len(prompts))
        return logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids]

    with model.hooks(fwd_hooks=[*hooks]):
        effect = kn.measure(model, prompts, off)
    equal(torch.tensor(effect.before.to_numpy()), answers([]))
    equal(torch.tensor(effect.after.to_numpy()), answers(off.hooks(model, prompts)))


def test_pytorch_hooks_are_part_of_the_model_too():
    model, prompts = loaded("GPT2LMHeadModel"), prompts_for("GPT2LMHeadModel")
    block = kn.host_of(model).checkpoint.transformer.h[1].mlp
    handle = block.register_forward_hook(lambda module, args, output: 0 * output)
    try:
        attr = kn.attribute(model, prompts)
    finally:
        handle.remove()
    assert float(attr.scores[:, 1].abs().max()) == 0 and attr.unconverged == []


def test_a_hook_that_detaches_the_gradient_shows_in_the_gap():
    """A detached activation keeps its effect: the expected sum comes from passes, not from gradients."""
    model, prompts = loaded("LlamaForCausalLM"), prompts_for("LlamaForCausalLM")
    name = kn.host_of(model).hook_mlp_out(1)
    with model.hooks(fwd_hooks=[(name, lambda value, hook: value.detach().requires_grad_(value.requires_grad))]):
        attr = kn.attribute(model, prompts, layers=[1], max_points=5)
    plain = kn.attribute(model, prompts, layers=[1])
    equal(attr.expected[:, 1], plain.expected[:, 1])
    assert len(attr.unconverged) == len(prompts)


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_has_user_hooks_is_true_only_while_hooks_are_on_the_model(architecture):
    model = loaded(architecture)
    host = kn.host_of(model)
    assert not host.has_user_hooks
    for direction in ("fwd_hooks", "bwd_hooks"):
        with model.hooks(**{direction: [(host.resid_pre(1), lambda value, hook: None)]}):
            assert host.has_user_hooks
    module = host.checkpoint.get_submodule("")
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        with register(partial(lambda *_: None)):
            assert host.has_user_hooks
    assert not host.has_user_hooks


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_hooks_on_the_norms_of_the_checkpoint_are_called(architecture):
    """TransformerLens skips its norms where they have no hooks, and these hooks would be skipped with them."""
    model, prompts = loaded(architecture), prompts_for(architecture)
    norm = model.ln_final.original_component
    plain = kn.measure(model, prompts, []).before
    handle = norm.register_forward_hook(lambda module, args, output: output + 0.5 * torch.tanh(output.flip(-1)))
    try:
        found = torch.tensor(kn.measure(model, prompts, []).before.to_numpy())
        with torch.no_grad():
            logits = model(prompts.tokens, attention_mask=prompts.attention_mask)
    finally:
        handle.remove()
    rows = torch.arange(len(prompts))
    equal(found, logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids])
    assert not torch.allclose(found, torch.tensor(plain.to_numpy()), rtol=1e-3)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_a_replaced_forward_is_part_of_the_model(architecture):
    model, prompts = loaded(architecture), prompts_for(architecture)
    attn = model.blocks[1].attn
    name, half = kn.host_of(model).hook_attn_out(1), lambda value, hook: 0.5 * value
    with model.hooks(fwd_hooks=[(name, half)]):
        hooked = kn.attribute(model, prompts, quadrature="midpoint", n_steps=2)

    def forward(*args, **kwargs):
        output = type(attn).forward(attn, *args, **kwargs)
        return (0.5 * output[0], *output[1:]) if isinstance(output, tuple) else 0.5 * output

    attn.__dict__["forward"] = forward
    try:
        exchanged = kn.attribute(model, prompts, quadrature="midpoint", n_steps=2)
    finally:
        del attn.__dict__["forward"]
    equal(exchanged.scores, hooked.scores)
    equal(exchanged.expected, hooked.expected)


def test_hooks_left_by_transformers_are_no_user_hooks():
    model, prompts = tiny_model("GPT2LMHeadModel"), prompts_for("GPT2LMHeadModel")
    model.run_with_cache(prompts.tokens)
    with torch.no_grad():
        kn.host_of(model).checkpoint(prompts.tokens, output_hidden_states=True, output_attentions=True)
    assert not kn.host_of(model).has_user_hooks


@pytest.mark.skipif(
    version("transformer-lens").startswith("3."), reason="TransformerLens 3 does not keep what hooks were"
)
@pytest.mark.parametrize("call", [kn.predict, kn.attribute, lambda model, prompts: kn.measure(model, prompts, [])])
def test_hooks_for_the_rows_of_a_batch_are_refused(call):
    """The library runs rows in another order, so that such hooks would act on the wrong rows without an error."""
    model, prompts = loaded("GPT2LMHeadModel"), prompts_for("GPT2LMHeadModel")
    with model.hooks(fwd_hooks=kn.Suppress(NEURONS).hooks(model, prompts)):
        with pytest.raises(kn.HookError, match=r"rows of one batch.*erase_neurons"):
            call(model, prompts)
    everywhere = kn.Suppress(NEURONS, position="all").hooks(model, prompts)
    with model.hooks(fwd_hooks=everywhere):
        found = kn.measure(model, prompts, []).before
    with kn.erase_neurons(model, NEURONS).applied(model):
        expected = kn.measure(model, prompts, []).before
    equal(torch.tensor(found.to_numpy()), torch.tensor(expected.to_numpy()))


def test_a_forward_replaced_by_the_user_is_kept():
    model, prompts = loaded("GPT2LMHeadModel"), prompts_for("GPT2LMHeadModel")
    block = model.blocks[0]
    forward = partial(type(block).forward, block)
    block.__dict__["forward"] = forward  # TransformerLens hands attributes on to the checkpoint's own block
    try:
        kn.attribute(model, prompts, layers=[1], tolerance=0.1)
        assert block.__dict__["forward"] is forward
    finally:
        del block.__dict__["forward"]
