"""How far each quadrature's scores are from the integral: tables of docs/world.md and docs/performance.md.

    python -m tests.benchmarks.quadrature [--model NAME --facts FILE] [--every N]

Without arguments the embedded models, with every seventh prompt of 33 facts; else the default quadrature on every N-th
prompt of a file of facts. The integral itself is taken by Clenshaw-Curtis with 2,049 points; of another model in layer
0, whose paths are the stiffest, and with 129 points in the layers above.
"""

import argparse
from dataclasses import replace
from typing import Any

import torch

import kn_lens as kn

N_FINE, N_FINE_ABOVE = 2049, 129
MODELS = ("world-bert", "world-bert-plain", "world-gpt2", "world-gpt2-plain")
RULES = {
    "adaptive (default)": {},
    "left, 20 (`official`)": {"preset": "official"},
    "right, 20 (`paper`)": {"preset": "paper"},
    "gauss-legendre, 8": {"quadrature": "gauss-legendre", "n_steps": 8},
}


def fine_scores(model: Any, prompts: kn.PromptBatch, *, all_layers: bool) -> kn.Attribution:
    """Return the attribution by fine rules."""
    if all_layers:
        return kn.attribute(model, prompts, quadrature="clenshaw-curtis", n_steps=N_FINE)
    lowest = kn.attribute(model, prompts, quadrature="clenshaw-curtis", n_steps=N_FINE, layers=[0])
    above = kn.attribute(model, prompts, quadrature="clenshaw-curtis", n_steps=N_FINE_ABOVE)
    scores = above.scores.clone()
    scores[:, 0] = lowest.scores[:, 0]
    return replace(above, scores=scores)


def report(name: str, label: str, attr: kn.Attribution, exact: kn.Attribution) -> None:
    """Print a row of the table."""
    gap = attr.completeness_gap.abs()
    error = (attr.scores - exact.scores).abs().amax((1, 2)) / exact.scores.abs().amax((1, 2))
    same = (kn.coarse(attr).flatten(1) == kn.coarse(exact).flatten(1)).all(1).double().mean()
    points = attr.n_points.double()
    print(
        f"| `{name}` | {label} | {points.mean():.1f} | {points[:, 0].mean():.1f} | "
        f"{gap.mean():.1e} | {gap.max():.1e} | "
        f"{len(attr.unconverged)} of {points.numel():,} | {error.mean():.2%} | {error.max():.2%} | {same:.1%} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare quadratures with the integral.")
    parser.add_argument("--model")
    parser.add_argument("--facts", help="a file of facts for --model")
    parser.add_argument("--every", type=int, default=7, help="every so many prompts")
    given = parser.parse_args()
    columns = "model | quadrature | points | in layer 0 | mean gap | largest gap | above the tolerance"
    print(f"| {columns} | error of a score, mean | largest | same coarse set |")
    print("|" + "---|" * 10)
    names = (given.model,) if given.model else MODELS
    rules = {"adaptive (default)": {}} if given.model else RULES
    for name in names:
        model = kn.load_model(name)
        facts = kn.FactSet.from_jsonl(given.facts) if given.model else kn.FactSet.world("trained").sample(33, seed=3)
        prompts = kn.make_prompts(model, facts)
        prompts = prompts.select(torch.arange(0, len(prompts), given.every))
        exact = fine_scores(model, prompts, all_layers=not given.model)
        for label, how in rules.items():
            report(name, label, kn.attribute(model, prompts, **how), exact)


if __name__ == "__main__":
    main()
