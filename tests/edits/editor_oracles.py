"""Editors in plain loops over the Hugging Face model, with forward hooks and an Adam of their own."""

from dataclasses import replace

import torch

import kn_lens as kn
from kn_lens.edits.targets import PREFIXES
from tests.tiny import TEXTS, tiny_tokenizer

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


def out_module(hf_model, layer):
    """The last linear map of an MLP."""
    if hasattr(hf_model, "transformer"):
        return hf_model.transformer.h[layer].mlp.c_proj
    return hf_model.model.layers[layer].mlp.down_proj


def block(hf_model, layer):
    return hf_model.transformer.h[layer] if hasattr(hf_model, "transformer") else hf_model.model.layers[layer]


def W_out(hf_model, layer):
    """W_out as rows of neurons; Conv1D holds it so, Linear the other way round."""
    weight = out_module(hf_model, layer).weight
    return weight if hasattr(hf_model, "transformer") else weight.T


def moments_of(hf_model, architecture, layer, texts=TEXTS):
    """E[k k^T], one text after another."""
    tokenizer = tiny_tokenizer(architecture)
    keys = []
    handle = out_module(hf_model, layer).register_forward_pre_hook(lambda module, args: keys.append(args[0][0]))
    with torch.no_grad():
        for text in texts:
            hf_model(torch.tensor([tokenizer(text)["input_ids"]]))
    handle.remove()
    keys = torch.cat(keys)
    return torch.stack([torch.outer(key, key) for key in keys]).mean(0)


def prompts_of(model, fact, new, prefixes=PREFIXES):
    """The prompts of an update, after each prefix too, and the one of the essence."""
    usable = kn.make_prompts(model, replace(fact, object=new)).template
    templates = (*usable, *(f"{prefix} {usable[0]}" for prefix in prefixes))
    prompts = kn.make_prompts(model, replace(fact, object=new, templates=templates), unknown_answers="leave_out")
    essence = kn.make_prompts(model, replace(fact, object=new, templates=("[X] is a [Y]",))).at("subject_last")
    return prompts.at("subject_last"), essence


def logits_of(hf_model, prompts, layer=None, delta=None):
    """Logits at the read position, with delta added to the output of W_out at the subject's last token."""
    rows = torch.arange(prompts.n_rows)

    def add(module, args, output):
        changed = output.clone()
        changed[rows, prompts.post_pos] = output[rows, prompts.post_pos] + delta
        return changed

    handle = None if delta is None else out_module(hf_model, layer).register_forward_hook(add)
    logits = hf_model(prompts.tokens, attention_mask=prompts.attention_mask).logits[rows, prompts.read_pos]
    if handle is not None:
        handle.remove()
    return logits


def answer_loss(prompts, logits):
    """The mean over prompts of the mean over their tokens of -log P."""
    log_probs = logits.log_softmax(-1)[torch.arange(prompts.n_rows), prompts.target_ids]
    losses = [-log_probs[prompts.prompt_index == prompt].mean() for prompt in range(len(prompts))]
    return sum(losses) / len(losses)


def adam(parameter, loss_of, n_steps, rate, after_step, enough):
    """Adam as published (Kingma and Ba 2015)."""
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step in range(1, n_steps + 1):
        moved = parameter.clone().requires_grad_()
        loss = loss_of(moved)
        if loss < enough:
            break
        (gradient,) = torch.autograd.grad(loss, moved)
        first = ADAM_BETAS[0] * first + (1 - ADAM_BETAS[0]) * gradient
        second = ADAM_BETAS[1] * second + (1 - ADAM_BETAS[1]) * gradient**2
        mean, scale = first / (1 - ADAM_BETAS[0] ** step), second / (1 - ADAM_BETAS[1] ** step)
        parameter = after_step(parameter - rate * mean / (scale.sqrt() + ADAM_EPS))
    return parameter


def target_of(hf_model, prompts, essence, layer, length, editor):
    """delta, by the formula of the loss."""
    with torch.no_grad():
        before = logits_of(hf_model, essence)[:1].log_softmax(-1)

    def loss_of(delta):
        after = logits_of(hf_model, essence, layer, delta)[:1].log_softmax(-1)
        divergence = (after.exp() * (after - before)).sum()
        decay = 0 if not delta.any() else editor.weight_decay * delta.norm() / length**2
        loss = answer_loss(prompts, logits_of(hf_model, prompts, layer, delta))
        return loss + editor.kl_factor * divergence + decay

    def clamp(delta):
        longest = editor.clamp * length
        return delta * longest / delta.norm() if delta.norm() > longest else delta

    start = torch.zeros(W_out(hf_model, layer).shape[1], dtype=torch.float64)
    return adam(start, loss_of, editor.n_steps, editor.learning_rate, clamp, 0.05)


