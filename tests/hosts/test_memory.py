"""How many rows go through the model at a time, and what happens when memory runs out all the same."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.layer_context import budget_for
from kn_lens.hosts import Host, memory
from kn_lens.hosts.memory import Budget, _free_in_container, free_memory, ran_out_of_memory
from tests.tiny import CAUSAL, MASKED, N_LAYERS, equal, loaded, memory_for


def prompts_for(model, n=12, shortest=5, longest=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(shortest, longest + 1, (n,), generator=generator)
    mask = (torch.arange(int(length.max())) < length[:, None]).long()
    masked = kn.hosts.host_of(model).kind == "masked"
    return kn.PromptBatch.from_tokens(
        torch.randint(10, 40, mask.shape, generator=generator) * mask,
        attention_mask=mask,
        read_pos=length // 2 if masked else length - 1,
        target_ids=torch.randint(10, 40, (n,), generator=generator),
    )


class Full:
    """Memory for so many rows: a pass over more of them fails as CUDA does."""

    def __init__(self, most):
        self.most, self.seen = most, []

    def __call__(self, value, hook):
        self.seen.append(len(value))
        if len(value) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot.")


def with_memory_for(model, rows):
    full = Full(rows)
    return full, model.hooks(fwd_hooks=[("unembed.hook_in", full)])


def same(attr, other):
    torch.testing.assert_close(attr.scores, other.scores, rtol=1e-10, atol=1e-14, equal_nan=True)
    torch.testing.assert_close(attr.total, other.total, rtol=1e-10, atol=1e-14)
    assert torch.equal(attr.n_points, other.n_points)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_budget_too_large_ends_in_an_equal_result(architecture, rows):
    model = loaded(architecture)
    prompts = prompts_for(model)
    neurons, how = kn.NeuronSet([(1, 3)]), {"quadrature": "gauss-legendre", "n_steps": 2}
    expected = kn.attribute(model, prompts, **how)
    effect, top = kn.measure(model, prompts, kn.Suppress(neurons)), kn.predict(model, prompts)
    full, hooks = with_memory_for(model, rows)
    # However large, a budget ends so; one that would hold a few more rows than there are takes fewer attempts.
    memory, more = memory_for(16, model, prompts), memory_for(16, model, prompts, gradient=False)
    with hooks:
        same(kn.attribute(model, prompts, memory_budget=memory, **how), expected)
        assert max(full.seen) > rows  # it was tried
        full.seen.clear()
        again = kn.measure(model, prompts, kn.Suppress(neurons), memory_budget=more)
        assert max(full.seen) > rows and again.after.tolist() == pytest.approx(effect.after.tolist(), rel=1e-10)
        full.seen.clear()
        assert kn.predict(model, prompts, memory_budget=1e15).token_id.tolist() == top.token_id.tolist()
        assert max(full.seen) > rows


def test_finished_prompts_are_not_lost_and_not_run_again():
    model = loaded("BertForMaskedLM")
    prompts = prompts_for(model, n=20, shortest=6, longest=6)
    budget = memory_for(1, model, prompts)
    full, hooks = with_memory_for(model, 10**9)
    found = []
    with hooks:
        for numbers, part in kn.attribute_in_parts(model, prompts, memory_budget=budget, n_steps=2, quadrature="left"):
            found.append((numbers.tolist(), part.scores))
            full.most = 1  # from the first part on there is less memory
    numbers = [number for some, _ in found for number in some]
    assert sorted(numbers) == list(range(20))
    assert len(found[0][0]) > 1 and all(len(some) == 1 for some, _ in found[1:])
    whole = kn.attribute(model, prompts, n_steps=2, quadrature="left").scores
    torch.testing.assert_close(torch.cat([scores for _, scores in found]), whole[numbers], rtol=1e-10, atol=1e-14)


def test_what_does_not_fit_at_all_is_said_and_the_model_left_alone():
    model = loaded("GPT2LMHeadModel")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    n_hooks = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
    full, hooks = with_memory_for(model, 0)
    with hooks, pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        kn.attribute(model, prompts_for(model))
    assert full.seen[-1] == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(len(point.fwd_hooks) for point in model.hook_dict.values()) == n_hooks


def test_every_halving_halves_what_is_held():
    """However large the budget: down to one row, with no more attempts than there are halvings of the largest pass."""
    model = loaded("BertForMaskedLM")
    budget = budget_for(kn.hosts.host_of(model), prompts_for(model), 1e15)
    limits = []
    while not limits or limits[-1] != (1, 1):
        limits.append((budget.rows_per_pass(8), budget.rows_per_chunk(8)))
        budget.divisor *= 2
    assert limits[0] == (256, 1024) and len(limits) == 11
    assert all(more[1] == 2 * fewer[1] for more, fewer in pairwise(limits))


def test_other_errors_are_not_retried():
    model = loaded("GPT2LMHeadModel")
    calls = []

    def fail(value, hook):
        calls.append(len(value))
        raise RuntimeError("shape mismatch")

    with model.hooks(fwd_hooks=[("unembed.hook_in", fail)]), pytest.raises(RuntimeError, match="shape mismatch"):
        kn.attribute(model, prompts_for(model))
    assert len(calls) == 1


SCARCE = """
import json, resource, sys, torch, kn_lens as kn
from transformers import BertConfig, BertForMaskedLM
torch.manual_seed(0)
torch.set_num_threads(1)
sizes = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=30000)
sizes["hidden_act"] = "relu"  # GELU is compiled for each shape, and that needs memory outside of the heap
model = kn.load_model(BertForMaskedLM(BertConfig(**sizes)).eval())
n = 600
prompts = kn.PromptBatch.from_tokens(
    torch.randint(100, 30000, (n, 6)), read_pos=torch.full((n,), 3), target_ids=torch.randint(100, 30000, (n,))
)
how = {"quadrature": "gauss-legendre", "n_steps": 2}
expected = kn.attribute(model, prompts, memory_budget=2**24, **how)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
refused = 0
def hook_fn(value, hook):
    global refused
    refused = max(refused, len(value))
