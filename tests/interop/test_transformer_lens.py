"""TransformerLens: activation patching beside an intervention, ``ActivationCache``, direct logit attribution."""

import torch

import kn_lens as kn
from tests import oracle


def test_suppression_composes_with_activation_patching_in_run_with_hooks(model, fact, neurons):
    """The state of another subject is patched in below suppressed neurons; plain PyTorch hooks give the same."""
    other = kn.FactSet.world().find("France", relation="P36")
    template = "The country [X] has the capital [Y]"
    ours, theirs = (kn.make_prompts(model, one, templates=[template]) for one in (fact, other))
    subject = ours.tokens[0] != theirs.tokens[0]
    assert subject.sum() == 1
    name = "blocks.0.hook_resid_post"
    _, cache = model.run_with_cache(theirs.tokens)

    def patch(resid, hook):
        return torch.where(subject[:, None], cache[name], resid)

    hooks = [(name, patch), *kn.Suppress(neurons).hooks(model, ours)]
    found = model.run_with_hooks(ours.tokens, fwd_hooks=hooks)

    hf = kn.host_of(model).checkpoint
    handles = [hf.transformer.h[0].register_forward_hook(lambda _, __, out: replaced(out, patch))]
    for layer in {neuron.layer for neuron in neurons}:
        index = [neuron.index for neuron in neurons if neuron.layer == layer]
        handles.append(oracle.W_OUT["GPT2LMHeadModel"](hf, layer).register_forward_pre_hook(zeroing(index)))
    try:
        with torch.no_grad():
            expected = hf(ours.tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert not torch.allclose(found[0, -1], model(ours.tokens)[0, -1], atol=0.1)


def replaced(out, patch):
    return (patch(out[0], None), *out[1:]) if isinstance(out, tuple) else patch(out, None)


def zeroing(index):
    def pre_hook(_, args):
        post = args[0].clone()
        post[:, -1, index] = 0
        return (post,)

    return pre_hook


def test_direct_logit_attribution_of_a_neuron_equals_the_effect_of_suppressing_it(model, prompts, neurons):
    """The logit of the answer is a sum over components; a neuron adds to it what its suppression takes away."""
    host, rows = kn.host_of(model), torch.arange(len(prompts))
    last = host.n_layers - 1
    neuron = next(one for one in neurons if one.layer == last)
    run = dict(attention_mask=prompts.attention_mask)
    logits, cache = model.run_with_cache(prompts.tokens, **run)
    norm = host.checkpoint.transformer.ln_f

    def in_logits(stack):
        """Return each component's part of the answer logit; raw weights keep the gain of the final norm."""
        normed = cache.apply_ln_to_stack(stack, layer=-1) * norm.weight
        return (normed[:, rows, prompts.read_pos] * model.W_U.T[prompts.target_ids]).sum(-1)

    parts = in_logits(cache.decompose_resid(-1))
    whole = parts.sum(0) + (norm.bias * model.W_U.T[prompts.target_ids]).sum(-1)
    answer = logits[rows, prompts.read_pos, prompts.target_ids]
    torch.testing.assert_close(whole, answer, atol=1e-9, rtol=0)

    written = cache[host.hook_post(last)][..., neuron.index, None] * host.W_out(last)[neuron.index]
    assert (in_logits(written[None])[0] > 0).all()  # it speaks for the answer in every wording
    with model.hooks(fwd_hooks=kn.Suppress(kn.NeuronSet([neuron])).hooks(model, prompts)):
        _, without = model.run_with_cache(prompts.tokens, **run)
    name = f"blocks.{last}.hook_resid_post"
    torch.testing.assert_close(
        (cache[name] - without[name])[rows, prompts.read_pos], written[rows, prompts.read_pos], atol=1e-10, rtol=0
    )