def at_subject(hf_model, prompts, module, entering=False):
    """The mean over prompts of what enters or leaves a module at the subject's last token."""
    values = []

    def read(module, args, output=None):
        value = args[0] if entering else output[0] if isinstance(output, tuple) else output
        values.append(value[torch.arange(len(value)), prompts.post_pos])

    register = module.register_forward_pre_hook if entering else module.register_forward_hook
    handle = register(read)
    with torch.no_grad():
        hf_model(prompts.tokens, attention_mask=prompts.attention_mask)
    handle.remove()
    first_rows = [int((prompts.prompt_index == prompt).nonzero()[0]) for prompt in range(len(prompts))]
    return values[0][first_rows].mean(0)


def rome(hf_model, architecture, model, updates, editor, layer):
    """The new W_out, one fact after another."""
    C = moments_of(hf_model, architecture, layer)
    C = C + editor.ridge * C.diagonal().median() * torch.eye(len(C))
    for fact, new in updates.items():
        prompts, essence = prompts_of(model, fact, new, editor.prefixes)
        key = at_subject(hf_model, prompts, out_module(hf_model, layer), entering=True)
        value = at_subject(hf_model, prompts, out_module(hf_model, layer))
        delta = target_of(hf_model, prompts, essence, layer, value.norm(), editor)
        u = torch.linalg.inv(C) @ key
        with torch.no_grad():
            W_out(hf_model, layer).add_(torch.outer(u, delta) / (u @ key))
    return {layer: W_out(hf_model, layer).detach()}


def spread(hf_model, model, updates, editor, layers, change_of):
    """The new W_out of each layer, by MEMIT's loop over layers."""
    last = layers[-1]
    place = out_module(hf_model, last) if len(layers) == 1 else block(hf_model, last)
    built = [prompts_of(model, fact, new, editor.prefixes) for fact, new in updates.items()]
    targets = []
    for prompts, essence in built:
        value = at_subject(hf_model, prompts, place)
        targets.append(value + target_of(hf_model, prompts, essence, last, value.norm(), editor))
    for number, layer in enumerate(layers):
        keys = torch.stack([at_subject(hf_model, p, out_module(hf_model, layer), entering=True) for p, _ in built])
        now = torch.stack([at_subject(hf_model, p, place) for p, _ in built])
        missing = (torch.stack(targets) - now) / (len(layers) - number)
        with torch.no_grad():
            W_out(hf_model, layer).add_(change_of(layer, keys, missing))
    return {layer: W_out(hf_model, layer).detach() for layer in layers}


def memit(hf_model, architecture, model, updates, editor, layers):
    moments = {layer: moments_of(hf_model, architecture, layer) for layer in layers}

    def change_of(layer, K, R):
        C = moments[layer]
        C = C + editor.ridge * C.diagonal().median() * torch.eye(len(C))
        return torch.linalg.inv(editor.weight * C + K.T @ K) @ K.T @ R

    return spread(hf_model, model, updates, editor, layers, change_of)


def alphaedit(hf_model, architecture, model, updates, editor, layers):
    moments = {layer: moments_of(hf_model, architecture, layer) for layer in layers}
    earlier = {layer: [] for layer in layers}
    for fact, answer in editor.edited.items():
        prompts, _ = prompts_of(model, fact, answer, editor.prefixes)
        for layer in layers:
            earlier[layer].append(at_subject(hf_model, prompts, out_module(hf_model, layer), entering=True))

    def change_of(layer, K, R):
        U, S, _ = torch.linalg.svd(moments[layer])
        P = U[:, editor.threshold > S] @ U[:, editor.threshold > S].T
        K0 = torch.stack(earlier[layer]) if earlier[layer] else torch.zeros(0, len(P), dtype=P.dtype)
        matrix = P @ (K0.T @ K0 + K.T @ K) + editor.ridge * torch.eye(len(P))
        return torch.linalg.inv(matrix) @ P @ K.T @ R

    return spread(hf_model, model, updates, editor, layers, change_of)


def ft(hf_model, architecture, model, updates, editor, layer):
    """Adam on the weight itself, clamped around its start; by forward hooks that replace the product."""
    facts = [replace(fact, object=new) for fact, new in updates.items()]
    prompts = kn.make_prompts(model, facts, unknown_answers="leave_out")
    module, start = out_module(hf_model, layer), W_out(hf_model, layer).detach().clone()

    def loss_of(weight):
        def product(module, args, output):
            bias = 0 if module.bias is None else module.bias
            return args[0] @ weight + bias

        handle = module.register_forward_hook(product)
        loss = answer_loss(prompts, logits_of(hf_model, prompts))
        handle.remove()
        return loss

    def clamp(weight):
        return torch.maximum(torch.minimum(weight, start + editor.epsilon), start - editor.epsilon)

    return {layer: adam(start, loss_of, editor.n_steps, editor.learning_rate, clamp, 0.01).detach()}
