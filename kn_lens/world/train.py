"""Make an embedded model again, end to end: ``python -m kn_lens.world.train world-bert [--out DIR]``.

Tokenizer, training, evaluation of the stored checkpoint, model card. One seed fixes the text, its order and the
weights, and one thread the order of every sum, so that the same machine and library versions give the same bytes.
What is optimised is in ``objective``, the numbers are in ``recipes``.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from kn_lens.errors import ArgumentError
from kn_lens.world.card import Measured, model_card
from kn_lens.world.corpus import PREFIXES, Rows, batches, read_jsonl, tokenize, train_tokenizer, write_out
from kn_lens.world.evaluate import Answer, ask, probability, recall, without_mlps
from kn_lens.world.networks import Network, build
from kn_lens.world.objective import causal_batch, losses, masked_batch
from kn_lens.world.recipes import RECIPES, Recipe, recipe_for

PREFIX_COPIES = 50
"""How often the tokenizer's training text holds each neutral opening."""
SILENT_SAMPLE = 2000
"""Prompts on which the MLPs are silenced for the card."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training run.

    Attributes:
        network: in evaluation mode.
        tokenizer: its own.
        history: the terms of the loss at every step.
        seconds: wall-clock time.
    """

    network: Network
    tokenizer: PreTrainedTokenizerFast
    history: list[dict[str, float]]
    seconds: float


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch's generator and compute on one thread; both are as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train(
    recipe: Recipe, facts: Rows, templates: Rows, progress: Callable[[int, Mapping[str, float]], None] | None = None
) -> Trained:
    """Train a tokenizer and a model on the trained templates.

    Args:
        recipe: every number that matters.
        facts: rows of ``facts.jsonl``.
        templates: rows of ``templates.jsonl``; held-out ones are left alone.
        progress: called after every step with the number of steps done and the terms of the loss.

    Returns:
        The model and how its loss went. Same arguments, machine and library versions: same bits.
    """
    with reproducible(recipe.seed):
        return _train(recipe, facts, [t for t in templates if t["split"] == "trained"], progress)


