"""Make small models of the embedded facts to compare: each kind, in two sizes, from three seeds.

    python examples/world_models.py checkpoints [--kinds bert gpt2] [--sizes small base] [--seeds 0 1 2]

trains ``checkpoints/KIND-SIZE-SEED`` one after another, on one thread each, and leaves out those that are there. They
are trained plainly, as ``world-bert-plain`` and ``world-gpt2-plain`` are; ``base`` with seed 0 is the same recipe as
those. A base model takes some nine minutes on one core, a small one one or two. ``examples/world_study.toml`` is the
study of them.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from kn_lens.world.training.corpus import read_jsonl
from kn_lens.world.training.make import make, summary
from kn_lens.world.training.recipes import BERT, GPT2, Recipe

KINDS = {"bert": BERT, "gpt2": GPT2}
SIZES = {
    "small": {"n_layers": 2, "d_model": 64, "d_mlp": 256, "n_heads": 4},
    "base": {},
}


def recipe(kind: str, size: str, seed: int, steps: int | None = None) -> Recipe:
    """Return how a model is made."""
    made = replace(KINDS[kind], name=f"{kind}-{size}-{seed}", seed=seed, **SIZES[size])
    return made if steps is None else replace(made, steps=steps)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="directory of the checkpoints")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of training, if not those of the recipe")
    given = parser.parse_args()
    facts, templates = read_jsonl("facts.jsonl"), read_jsonl("templates.jsonl")
    labels = {row["relation"]: row["label"] for row in read_jsonl("relations.jsonl")}
    for kind in given.kinds:
        for size in given.sizes:
            for seed in given.seeds:
                one = recipe(kind, size, seed, given.steps)
                out, part = given.out / one.name, given.out / f".{one.name}"
                if out.exists():
                    continue
                shutil.rmtree(part, ignore_errors=True)  # of a training that was stopped
                measured = make(one, part, facts, templates, labels)
                part.rename(out)
                recalled = summary(measured.answers)["recall"]
                print(f"{out}: recall {recalled['trained']:.1%} trained, {recalled['held_out']:.1%} held out; "
                      f"{measured.seconds / 60:.1f} minutes", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
