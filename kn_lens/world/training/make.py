"""Production of an embedded model: training, evaluation of the stored checkpoint, model card.

The command is ``python -m kn_lens.world.training world-bert [--out DIR]``.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from kn_lens.errors import ArgumentError
from kn_lens.world.training.card import Measurements, model_card
from kn_lens.world.training.corpus import Rows, read_jsonl, tokenize
from kn_lens.world.training.evaluate import (
    Answer,
    answer,
    mlp_ablations,
    probability,
    recall,
    split_by_template,
)
from kn_lens.world.training.recipes import RECIPES, Recipe, recipe_for
from kn_lens.world.training.train import load, reproducible, save, train

ABLATION_SAMPLE = 2000
"""Number of prompts on which the MLPs are ablated for the card."""
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def make(
    recipe: Recipe,
    out: Path,
    facts: Rows,
    templates: Rows,
    labels: Mapping[str, str],
) -> Measurements:
    """Train a model, store it, evaluate the stored checkpoint and write its card.

    Args:
        recipe: hyperparameters.
        out: directory of the checkpoint; created if it does not exist.
        facts: rows of ``facts.jsonl``, or of ``translations.jsonl`` for a model of several languages.
        templates: rows of ``templates.jsonl``, or of ``translated_templates.jsonl``.
        labels: label of each relation.
    """

    def on_step(step: int, terms: Mapping[str, float]) -> None:
        if step % 100 == 0 or step == recipe.steps:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
            sys.stderr.write(f"\r{recipe.name}  step {step}/{recipe.steps}  {losses}\x1b[K")

    trained = train(recipe, facts, templates, on_step)
    sys.stderr.write("\n")
    save(trained, out)
    network = load(out, recipe.kind)
    tokenizer = trained.tokenizer
    with reproducible(recipe.seed):
        answers = answer(network, tokenizer, tokenize(tokenizer, facts, templates))
        order = np.random.default_rng(recipe.seed).permutation(len(answers))
        sample = [answers[number] for number in order[:ABLATION_SAMPLE]]
        sentences = [given.sentence for given in sample]
        p_layer_ablated, p_all_ablated = mlp_ablations(network, tokenizer, sentences)
    n_multi_token = 0
    for given in answers:
        n_multi_token += given.sentence.stop - given.sentence.start > 1
    measurements = Measurements(
        answers=answers,
        n_facts=len(facts),
        n_params=sum(parameter.numel() for parameter in network.parameters()),
        d_vocab=len(tokenizer),
        multi_token_share=n_multi_token / len(answers),
        history=trained.history,
        seconds=trained.seconds,
        p_clean=probability(sample),
        p_layer_ablated=p_layer_ablated,
        p_all_ablated=p_all_ablated,
        versions={name: version(name) for name in LIBRARIES},
    )
    record = {
        "recipe": asdict(recipe),
        "sha256": {"facts": _digest(facts), "templates": _digest(templates)},
        "versions": measurements.versions,
        "measured": summary(answers),
    }
    recipe_json = json.dumps(record, indent=2) + "\n"
    card = model_card(recipe, measurements, labels)
    (out / "recipe.json").write_text(recipe_json, encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return measurements


def rows_of(recipe: Recipe) -> tuple[Rows, Rows]:
    """Return the facts and templates of a recipe's languages."""
    if recipe.languages == ("en",):
        return read_jsonl("facts.jsonl"), read_jsonl("templates.jsonl")
    facts = [row for row in read_jsonl("translations.jsonl") if row["language"] in recipe.languages]
    templates = [row for row in read_jsonl("translated_templates.jsonl") if row["language"] in recipe.languages]
    return facts, templates


def _digest(rows: Rows) -> str:
    lines = [json.dumps(row, sort_keys=True) for row in rows]
    return sha256("\n".join(lines).encode()).hexdigest()


def summary(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return recall and mean probability of the answer, on trained and on held-out templates."""
    trained, held_out = split_by_template(answers)
    return {
        "recall": {"trained": recall(trained), "held_out": recall(held_out)},
        "probability": {"trained": probability(trained), "held_out": probability(held_out)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="python -m kn_lens.world.training",
        description="Train an embedded model and write its checkpoint.",
    )
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument(
        "--out",
        type=Path,
        help="directory of the checkpoint (default: models/NAME beside the data)",
    )
    options = parser.parse_args(arguments)
    try:
        recipe = recipe_for(options.name)
    except ArgumentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = options.out or Path(__file__).parents[1] / "models" / recipe.name
    labels = {row["relation"]: row["label"] for row in read_jsonl("relations.jsonl")}
    facts, templates = rows_of(recipe)
    measurements = make(recipe, out, facts, templates, labels)
    recalled = summary(measurements.answers)["recall"]
    sys.stdout.write(
        f"{out}: recall {recalled['trained']:.2%} trained, {recalled['held_out']:.2%} held out; "
        f"mean probability {probability(measurements.answers):.3f}\n"
    )
    return 0