with model.hooks(fwd_hooks=[("unembed.hook_in", hook_fn)]):
    attr = kn.attribute(model, prompts, memory_budget=1e12, **how)
print(json.dumps({"equal": torch.allclose(attr.scores, expected.scores, rtol=1e-4, atol=1e-9), "most": refused}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is limited in Linux' way")
def test_memory_that_really_runs_out_ends_in_an_equal_result():
    """128 MiB are left, and a pass of all prompts would hold logits of 72 MB several times over."""
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["equal"] and result["most"] >= 300


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_the_estimate_is_about_what_a_pass_holds(architecture):
    """Counted: every storage that autograd saves for the backward pass of one row, weights left out."""
    model = loaded(architecture)
    host = kn.hosts.host_of(model)
    prompts = prompts_for(model, n=1, shortest=9)
    weights = {value.untyped_storage().data_ptr() for value in host.model.original_model.state_dict().values()}
    held = {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        kn.attribute(model, prompts, method="gradient_x_activation", layers=[0])
    estimate = budget_for(host, prompts, 1.0)._pass_bytes(9)
    assert 0.2 < sum(held.values()) / estimate < 1.2


def test_rows_follow_the_budget():
    model = loaded("BertForMaskedLM")
    host, prompts = kn.hosts.host_of(model), prompts_for(loaded("BertForMaskedLM"))
    rows = [budget_for(host, prompts, memory).rows_per_pass(9) for memory in (1, 1e5, 1e6, 1e7, 1e12)]
    assert rows == sorted(rows) and rows[0] == 1 and rows[-2] > rows[1]
    assert budget_for(host, prompts, 1e12).rows_per_pass(9) == 2048 // 9  # more would not be faster
    budget = Budget.of(host, None)
    assert 0 < budget.memory < free_memory(torch.device("cpu"))
    for bad in (0, -1, float("nan"), True, "2GB"):
        with pytest.raises(kn.ArgumentError, match="positive number of bytes"):
            Budget.of(host, bad)


def test_the_limit_of_a_container_counts(tmp_path):
    for name, text in {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 5\ninactive_file 50\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert _free_in_container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_in_container(tmp_path) == float("inf") == _free_in_container(tmp_path / "none")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("anything"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_every_way_of_saying_that_memory_ran_out(error):
    assert ran_out_of_memory(error)
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_thresholded_scores_are_the_whole_ones_from_the_threshold_on():
    model = loaded("BertForMaskedLM")
    prompts = prompts_for(model)
    whole = kn.attribute(model, prompts)
    kept = kn.attribute(model, prompts, keep=0.3, memory_budget=memory_for(2, model, prompts))
    assert kept.scores.is_sparse and kept.keep == 0.3 and whole.keep is None
    peak = whole.scores.amax((1, 2), keepdim=True)
    expected = torch.where((whole.scores >= 0.3 * peak) & (peak > 0), whole.scores, 0.0)
    torch.testing.assert_close(kept.scores.to_dense(), expected, rtol=1e-10, atol=1e-14)
    assert 0 < kept.scores._nnz() < whole.scores.numel() / 2
    torch.testing.assert_close(kept.completeness_gap, whole.completeness_gap, rtol=1e-6, atol=1e-12)
    assert torch.equal(whole.thresholded(0.3).scores.to_dense(), expected)
    with pytest.raises(kn.ArgumentError, match="dropped already"):
        kept.thresholded(0.5)
    some = kn.attribute(model, prompts, layers=[1])
    assert some.total[:, 0].isnan().all() and some.total.shape == (12, N_LAYERS)
    assert (some.thresholded().scores.indices()[1] == 1).all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what is resident is read in Linux' way")
def test_freed_memory_is_given_back():
    """Small pieces freed all over the heap stay with the process, as the last one keeps its end from shrinking."""
    program = """
import ctypes
from kn_lens.hosts.memory import release_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [libc.malloc(60_000) for _ in range(2000)]
for piece in pieces: ctypes.memset(piece, 1, 60_000)
held = resident()
for piece in pieces[:-1]: libc.free(piece)
freed = resident()
release_memory()
print(held - freed, freed - resident())
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    kept, given = map(int, output.split())
    assert kept < 10e6 and given > 100e6


def test_passes_hold_more_of_the_rows_that_start_high(monkeypatch):
    """On a GPU, where the memory limits a pass."""
    model = loaded("BertForMaskedLM")
    prompts = prompts_for(model, n=40)
    passes = []
    forward = Host.logits

    def watched(self, tokens, *args, **kwargs):
        passes.append(len(tokens))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Host, "logits", watched)
    budget = memory_for(10, model, prompts)
    on_cpu, n_passes = kn.attribute(model, prompts, memory_budget=budget), len(passes)
    passes.clear()
    monkeypatch.setattr(memory, "LARGEST_PASS", {})
    on_gpu = kn.attribute(model, prompts, memory_budget=budget)
    assert len(passes) < n_passes and max(passes) > 10
    equal(on_gpu.scores, on_cpu.scores, 1e-12)


def test_a_row_that_starts_high_takes_a_smaller_share_of_a_pass(monkeypatch):
    monkeypatch.setattr(memory, "LARGEST_PASS", {})
    model = loaded("BertForMaskedLM")
    budget = budget_for(kn.host_of(model), prompts_for(model), None)
    shares = [budget.share_of_pass(layer, 9) for layer in range(N_LAYERS)]
    assert shares[0] == 1 and shares[-1] < 1 and shares == sorted(shares, reverse=True)
