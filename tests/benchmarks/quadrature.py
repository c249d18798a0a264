"""How far each quadrature's scores are from the integral, on the embedded models: a table of docs/world.md.

    python -m tests.benchmarks.quadrature

33 facts, every seventh prompt of them; the integral itself is taken by Gauss-Legendre with 64 points.
"""

import torch

import kn_lens as kn

MODELS = ("world-bert", "world-bert-plain", "world-gpt2", "world-gpt2-plain")
RULES = {
    "adaptive (default)": {},
    "left, 20 (`official`)": {"preset": "official"},
    "right, 20 (`paper`)": {"preset": "paper"},
    "gauss-legendre, 8": {"quadrature": "gauss-legendre", "n_steps": 8},
}


def main() -> None:
    """Print the table."""
    print(
        "| model | quadrature | points | mean gap | largest gap | error of a score, mean | largest | same coarse set |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        model = kn.load_model(name)
        prompts = kn.make_prompts(model, kn.FactSet.world("trained").sample(33, seed=3))
        prompts = prompts.select(torch.arange(0, len(prompts), 7))
        exact = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=64)
        truly = kn.coarse(exact).flatten(1)
        for label, how in RULES.items():
            attr = kn.attribute(model, prompts, **how)
            gap = attr.completeness_gap.abs()
            error = (attr.scores - exact.scores).abs().amax((1, 2)) / exact.scores.abs().amax((1, 2))
            same = (kn.coarse(attr).flatten(1) == truly).all(1).double().mean()
            print(
                f"| `{name}` | {label} | {attr.n_points.double().mean():.1f} | {gap.mean():.1e} | {gap.max():.1e} | "
                f"{error.mean():.2%} | {error.max():.2%} | {same:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
