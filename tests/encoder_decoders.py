"""Encoder-decoders for tests: tiny ones, facts to query them for, and plain loops over Hugging Face's own models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kn_lens as kn
from tests.tiny import COUNTRIES, ENCODER_DECODERS, tiny_checkpoint, tiny_model

NEED_VERSION_4 = ("T5", "FLAN-T5", "mT5")
NAMES = tuple(
    name for name in ENCODER_DECODERS if name not in NEED_VERSION_4 or not version("transformer-lens").startswith("3.")
)

TEMPLATES = (
    "The capital of [X] is [Y].",
    "[Y] is the capital of [X].",
    "[X]'s capital city, [Y], lies on a river.",
)
FACTS = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:3]]

_W_OUT: dict[str, Callable[[Any, int], nn.Module]] = {
    "T5ForConditionalGeneration": lambda stack, layer: stack.block[layer].layer[-1].DenseReluDense.wo,
    "MT5ForConditionalGeneration": lambda stack, layer: stack.block[layer].layer[-1].DenseReluDense.wo,
    "BartForConditionalGeneration": lambda stack, layer: stack.layers[layer].fc2,
    "MBartForConditionalGeneration": lambda stack, layer: stack.layers[layer].fc2,
    "T5GemmaForConditionalGeneration": lambda stack, layer: stack.layers[layer].mlp.down_proj,
}


class Place(NamedTuple):
    """Where activations are read and changed: a stack, and the position of a token that it reads."""

    side: str
    position: int


READ = Place("decoder", -1)
"""The decoder's last token, which is read."""


@cache
def loaded(name: str) -> Any:
    """Return the tiny model of a name, from disk, the same one at every call."""
    architecture, settings = ENCODER_DECODERS[name]
    model = tiny_model(architecture, **settings)
    prompts = kn.make_prompts(model, FACTS[0])
    kn.predict(model, prompts)  # TransformerLens readies some modules when they first run
    with torch.no_grad():  # and transformers puts hooks on some when outputs are first recorded
        model.run_with_cache(
            prompts.encoder_tokens,
            attention_mask=prompts.encoder_attention_mask,
            decoder_input_ids=prompts.tokens,
            names_filter=[],
        )
    return model


@cache
def plain(name: str) -> Any:
    """Return the model of the same checkpoint as transformers reads it."""
    import transformers

    architecture, settings = ENCODER_DECODERS[name]
    with TemporaryDirectory() as directory:
        tiny_checkpoint(architecture, directory, **settings)
        cls = getattr(transformers, architecture)
        hf_model = cls.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    return hf_model.eval().requires_grad_(False)


@cache
def prompts_of(name: str, side: str = "decoder") -> kn.PromptBatch:
    """Return prompts of `FACTS` for a side of the model of a name."""
    return kn.make_prompts(kn.host_of(loaded(name), side=side), FACTS)


class Row(NamedTuple):
    """One row of a batch, without padding."""

    encoder_tokens: Tensor
    tokens: Tensor
    target: int


def log_probs_in_own_pass(model: Any, prompts: kn.PromptBatch, hooks: list[Any]) -> Tensor:
    """Return the log-probability of each prompt's answer in a pass that a user makes, with hooks."""
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits = model(
            prompts.encoder_tokens,
            attention_mask=prompts.encoder_attention_mask,
            decoder_input_ids=prompts.tokens,
        )
    rows = torch.arange(prompts.n_rows)
    log_prob = logits[rows, prompts.read_pos].log_softmax(-1)[rows, prompts.target_ids]
    return torch.zeros(len(prompts), dtype=log_prob.dtype).index_add(0, prompts.prompt_index, log_prob)


def rows_of(prompts: kn.PromptBatch) -> list[Row]:
    """Return the rows of a batch, which are read at their last token."""
    rows = []
    for number in range(prompts.n_rows):
        encoder_tokens = prompts.encoder_tokens[number][prompts.encoder_attention_mask[number].bool()]
        tokens = prompts.tokens[number][prompts.attention_mask[number].bool()]
        assert int(prompts.read_pos[number]) == len(tokens) - 1
        rows.append(Row(encoder_tokens, tokens, int(prompts.target_ids[number])))
    return rows


def logits_of(hf_model: Any, row: Row) -> Tensor:
    """Return the logits of the last token of the decoder, from a pass over this row alone."""
    return hf_model(input_ids=row.encoder_tokens[None], decoder_input_ids=row.tokens[None]).logits[0, -1]


@contextmanager
def changed_post(
    hf_model: Any, layer: int, change: Callable[[Tensor], Tensor | None], place: Place = READ
) -> Iterator[None]:
    """Let ``change`` see, and replace unless it returns None, what enters W_out of a layer at a place."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        changed = change(args[0][0, place.position])
        if changed is None:
            return None
        number = torch.tensor([place.position % args[0].shape[1]])
        return (args[0].index_copy(1, number, changed[None, None]),)

    stack = hf_model.get_encoder() if place.side == "encoder" else hf_model.get_decoder()
    handle = _W_OUT[type(hf_model).__name__](stack, layer).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def row_post(hf_model: Any, row: Row, layer: int, place: Place = READ) -> Tensor:
    """Return the activation of a layer at a place."""
    seen: list[Tensor] = []
    with changed_post(hf_model, layer, lambda post: seen.append(post.detach()), place), torch.no_grad():
        logits_of(hf_model, row)
    return seen[0]


def row_probability(hf_model: Any, row: Row, layer: int, post: Tensor, place: Place = READ) -> Tensor:
    """Return the probability of the row's answer token with the activation of a layer replaced."""
    with changed_post(hf_model, layer, lambda _: post, place):
        return logits_of(hf_model, row).softmax(-1)[row.target]


def integrated_gradients(
    hf_model: Any, rows: list[Row], layer: int, nodes: Tensor, weights: Tensor, place: Place = READ
) -> Tensor:
    """Return the scores of the rows of one prompt, whose activations are scaled together."""
    posts = [row_post(hf_model, row, layer, place) for row in rows]
    total = torch.zeros_like(posts[0])
    for node, weight in zip(nodes, weights, strict=True):
        points = [(node * post).requires_grad_() for post in posts]
        probability = torch.ones((), dtype=posts[0].dtype)
        for row, point in zip(rows, points, strict=True):
            probability = probability * row_probability(hf_model, row, layer, point, place)
        gradients = torch.autograd.grad(probability, points)
        for post, gradient in zip(posts, gradients, strict=True):
            total += weight * post * gradient
    return total
