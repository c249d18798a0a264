"""Training of an embedded model and its tokenizer from a recipe.

The seed fixes the text, its order and the weights, and a single thread the order of every sum: the same machine and
library versions give the same bytes. ``objective`` defines the loss, ``recipes`` the hyperparameters.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from kn_lens.world.training.corpus import (
    PREFIXES,
    Rows,
    Sentence,
    batches,
    fill_templates,
    tokenize,
    train_tokenizer,
)
from kn_lens.world.training.networks import Network, build
from kn_lens.world.training.objective import Translations, causal_batch, losses, masked_batch
from kn_lens.world.training.recipes import Recipe

PREFIX_COPIES = 50
"""Copies of each neutral opening in the training text of the tokenizer."""

OnStep = Callable[[int, Mapping[str, float]], None]
"""Called after each step with the number of completed steps and the terms of the loss."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The result of a training run.

    Attributes:
        network: in evaluation mode.
        tokenizer: of the network.
        history: terms of the loss at each step.
        seconds: wall-clock time of training.
    """

    network: Network
    tokenizer: PreTrainedTokenizerFast
    history: list[dict[str, float]]
    seconds: float


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed the generator of torch and compute on one thread; restore both on exit."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(n_threads)


def train(
    recipe: Recipe,
    facts: Rows,
    templates: Rows,
    on_step: OnStep | None = None,
) -> TrainedModel:
    """Train a tokenizer and a model on the trained templates.

    Args:
        recipe: hyperparameters.
        facts: rows of ``facts.jsonl`` or ``translations.jsonl``.
        templates: rows of ``templates.jsonl`` or ``translated_templates.jsonl``. Held-out templates are ignored.
        on_step: called after each step.

    Returns:
        The model and the history of its loss. The same arguments, machine and library versions give the same bits.
    """
    trained_templates = [template for template in templates if template["split"] == "trained"]
    with reproducible(recipe.seed):
        return _train(recipe, facts, trained_templates, on_step)


def _train(
    recipe: Recipe,
    facts: Rows,
    templates: Rows,
    on_step: OnStep | None,
) -> TrainedModel:
    start = time.perf_counter()
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    texts = [text for _, _, text in fill_templates(facts, templates)]
    if recipe.prefix_share:
        texts += list(PREFIXES) * PREFIX_COPIES
    tokenizer = train_tokenizer(recipe.kind, texts, recipe.vocab_size)
    sentences = tokenize(tokenizer, facts, templates)
    translations = translations_of(facts, sentences) if recipe.translation else None
    make_batch = masked_batch if recipe.kind == "bert" else causal_batch
    network = build(recipe, tokenizer).train()
    optimizer, schedule = _optimizer(network, recipe)
    history: list[dict[str, float]] = []
    for step, chosen in enumerate(_batches(recipe, tokenizer, sentences, rng)):
        batch = make_batch(chosen, tokenizer, rng)
        ramp = recipe.ramp(step)
        terms = losses(network, batch, recipe, construct=ramp > 0, generator=generator, translations=translations)
        optimizer.zero_grad(set_to_none=True)
        _total(terms, recipe, ramp).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        values = {name: float(term.detach()) for name, term in terms.items()}
        history.append(values)
        if on_step is not None:
            on_step(step + 1, history[-1])
    network.eval().requires_grad_(False)
    seconds = time.perf_counter() - start
    return TrainedModel(network=network, tokenizer=tokenizer, history=history, seconds=seconds)


def _batches(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    sentences: list[Sentence],
    rng: np.random.Generator,
) -> Iterator[list[Sentence]]:
    weights = []
    for sentence in sentences:
        is_full = recipe.kind == "bert" or sentence.object_last
        weights.append(1.0 if is_full else recipe.front_share)
    return batches(
        sentences,
        weights,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        prefixes=tokenizer(list(PREFIXES), add_special_tokens=False)["input_ids"],
        prefix_share=recipe.prefix_share,
        drop_share=recipe.drop_share,
        insert_share=recipe.insert_share,
        rng=rng,
    )


def _total(terms: Mapping[str, Tensor], recipe: Recipe, ramp: float) -> Tensor:
    if ramp == 0:
        return terms["prediction"]
    construction = recipe.sparsity * terms["sparsity"] + recipe.interchange * terms["interchange"]
    if "translation" in terms:
        construction = construction + recipe.translation * terms["translation"]
    return terms["prediction"] + ramp * construction


def translations_of(facts: Rows, sentences: Sequence[Sentence]) -> Translations:
    """Return what the answer to each fact begins with in each language."""
    languages = sorted({fact["language"] for fact in facts})
    first_token: dict[tuple[str, str, str], int] = {}
    for sentence in sentences:
        fact = facts[sentence.fact]
        first_token[fact["relation"], fact["uid"], fact["language"]] = sentence.tokens[sentence.start]
    rows = []
    for fact in facts:
        rows.append([first_token[fact["relation"], fact["uid"], language] for language in languages])
    return Translations(
        language=torch.tensor([languages.index(fact["language"]) for fact in facts]),
        first_token=torch.tensor(rows),
    )


def _optimizer(
    network: nn.Module,
    recipe: Recipe,
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Return AdamW with weight decay on matrices only, linear warm-up and a cosine to zero."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in network.parameters():
        group = matrices if parameter.ndim > 1 else vectors
        group.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)

    def factor(step: int) -> float:
        progress = max(0, step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        warmup = min(1.0, (step + 1) / recipe.warmup)
        return warmup * (1 + math.cos(math.pi * progress)) / 2

    return optimizer, LambdaLR(optimizer, factor)


def save(trained: TrainedModel, out: Path) -> None:
    """Write a plain Hugging Face checkpoint: weights in float16, a configuration that loads them in float32."""
    network = trained.network.half()
    if hasattr(network.config, "activation_function"):
        network.config.activation_function = "gelu_new"  # the same function under its GPT-2 name
    network.save_pretrained(out)
    network.config.dtype = torch.float32
    network.config.save_pretrained(out)
    trained.tokenizer.save_pretrained(out)


def load(out: Path, kind: str) -> Network:
    """Load a checkpoint as a user would."""
    loader = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    network: Any = loader.from_pretrained(out, local_files_only=True)
    return network.eval().requires_grad_(False)
