"""How fast attribution and runs are on a GPU, beside plain products, a plain loop and captum.

    python -m tests.benchmarks.gpu [--only TEXT ...] [--seconds 330] [--profile TEXT] [--tiny]

Models have random weights, made on the device, and prompts of 12 tokens: nothing is downloaded. A row is printed as
soon as it is measured, one that fails says why, and once the time is over the others are skipped. The *share* is the
time that the counted matrix products of an attribution take at the rate of a plain product of the same type, measured
in the same process, over the time that the attribution takes. The *loop* is the released procedure without padding:
for each layer one full pass with gradient over 20 points, one prompt at a time. ``--tiny`` runs every row with small
shapes, on a CPU in less than a minute.
"""

import argparse
import gc
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, GPT2Config, LlamaConfig

import kn_lens as kn
from tests.oracle import at_w_out

LENGTH, STEPS = 12, 20
TINY_SHARE = 1024
"""What the number of prompts is divided by with ``--tiny``."""
TINY_PATIENCE = 10
"""What time limits of rows are multiplied by with ``--tiny``: it may run on any machine."""
MOST_PROMPTS = 32_768
PARAREL_PROMPTS = 215_929
"""The prompts of the relations of ParaRel with four templates or more."""
ROW_SECONDS = 60
"""The time after which a row of attribution is given up."""
RUN_SECONDS = 100
"""The time after which a whole reproduction is stopped."""
REPEATED_BELOW = 4
"""Seconds below which a measurement is taken again, up to three times, and the least one counts."""
CAPTUM_PROMPTS = 32
"""Prompts that captum's rows of 20 points go through the model for, all together."""
GIB = 2**30

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "BERT-base": BertConfig,
    "GPT-2": GPT2Config,
    "Llama 2 7B shape": LlamaConfig,
    "Llama 3 8B shape": lambda: LlamaConfig(vocab_size=128_256, intermediate_size=14_336, num_key_value_heads=8),
}
_TINY_SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TINY_CONFIGS: Mapping[str, Callable[[], Any]] = {
    "BERT-base": lambda: BertConfig(vocab_size=300, **_TINY_SIZES),
    "GPT-2": lambda: GPT2Config(vocab_size=301, n_layer=2, n_embd=32, n_head=4),
    "Llama 2 7B shape": lambda: LlamaConfig(vocab_size=300, **_TINY_SIZES),
    "Llama 3 8B shape": lambda: LlamaConfig(vocab_size=300, num_key_value_heads=2, **_TINY_SIZES),
}
DTYPES = {"bf16": torch.bfloat16, "TF32": torch.float32, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Row:
    """An attribution to measure.

    Attributes:
        n_prompts: number of prompts.
        preset: of ``attribute``; None takes the default quadrature.
    """

    n_prompts: int
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model in one precision, and what is measured on it.

    Attributes:
        model: a key of ``CONFIGS``.
        precision: a key of ``DTYPES``.
        rows: the attributions.
        loop_prompts: prompts of the plain loop.
        captum: whether captum is measured.
        pararel: whether the first row is extrapolated to all of ParaRel.
        growth: numbers of prompts whose peak memory is measured, with ``growth_budget``.
    """

    model: str
    precision: str
    rows: tuple[Row, ...]
    loop_prompts: int = 2
    captum: bool = False
    pararel: bool = False
    growth: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The model and the precision."""
        return f"{self.model}, {self.precision}"


CASES = (
    Case(
        model="BERT-base",
        precision="bf16",
        rows=(Row(n_prompts=8_192), Row(n_prompts=2_048, preset="official")),
        pararel=True,
        growth=(2_048, 8_192, 16_384),
    ),
    Case(model="GPT-2", precision="bf16", rows=(Row(n_prompts=32_768),)),
    Case(
        model="Llama 2 7B shape",
        precision="bf16",
        rows=(Row(n_prompts=256), Row(n_prompts=2_048)),
        loop_prompts=1,
    ),
    Case(
        model="BERT-base",
        precision="float32",
        rows=(Row(n_prompts=2_048), Row(n_prompts=512, preset="official")),
        captum=True,
    ),
    Case(model="BERT-base", precision="TF32", rows=(Row(n_prompts=2_048),)),
    Case(
        model="GPT-2",
        precision="float32",
        rows=(Row(n_prompts=2_048), Row(n_prompts=512, preset="official")),
        captum=True,
    ),
    Case(model="Llama 3 8B shape", precision="bf16", rows=(Row(n_prompts=256),), loop_prompts=1),
)
RUN_AFTER = "Llama 2 7B shape, bf16"
"""The case after which the reproductions come: the rest of the cases matters less."""
GROWTH_BUDGET = 4 * GIB
COLUMNS = (
    "model",
    "type",
    "procedure",
    "prompts",
    "ms a prompt",
    "points",
    "mean gap",
    "GFLOP a prompt",
    "share of the plain product's rate",
    "times the loop's speed",
    "furthest from the loop",
    "peak GiB",
)


class OutOfTime(Exception):
    """A row has taken its time."""


@dataclass(kw_only=True)
class Session:
    """What all rows share.

    Attributes:
        device: where models run.
        tiny: whether shapes are small.
        deadline: reading of the clock after which no row begins.
        only: texts of which the name of a row to measure contains one; empty takes all.
        profile: a text that names of rows to profile contain; empty profiles none.
        profile_file: where tables of the profiler are written.
        rates: operations a second of a plain product, by precision.
    """

    device: torch.device
    tiny: bool
    deadline: float
    only: Sequence[str]
    profile: str
    profile_file: Path
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    @property
    def run_seconds(self) -> float:
        """The time limit of a whole run: soon enough that what it has done is still printed."""
        return min(RUN_SECONDS * (TINY_PATIENCE if self.tiny else 1), self.seconds_left - 5)

    def wants(self, name: str) -> bool:
        """Return whether a row is to be measured."""
        return not self.only or any(text.lower() in name.lower() for text in self.only)

    def n_prompts(self, number: int) -> int:
        """Return a number of prompts, a small one for a tiny model."""
        return max(4, number // TINY_SHARE) if self.tiny else number

    def attempt(self, name: str, measure: Callable[[], str], limit: float = ROW_SECONDS) -> None:
        """Print what ``measure`` returns, or why there is nothing."""
        if not self.wants(name):
            return
        if self.seconds_left <= 1:
            say(f"{name}: skipped, the time is over")
            return
        limit *= TINY_PATIENCE if self.tiny else 1
        try:
            with time_limit(min(limit, self.seconds_left)):
                text = measure()
            if text:
                say(text)
        except OutOfTime:
            say(f"{name}: stopped at its time limit")
        except Exception as error:
            lines = str(error).splitlines() or [""]
            say(f"{name}: failed, {type(error).__name__}: {lines[0]}")
            traceback.print_exc()
        self.release()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def release(self) -> None:
        """Return memory of the device that nothing refers to."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def seconds(self, run: Callable[[], object], *, warm: bool = True) -> float:
        """Return how long a call takes: the least of up to three, where that is short and the model is not tiny.

        On a GPU one more comes before them if ``warm``, in which memory is allocated and kernels are chosen.
        """
        if warm and self.device.type == "cuda":
            run()
        times: list[float] = []
        most = 1 if self.tiny else 3
        while len(times) < most and sum(times) < REPEATED_BELOW:
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    def reset_peak(self) -> None:
        """Forget the peak of the device's memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        """Return the peak of the device's memory since ``reset_peak`` in GiB; a dash where it is not counted."""
        if self.device.type == "cuda":
            return f"{torch.cuda.max_memory_allocated() / GIB:.1f}"
        return "-"


def say(text: str) -> None:
    """Print at once: what a stopped run has printed is not lost."""
    print(text, flush=True)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` inside of the block once it has taken so many seconds."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Take products of float32 in TF32 where that is the precision."""
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


# --- plain products -----------------------------------------------------------------------------------------


def plain_product(session: Session, precision: str) -> str:
    """Measure the rate of a plain square product, and return its row."""
    size = 64 if session.tiny else 8192
    shape = (size, size)
    a, b = (torch.randn(shape, device=session.device, dtype=DTYPES[precision]) for _ in range(2))
    repeats = 10

    def run() -> None:
        for _ in range(repeats):
            a @ b

    with matmul_precision(precision):
        run()
        seconds = session.seconds(run) / repeats
    session.rates[precision] = 2 * size**3 / seconds
    return f"| {precision} | {size} | {session.rates[precision] / 1e12:.3g} |"


def plain_products(session: Session) -> None:
    """Print the table of plain products. They are always measured: shares need them."""
    say("\n| type | size | TFLOP/s |\n|---|---|---|")
    always = replace(session, only=())
    for precision in DTYPES:
        always.attempt(f"plain product, {precision}", partial(plain_product, session, precision))


# --- models and prompts -------------------------------------------------------------------------------------


def random_model(session: Session, case: Case) -> Any:
    """Return a transformers model with random weights, made on the device."""
    config = (TINY_CONFIGS if session.tiny else CONFIGS)[case.model]()
    factory = AutoModelForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
    torch.manual_seed(0)
    with session.device:
        hf_model = factory.from_config(config, dtype=DTYPES[case.precision])
    return hf_model.eval().requires_grad_(False)


def random_prompts(session: Session, hf_config: Any, n_prompts: int) -> kn.PromptBatch:
    """Return prompts of random tokens, of which the first are the same whatever the number of prompts.

    A masked model reads in the middle, a causal one at the end.
    """
    low, high = hf_config.vocab_size // 10, hf_config.vocab_size * 9 // 10
    of_prompts, of_targets = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    tokens = torch.randint(low, high, (MOST_PROMPTS, LENGTH), generator=of_prompts)[:n_prompts]
    target_ids = torch.randint(low, high, (MOST_PROMPTS,), generator=of_targets)[:n_prompts]
    read_pos = LENGTH // 2 if hf_config.model_type == "bert" else LENGTH - 1
    return kn.PromptBatch.from_tokens(
        tokens.to(session.device),
        read_pos=torch.full((n_prompts,), read_pos, device=session.device),
        target_ids=target_ids.to(session.device),
    )


# --- the procedures in use ----------------------------------------------------------------------------------


def clean_posts(hf_model: nn.Module, tokens: Tensor, read_pos: int, layer: int) -> Tensor:
    """Return the activations of a layer at the read position."""
    seen: list[Tensor] = []

    def keep(activation: Tensor) -> None:
        seen.append(activation[:, read_pos].detach())

    with at_w_out(hf_model, layer, keep), torch.no_grad():
        hf_model(tokens)
    return seen[0]


def probabilities(
    hf_model: nn.Module, tokens: Tensor, read_pos: int, targets: Tensor, layer: int, post: Tensor
) -> Tensor:
    """Return the probability of each row's answer, with the layer's activation at the read position replaced."""

    def change(activation: Tensor) -> Tensor:
        at_read_pos = torch.arange(activation.shape[1], device=activation.device) == read_pos
        return torch.where(at_read_pos[None, :, None], post[:, None], activation)

    with at_w_out(hf_model, layer, change):
        logits = hf_model(tokens).logits[:, read_pos]
    return logits.float().softmax(-1).gather(1, targets[:, None]).squeeze(1)


def loop_scores(hf_model: Any, prompts: kn.PromptBatch, number: int) -> Tensor:
    """Return the scores of one prompt by a left sum of 20 points: for each layer one pass over all points."""
    tokens, read_pos = prompts.tokens[number], int(prompts.read_pos[number])
    targets = prompts.target_ids[number].expand(STEPS)
    steps = torch.arange(STEPS, device=tokens.device)[:, None] / STEPS
    scores = []
    for layer in range(hf_model.config.num_hidden_layers):
        w = clean_posts(hf_model, tokens[None], read_pos, layer)
        points = (steps.to(w.dtype) * w).requires_grad_()
        values = probabilities(hf_model, tokens.expand(STEPS, -1), read_pos, targets, layer, points)
        (gradient,) = torch.autograd.grad(values.sum(), points)
        scores.append((w * gradient.mean(0)).squeeze(0))
    return torch.stack(scores)


class ReadPositionPath(nn.Module):
    """Probabilities as a function of the scale of one layer's activation at the read position, in captum's form."""

    def __init__(self, hf_model: Any, prompts: kn.PromptBatch, layer: int) -> None:
        super().__init__()
        self.site = nn.Identity()  # captum interpolates what this returns, between its values at scale 0 and 1
        self.hf_model, self.prompts, self.layer = hf_model, prompts, layer
        self.read_pos = int(prompts.read_pos[0])
        self.post = clean_posts(hf_model, prompts.tokens, self.read_pos, layer)

    def forward(self, scale: Tensor) -> Tensor:
        """Return the probability of each row; the rows are all prompts, once for each step."""
        repeats = len(scale) // len(self.post)
        post = self.site(scale * self.post.repeat(repeats, 1))
        tokens = self.prompts.tokens.repeat(repeats, 1)
        targets = self.prompts.target_ids.repeat(repeats)
        return probabilities(self.hf_model, tokens, self.read_pos, targets, self.layer, post)


def captum_scores(hf_model: Any, prompts: kn.PromptBatch) -> Tensor:
    """Return captum's scores of the prompts, all together, by a left sum of 20 points."""
    from captum.attr import LayerIntegratedGradients

    ones = torch.ones(len(prompts), 1, device=prompts.tokens.device)
    scores = []
    for layer in range(hf_model.config.num_hidden_layers):
        path = ReadPositionPath(hf_model, prompts, layer)
        attributed = LayerIntegratedGradients(path, path.site).attribute(
            ones, baselines=0 * ones, n_steps=STEPS, method="riemann_left"
        )
        scores.append(attributed.detach())
    return torch.stack(scores, 1)


# --- attribution --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Loop:
    """What the plain loop gave.

    Attributes:
        seconds: a prompt; None where it was not measured.
        scores: of the first prompt.
    """

    seconds: float | None = None
    scores: Tensor | None = None

    def speed(self, seconds: float) -> str:
        """Return how many times as fast as the loop something is that takes so many seconds a prompt."""
        return "-" if self.seconds is None else f"{self.seconds / seconds:.0f}"

    def distance(self, scores: Tensor) -> str:
        """Return how far scores of the first prompt are from those of the loop at most, over the largest."""
        if self.scores is None:
            return "-"
        expected = self.scores.double()
        return f"{float((scores.double() - expected).abs().max() / expected.abs().max()):.0e}"


def loop_row(session: Session, case: Case, hf_model: Any, loop: Loop) -> str:
    """Measure the plain loop, and return its row."""
    prompts = random_prompts(session, hf_model.config, 1 + case.loop_prompts)

    def run() -> None:
        for number in range(1, len(prompts)):
            loop_scores(hf_model, prompts, number)

    with matmul_precision(case.precision):
        loop.scores = loop_scores(hf_model, prompts, 0)
        loop.seconds = session.seconds(run, warm=False) / case.loop_prompts
    return table_row(case, "plain loop, left, 20", case.loop_prompts, loop.seconds, {"points": f"{STEPS:.1f}"})


def captum_row(session: Session, case: Case, hf_model: Any, loop: Loop) -> str:
    """Measure captum's ``LayerIntegratedGradients``, and return its row."""
    prompts = random_prompts(session, hf_model.config, session.n_prompts(CAPTUM_PROMPTS))
    session.reset_peak()
    scores = captum_scores(hf_model, prompts)
    seconds = session.seconds(lambda: captum_scores(hf_model, prompts)) / len(prompts)
    cells = {
        "points": f"{STEPS:.1f}",
        "times the loop's speed": loop.speed(seconds),
        "furthest from the loop": loop.distance(scores[0]),
        "peak GiB": session.peak(),
    }
    return table_row(case, "captum, left, 20", len(prompts), seconds, cells)


def attribution_row(session: Session, case: Case, row: Row, model: Any, loop: Loop, notes: list[str]) -> str:
    """Measure an attribution, and return its row; what does not fit into it is added to ``notes``."""
    n_prompts = session.n_prompts(row.n_prompts)
    config = kn.host_of(model).checkpoint.config
    prompts = random_prompts(session, config, n_prompts)
    few = prompts.select(torch.arange(max(4, n_prompts // 8), device=session.device))
    run = partial(kn.attribute, model, preset=row.preset)
    with matmul_precision(case.precision):
        attr = run(few)  # readies kernels too
        with FlopCounterMode(display=False) as counter:
            run(few)
        operations = counter.get_total_flops() / len(few)
        session.reset_peak()
        seconds = session.seconds(lambda: run(prompts)) / n_prompts
        peak = session.peak()
    rate = session.rates.get(case.precision)
    cells = {
        "points": f"{float(attr.n_points.double().mean()):.1f}",
        "mean gap": f"{float(attr.completeness_gap.abs().double().mean()):.1e}",
        "GFLOP a prompt": f"{operations / 1e9:.4g}",
        "share of the plain product's rate": "-" if rate is None else f"{operations / rate / seconds:.1%}",
        "times the loop's speed": loop.speed(seconds),
        "peak GiB": peak,
    }
    if row.preset == "official":  # the same points
        cells["furthest from the loop"] = loop.distance(attr.scores[0])
    if case.pararel and row is case.rows[0]:
        notes.append(f"ParaRel, {PARAREL_PROMPTS:,} prompts at this rate: {PARAREL_PROMPTS * seconds:.0f} s")
    procedure = "kn_lens, default" if row.preset is None else "kn_lens, left, 20"
    return table_row(case, procedure, n_prompts, seconds, cells)


def table_row(case: Case, procedure: str, n_prompts: int, seconds: float, cells: Mapping[str, str]) -> str:
    """Return a row of the table of a case.

    Args:
        case: the case.
        procedure: what was measured.
        n_prompts: on so many prompts.
        seconds: a prompt.
        cells: by name of column; others are empty.
    """
    known = {
        "model": case.model,
        "type": case.precision,
        "procedure": procedure,
        "prompts": f"{n_prompts:,}",
        "ms a prompt": f"{1e3 * seconds:.4g}",
        **cells,
    }
    return f"| {' | '.join(known.get(column, '') for column in COLUMNS)} |"


def growth_row(session: Session, case: Case, n_prompts: int, model: Any) -> str:
    """Measure the peak of memory for a number of prompts, whose scores are handed out in parts."""
    config = kn.host_of(model).checkpoint.config
    prompts = random_prompts(session, config, session.n_prompts(n_prompts))
    budget = GROWTH_BUDGET / TINY_SHARE if session.tiny else GROWTH_BUDGET
    session.synchronize()
    session.reset_peak()
    started = time.perf_counter()
    n_done = 0
    for numbers, part in kn.attribute_in_parts(model, prompts, keep=0.1, memory_budget=budget):
        n_done += len(numbers)
        del part
    session.synchronize()
    seconds = time.perf_counter() - started
    assert n_done == len(prompts)
    label = f"{case.model}, {case.precision}, in parts, memory budget {budget / GIB:.2g} GiB"
    return f"| {label} | {len(prompts):,} | {1e3 * seconds / n_done:.4g} | {session.peak()} |"


def profiled(session: Session, case: Case, row: Row, model: Any, notes: list[str]) -> str:
    """Write the profiler's tables of an eighth of a row's prompts, and note how long the device was busy."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    config = kn.host_of(model).checkpoint.config
    prompts = random_prompts(session, config, max(4, session.n_prompts(row.n_prompts) // 8))
    activities = [ProfilerActivity.CPU]
    columns = ["self_cpu_time_total"]
    if session.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        columns.insert(0, "self_cuda_time_total")
    with matmul_precision(case.precision):
        kn.attribute(model, prompts, preset=row.preset)
        session.synchronize()
        started = time.perf_counter()
        kn.attribute(model, prompts, preset=row.preset)
        session.synchronize()
        seconds = time.perf_counter() - started
        with profile(activities=activities) as profiler:
            kn.attribute(model, prompts, preset=row.preset)
            session.synchronize()
    averages = profiler.key_averages()
    tables = [averages.table(sort_by=column, row_limit=40, max_name_column_width=90) for column in columns]
    title = f"{case.name}, {len(prompts):,} prompts, {row.preset or 'default'}"
    with session.profile_file.open("a", encoding="utf-8") as file:
        file.write("\n\n".join([title, *tables, ""]))
    # The time of a kernel is counted again for the operation that started it.
    busy = sum(event.self_device_time_total for event in averages if event.device_type != DeviceType.CPU) / 1e6
    n_calls = sum(event.count for event in averages)
    notes.append(
        f"profile of {title}: {seconds:.2f} s without the profiler, device busy {busy:.2f} s, {n_calls:,} calls, "
        f"tables in {session.profile_file}"
    )
    return ""


def row_name(case: Case, row: Row) -> str:
    """Return the name by which a row is chosen."""
    return f"{case.name}, {row.n_prompts} prompts, {'default' if row.preset is None else 'left 20'}"


def measure_case(session: Session, case: Case) -> None:
    """Print the rows of a case."""
    names = [row_name(case, row) for row in case.rows]
    names += [f"{case.name}, captum"] * case.captum
    names += [f"{case.name}, growth, {n_prompts} prompts" for n_prompts in case.growth]
    if not any(map(session.wants, names)):
        return
    made: list[Any] = []
    notes: list[str] = []
    loop = Loop()

    def make() -> str:
        started = time.perf_counter()
        made.append(random_model(session, case))
        session.synchronize()
        notes.append(f"weights made in {time.perf_counter() - started:.1f} s")
        return ""

    def wrap() -> str:
        started = time.perf_counter()
        made.append(kn.load_model(made.pop(), check=False))
        session.synchronize()
        notes.append(f"TransformerLens model in {time.perf_counter() - started:.1f} s")
        return ""

    always = replace(session, only=())  # what every row of the case needs
    say(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    always.attempt(f"{case.name}, weights", make)
    if made:
        always.attempt(f"{case.name}, loop", lambda: loop_row(session, case, made[0], loop))
    if made and case.captum:
        session.attempt(f"{case.name}, captum", lambda: captum_row(session, case, made[0], loop))
    if made:
        always.attempt(f"{case.name}, TransformerLens model", wrap)
    if not made:
        return
    for row in case.rows:
        name = row_name(case, row)
        session.attempt(name, lambda row=row: attribution_row(session, case, row, made[0], loop, notes))
        if session.profile and session.profile.lower() in name.lower():
            session.attempt(f"profile of {name}", lambda row=row: profiled(session, case, row, made[0], notes))
    say(f"\n{case.name}: {'; '.join(notes)}")
    if case.growth:
        say("\n| attribution | prompts | ms a prompt | peak GiB |\n|---|---|---|---|")
    for n_prompts in case.growth:
        name = f"{case.name}, growth, {n_prompts} prompts"
        session.attempt(name, lambda n_prompts=n_prompts: growth_row(session, case, n_prompts, made[0]))
    made.clear()
    session.release()


# --- a whole run --------------------------------------------------------------------------------------------


def reproduction(device: str, tiny: bool, limit: float) -> str:
    """Run ``kn-lens reproduce`` of world-gpt2 with 4 facts a relation, and return its row, with seconds by stage."""
    with TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        command = [sys.executable, "-m", "kn_lens.cli", "reproduce", "--model", "world-gpt2", "--device", device]
        command += ["--limit", "1", "--relation", "P36", "--stage", "attributions"] if tiny else ["--limit", "4"]
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        began, started = time.time(), time.perf_counter()
        try:
            done = subprocess.run(
                [*command, "--out", str(run_dir)],
                env=environment,
                timeout=max(1.0, limit),
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            result = f"stopped after {limit:.0f}"
        else:
            result = f"{time.perf_counter() - started:.1f}"
            if done.returncode:
                result = f"failed, {(done.stderr.splitlines() or ['no message'])[-1]}"
                print(done.stderr, file=sys.stderr)
        stages = seconds_by_stage(run_dir, began)
    return f"| {device} | {result} | {', '.join(f'{name} {seconds:.1f}' for name, seconds in stages.items())} |"


def seconds_by_stage(run_dir: Path, began: float) -> dict[str, float]:
    """Return the seconds from the last record of one stage to that of the next, as their files say."""
    last_written: dict[str, float] = {}
    for record in run_dir.glob("records/*/*.parquet"):
        stage = record.parent.name
        last_written[stage] = max(last_written.get(stage, 0.0), record.stat().st_mtime)
    seconds = {}
    for stage, written in sorted(last_written.items(), key=lambda item: item[1]):
        seconds[stage] = written - began
        began = written
    return seconds


def reproductions(session: Session, on_cpu: "Future[str] | None") -> None:
    """Print the table of the whole run, on the device and on two cores."""
    if not session.wants("reproduce"):
        return
    say("\n| reproduce, world-gpt2 | s | of them, by stage (the first includes loading) |\n|---|---|---|")
    if session.device.type != "cpu":
        run = partial(reproduction, str(session.device), session.tiny, session.run_seconds)
        session.attempt("reproduce on the device", run, limit=RUN_SECONDS + 10)
    run = partial(reproduction, "cpu", session.tiny, session.run_seconds)
    if on_cpu is not None:
        run = on_cpu.result
    session.attempt("reproduce on two cores", run, limit=RUN_SECONDS + 10)


def device_name(device: torch.device) -> str:
    """Return the name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", default=(), metavar="TEXT", help="rows whose name contains a text")
    parser.add_argument("--seconds", type=float, default=330, help="time for all rows")
    parser.add_argument("--profile", default="", metavar="TEXT", help="rows to profile, by a text in their names")
    parser.add_argument("--profile-file", type=Path, default=Path("gpu_profile.txt"))
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    arguments = parser.parse_args()
    session = Session(
        device=torch.device(arguments.device),
        tiny=arguments.tiny,
        deadline=time.perf_counter() + arguments.seconds,
        only=arguments.only,
        profile=arguments.profile,
        profile_file=arguments.profile_file,
    )
    n_cores = os.cpu_count() or 1
    say(
        f"{device_name(session.device)}; {n_cores} cores; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}"
    )
    with ThreadPoolExecutor(1) as pool:
        on_cpu = None
        # Where cores are idle, the run on two of them takes no time of its own.
        if session.device.type == "cuda" and n_cores >= 8 and session.wants("reproduce"):
            on_cpu = pool.submit(reproduction, "cpu", session.tiny, session.run_seconds)
        plain_products(session)
        for case in CASES:
            measure_case(session, case)
            if case.name == RUN_AFTER:
                reproductions(session, on_cpu)


if __name__ == "__main__":
    main()
