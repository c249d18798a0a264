"""How fast attribution is, beside the procedures that people run today: the tables of docs/performance.md.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.engine [references] [worlds] [growth] [precision]

``references``: base-size random models, prompts of 12 tokens. Reference A is the released procedure: pad to 128 tokens,
one full forward pass with gradient for each layer over a batch of 20 points, one prompt at a time. Reference B is the
same without padding. Both are written here over the plain Hugging Face model, and their scores are compared with ours.
``worlds``: the default quadrature beside 20 left points on the embedded models. ``growth``: time and memory from 1,000
to 10,000 prompts, each in a process of its own. ``precision``: what lower precision does to the ranking of neurons.
"""

import argparse
import multiprocessing
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import kn_lens as kn
from tests.oracle import at_w_out, clean_post

LENGTH, STEPS = 12, 20
WORLDS = ("world-bert", "world-bert-plain", "world-gpt2", "world-gpt2-plain")
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


def matmul_rate() -> float:
    """Return the operations a second of plain products of the shapes that a pass is made of."""
    x, w, g = torch.randn(2040, 768), torch.randn(3072, 768), torch.randn(2040, 3072)
    forward, backward = (best_of(run, 8) for run in (lambda: nn.functional.linear(x, w), lambda: g @ w))
    return 2 * 2 * x.numel() * len(w) / (forward + backward)