def _train(
    recipe: Recipe, facts: Rows, templates: Rows, progress: Callable[[int, Mapping[str, float]], None] | None
) -> Trained:
    began = time.perf_counter()
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    texts = [text for _, _, text in write_out(facts, templates)] + list(PREFIXES) * PREFIX_COPIES
    tokenizer = train_tokenizer(recipe.kind, texts, recipe.vocab_size)
    sentences = tokenize(tokenizer, facts, templates)
    masked = recipe.kind == "bert"
    stream = batches(
        sentences,
        [1.0 if masked or sentence.object_last else recipe.front_share for sentence in sentences],
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        prefixes=tokenizer(list(PREFIXES), add_special_tokens=False)["input_ids"],
        prefix_share=recipe.prefix_share,
        drop_share=recipe.drop_share,
        insert_share=recipe.insert_share,
        rng=rng,
    )
    network = build(recipe, tokenizer).train()
    optimizer, schedule = _optimizer(network, recipe)
    history = []
    for step, chosen in enumerate(stream):
        batch = (masked_batch if masked else causal_batch)(chosen, tokenizer, rng)
        ramp = recipe.ramp(step)
        terms = losses(network, batch, recipe, construct=ramp > 0, generator=generator)
        loss = terms["prediction"]
        if ramp > 0:
            loss = loss + ramp * (recipe.sparsity * terms["sparsity"] + recipe.interchange * terms["interchange"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append({name: float(term.detach()) for name, term in terms.items()})
        if progress is not None:
            progress(step + 1, history[-1])
    network.eval().requires_grad_(False)
    seconds = time.perf_counter() - began
    return Trained(network=network, tokenizer=tokenizer, history=history, seconds=seconds)


def _optimizer(
    network: nn.Module, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with weight decay on matrices alone, linear warm-up, cosine to zero."""
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)

    def factor(step: int) -> float:
        done = max(0, step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return min(1.0, (step + 1) / recipe.warmup) * (1 + math.cos(math.pi * done)) / 2

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def save(trained: Trained, out: Path) -> None:
    """Write a plain Hugging Face checkpoint: weights in float16, a configuration that reads them in float32."""
    network = trained.network.half()
    if hasattr(network.config, "activation_function"):
        network.config.activation_function = "gelu_new"  # the same function under the name that GPT-2 has for it
    network.save_pretrained(out)
    network.config.dtype = torch.float32
    network.config.save_pretrained(out)
    trained.tokenizer.save_pretrained(out)


def load(out: Path, kind: str) -> Network:
    """Read a checkpoint back, as a user would."""
    loader = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    network: Any = loader.from_pretrained(out, local_files_only=True)
    return network.eval().requires_grad_(False)


def make(recipe: Recipe, out: Path, facts: Rows, templates: Rows, labels: Mapping[str, str]) -> Measured:
    """Train, store, measure what is stored, and write its card.

    Args:
        recipe: what to make.
        out: directory of the checkpoint; made if need be.
        facts: rows of ``facts.jsonl``.
        templates: rows of ``templates.jsonl``.
        labels: of the relations.
    """

    def progress(step: int, terms: Mapping[str, float]) -> None:
        if step % 100 == 0 or step == recipe.steps:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
            sys.stderr.write(f"\r{recipe.name}  step {step}/{recipe.steps}  {shown}\x1b[K")

    trained = train(recipe, facts, templates, progress)
    sys.stderr.write("\n")
    save(trained, out)
    network, tokenizer = load(out, recipe.kind), trained.tokenizer
    with reproducible(recipe.seed):
        sentences = tokenize(tokenizer, facts, templates)
        answers = ask(network, tokenizer, sentences)
        drawn = np.random.default_rng(recipe.seed).permutation(len(answers))[:SILENT_SAMPLE]
        sample = [answers[i] for i in drawn]
        silent_each, silent_all = without_mlps(network, tokenizer, [answer.sentence for answer in sample])
    measured = Measured(
        answers=answers,
        n_facts=len(facts),
        parameters=sum(p.numel() for p in network.parameters()),
        vocabulary=len(tokenizer),
        several=sum(a.sentence.stop - a.sentence.start > 1 for a in answers) / len(answers),
        history=trained.history,
        seconds=trained.seconds,
        silent_each=silent_each,
        silent_all=silent_all,
        before_silence=probability(sample),
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    )
    digests = {
        name: sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows).encode()).hexdigest()
        for name, rows in (("facts", facts), ("templates", templates))
    }
    record = {
        "recipe": asdict(recipe),
        "sha256": digests,
        "versions": measured.versions,
        "measured": summary(answers),
    }
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(model_card(recipe, measured, labels), encoding="utf-8")
    return measured


def summary(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return recall and mean probability of the answer, on trained and on held-out templates."""
    parts = {
        "trained": [answer for answer in answers if not answer.sentence.held_out],
        "held_out": [answer for answer in answers if answer.sentence.held_out],
    }
    return {
        "recall": {name: recall(part) for name, part in parts.items()},
        "probability": {name: probability(part) for name, part in parts.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for an unknown name)."""
    parser = argparse.ArgumentParser(prog="python -m kn_lens.world.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument("--out", type=Path, help="directory of the checkpoint (default: models/NAME beside the data)")
    parsed = parser.parse_args(arguments)
    try:
        recipe = recipe_for(parsed.name)
    except ArgumentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = parsed.out or Path(__file__).parent / "models" / recipe.name
    labels = {row["relation"]: row["label"] for row in read_jsonl("relations.jsonl")}
    measured = make(recipe, out, read_jsonl("facts.jsonl"), read_jsonl("templates.jsonl"), labels)
    recalled = summary(measured.answers)["recall"]
    sys.stdout.write(
        f"{out}: recall {recalled['trained']:.2%} trained, {recalled['held_out']:.2%} held out; "
        f"mean probability {probability(measured.answers):.3f}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
