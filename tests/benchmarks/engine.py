"""Attribution beside the procedures that people run today, in one process: the table of docs/performance.md.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.engine [--prompts 4] [--without-a] [bert] [gpt2]

Base-size random models, prompts of 12 tokens. Reference A is the released procedure: pad to 128 tokens, one full
forward pass with gradient for each layer over a batch of 20 points, one prompt at a time. Reference B is the same
without padding. Both are written here over the plain Hugging Face model, and their scores are compared with ours.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import kn_lens as kn
from tests.oracle import at_w_out, clean_post

LENGTH, STEPS = 12, 20
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForMaskedLM(BertConfig()),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
}


def reference(hf: nn.Module, tokens: Tensor, read_pos: int, target: int, pad_to: int | None) -> Tensor:
    """Scores of every layer for one prompt: left sum of 20 points, one full pass for each layer."""
    mask = torch.ones_like(tokens)
    if pad_to is not None:
        pad = (0, pad_to - len(tokens))
        tokens, mask = nn.functional.pad(tokens, pad), nn.functional.pad(mask, pad)
    scores = []
    for layer in range(hf.config.num_hidden_layers):
        w = clean_post(hf, tokens[:LENGTH], read_pos, layer)
        points = (torch.arange(STEPS)[:, None] / STEPS * w).requires_grad_()

        def change(activation: Tensor, points: Tensor = points) -> Tensor:
            at_read_pos = (torch.arange(activation.shape[1]) == read_pos)[None, :, None]
            return torch.where(at_read_pos, points[:, None], activation)

        with at_w_out(hf, layer, change):
            logits = hf(tokens.expand(STEPS, -1), attention_mask=mask.expand(STEPS, -1)).logits[:, read_pos]
        total = logits.softmax(-1)[:, target].sum()
        scores.append(w * torch.autograd.grad(total, points)[0].mean(0))
    return torch.stack(scores)


def best_of(run: Callable[[], object], repeats: int, warm_up: bool = True) -> float:
    """Return the least seconds of ``repeats`` runs, after one to warm up."""
    if warm_up:
        run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def compare(name: str, n_prompts: int, repeats: int, with_a: bool) -> None:
    """Print a table for one model."""
    torch.manual_seed(0)
    hf = MODELS[name]().eval()
    torch.manual_seed(0)
    model = kn.load_model(MODELS[name]().eval())
    hf.requires_grad_(False)
    tokens = torch.randint(1000, 20000, (n_prompts, LENGTH))
    read_pos = 6 if name == "bert" else LENGTH - 1
    prompts = kn.PromptBatch.from_tokens(
        tokens, read_pos=torch.full((n_prompts,), read_pos), target_ids=torch.randint(1000, 20000, (n_prompts,))
    )
    one = int(prompts.target_ids[0])
    unpadded = best_of(lambda: reference(hf, tokens[0], read_pos, one, None), repeats)
    # Minutes long, so once: it has nothing to warm up that B has not.
    padded = best_of(lambda: reference(hf, tokens[0], read_pos, one, 128), 1, warm_up=False) if with_a else float("nan")
    seconds = {"A, padded to 128": padded, "B, unpadded": unpadded}
    runs = {"20 left points": {"preset": "official"}, "default (adaptive)": {}}
    gaps = {}
    for label, how in runs.items():
        attr = kn.attribute(model, prompts, **how)
        gap, points = float(attr.completeness_gap.abs().mean()), float(attr.n_points.double().mean())
        gaps[label] = f"{gap:.1e} with {points:.1f} points"
        seconds[label] = best_of(lambda how=how: kn.attribute(model, prompts, **how), repeats) / n_prompts
    ours = kn.attribute(model, prompts, preset="official").scores[0]
    worst = float((ours - reference(hf, tokens[0], read_pos, one, None)).abs().max() / ours.abs().max())
    print(f"### {name}, {torch.get_num_threads()} thread(s), scores equal to {worst:.0e} of the largest\n")
    print("| procedure | s per prompt | times faster than A | than B | mean gap |\n|---|---|---|---|---|")
    for label, taken in seconds.items():
        ratios = [seconds[reference_name] / taken for reference_name in list(seconds)[:2]]
        print(f"| {label} | {taken:.2f} | {ratios[0]:.1f} | {ratios[1]:.1f} | {gaps.get(label, '')} |")
    print(flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--without-a", action="store_true", help="leave out reference A, which takes minutes")
    args = parser.parse_args()
    for name in args.names:
        compare(name, args.prompts, args.repeats, not args.without_a)


if __name__ == "__main__":
    main()