def counted(run: Callable[[], object]) -> float:
    """Return the operations of all matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def references(name: str, n_prompts: int, repeats: int, with_a: bool) -> None:
    """Print the table of one model."""
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
    rates = [matmul_rate()]
    one = int(prompts.target_ids[0])
    b = lambda: reference(hf, tokens[0], read_pos, one, None)  # noqa: E731
    seconds, work, gaps = {"B, unpadded": best_of(b, repeats)}, {"B, unpadded": counted(b)}, {}
    if with_a:  # Minutes long, so once, and while it is counted: it has nothing to warm up that B has not.
        a = lambda: reference(hf, tokens[0], read_pos, one, 128)  # noqa: E731
        started = time.perf_counter()
        work["A, padded to 128"] = counted(a)
        seconds["A, padded to 128"] = time.perf_counter() - started
    for label, how in {"20 left points": {"preset": "official"}, "default (adaptive)": {}}.items():
        run = lambda how=how: kn.attribute(model, prompts, **how)  # noqa: E731
        attr = run()
        gap, points = float(attr.completeness_gap.abs().mean()), float(attr.n_points.double().mean())
        gaps[label] = f"{gap:.1e} with {points:.1f} points"
        seconds[label], work[label] = best_of(run, repeats, warm_up=False) / n_prompts, counted(run) / n_prompts
        rates.append(matmul_rate())
        if label == "20 left points":
            worst = float((attr.scores[0] - b()).abs().max() / attr.scores[0].abs().max())
    rate = max(rates)
    print(f"### {name}, {n_prompts} prompts; scores equal to {worst:.0e} of the largest; {rate / 1e9:.0f} GFLOP/s\n")
    print("| procedure | s a prompt | faster than A | than B | GFLOP | at the matrix rate, s | share | mean gap |")
    print("|---|---|---|---|---|---|---|---|")
    for label, taken in seconds.items():
        ratios = [seconds.get(reference, float("nan")) / taken for reference in ("A, padded to 128", "B, unpadded")]
        limit = work[label] / rate
        print(
            f"| {label} | {taken:.3f} | {ratios[0]:.1f} | {ratios[1]:.1f} | {work[label] / 1e9:.1f} | {limit:.3f} | "
            f"{limit / taken:.0%} | {gaps.get(label, '')} |"
        )
    print(flush=True)


def sample(model: object, n_facts: int = 33, every: int = 7) -> kn.PromptBatch:
    """Return some prompts of some facts."""
    prompts = kn.make_prompts(model, kn.FactSet.world("trained").sample(n_facts, seed=3))
    return prompts.select(torch.arange(0, len(prompts), every))


def worlds(repeats: int) -> None:
    """Print the table of the embedded models."""
    print("| model | prompts | quadrature | points | mean gap | ms a prompt | times faster |")
    print("|---|---|---|---|---|---|---|")
    for name in WORLDS:
        model = kn.load_model(name)
        prompts = sample(model, n_facts=50, every=4)
        base = None
        for label, how in {"left, 20": {"preset": "official"}, "default": {}}.items():
            attr = kn.attribute(model, prompts, **how)
            run = partial(kn.attribute, model, prompts, **how)
            taken = best_of(run, repeats, warm_up=False) / len(prompts)
            base = base or taken
            points, gap = attr.n_points.double().mean(), attr.completeness_gap.abs().mean()
            print(
                f"| `{name}` | {len(prompts)} | {label} | {points:.1f} | {gap:.1e} | {1e3 * taken:.2f} | "
                f"{base / taken:.1f} |",
                flush=True,
            )


def peak() -> float:
    """Return the largest resident set of this process so far, in MiB (``ru_maxrss`` would begin with the parent's)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def grown(name: str, n_prompts: int) -> tuple[float, float, float]:
    """Return seconds, the peak of memory in MiB, and how much of it was there before the prompts were attributed."""
    torch.set_num_threads(1)
    model = kn.load_model(name)
    prompts = kn.make_prompts(model, kn.FactSet.world("trained"))
    generator = torch.Generator().manual_seed(0)
    prompts = prompts.select(torch.randperm(len(prompts), generator=generator)[:n_prompts])
    kn.attribute(model, prompts.select(torch.arange(200)))
    before = peak()
    started = time.perf_counter()
    n_done = sum(len(numbers) for numbers, _ in kn.attribute_in_parts(model, prompts, keep=0.1))
    assert n_done == n_prompts
    return time.perf_counter() - started, peak(), before


def growth() -> None:
    """Print the table of time and memory against the number of prompts."""
    print("| model | prompts | s | ms a prompt | peak MiB | of them before |\n|---|---|---|---|---|---|")
    for name in ("world-bert", "world-gpt2"):
        for n_prompts in (1_000, 3_000, 10_000):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak, before = pool.apply(grown, (name, n_prompts))
            print(
                f"| `{name}` | {n_prompts:,} | {seconds:.1f} | {1e3 * seconds / n_prompts:.2f} | {peak:.0f} | "
                f"{before:.0f} |",
                flush=True,
            )


class TF32(TorchDispatchMode):
    """Matrix products as the tensor cores of NVIDIA GPUs take them in TF32: operands rounded to 10 bits of mantissa."""

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            args = tuple(((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for x in args)
        return func(*args, **(kwargs or {}))


def precision() -> None:
    """Print what each precision does to scores and sets, against float64 with the same rule."""
    how = {"quadrature": "clenshaw-curtis", "n_steps": 9}
    print(
        "| model | precision | rank correlation of the 100 highest | error of a score | same top 10 | coarse sets | ",
        end="",
    )
    print("points of the default | unconverged |\n|---|---|---|---|---|---|---|---|")
    for name in WORLDS:
        model = kn.load_model(name, dtype=torch.float64)
        prompts = sample(model)
        exact = kn.attribute(model, prompts, **how).scores.flatten(1)
        for label, dtype, products in (
            ("float32", torch.float32, nullcontext()),
            ("TF32 products", torch.float32, TF32()),
            ("bfloat16", torch.bfloat16, nullcontext()),
        ):
            model = kn.load_model(name, dtype=dtype)
            with products:
                scores = kn.attribute(model, prompts, **how).scores.flatten(1).double()
                default = kn.attribute(model, prompts)
            highest = exact.topk(100).indices
            ranks = [values.gather(1, highest).argsort(1).argsort(1).double() for values in (scores, exact)]
            correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)])
            error = (scores - exact).abs().amax(1) / exact.abs().amax(1)
            tens = [[set(row.tolist()) for row in values.topk(10).indices] for values in (scores, exact)]
            same = sum(one == other for one, other in zip(*tens, strict=True)) / len(prompts)
            coarse = [values >= 0.2 * values.amax(1, keepdim=True) for values in (scores, exact)]
            jaccard = (coarse[0] & coarse[1]).sum(1) / (coarse[0] | coarse[1]).sum(1)
            print(
                f"| `{name}` | {label} | {correlation.mean():.4f} | {error.mean():.3%} | {same:.0%} | "
                f"{jaccard.double().mean():.3f} | {default.n_points.double().mean():.1f} | "
                f"{(~default.converged).double().mean():.1%} |",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("references", "worlds", "growth", "precision")
    parser.add_argument("sections", nargs="*", default=sections, metavar="SECTION", help=", ".join(sections))
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="for references")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--without-a", action="store_true", help="leave out reference A, which takes minutes")
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )
    if "references" in args.sections:
        for name in args.models:
            references(name, args.prompts, args.repeats, not args.without_a)
    if "worlds" in args.sections:
        worlds(args.repeats)
    if "growth" in args.sections:
        growth()
    if "precision" in args.sections:
        precision()


if __name__ == "__main__":
    main()
