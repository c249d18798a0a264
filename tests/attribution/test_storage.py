"""Scores on disk: bits are preserved, other prompts and damaged files are refused, memory is bounded."""

import os
import random
import resource
import subprocess
import sys
from dataclasses import fields
from functools import cache
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution import storage as score_files
from tests.tiny import COUNTRIES, D_MLP, N_LAYERS, tiny_model

TEMPLATES = ["The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]", "[X]'s capital city, [Y]."]
FACTS = [kn.Fact(country, f"P{i % 2}", capital) for i, (country, capital) in enumerate(COUNTRIES.items())]
HOW = {"memory_budget": 400_000}  # several parts
ABLATION = {"method": "ablation", "neurons": [kn.Neuron(2, 5), kn.Neuron(0, 23)]}  # all others are NaN

model_once = cache(tiny_model)


@cache
def prompts_once():
    return kn.make_prompts(model_once(), FACTS, templates=TEMPLATES)


@pytest.fixture(scope="module")
def thresholded(tmp_path_factory):
    path = tmp_path_factory.mktemp("scores") / "thresholded.parquet"
    return kn.attribute_to_file(model_once(), path, prompts_once(), **HOW)


def bits(values):
    """Return a tensor's bits, so that NaN equals NaN and 0 differs from -0."""
    return values.view({4: torch.int32, 8: torch.int64}[values.element_size()])


def assert_same(found, expected):
    for field in fields(kn.Attribution):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "prompts":
            assert (ours.text, ours.facts) == (theirs.text, theirs.facts) and torch.equal(ours.tokens, theirs.tokens)
        elif not isinstance(ours, torch.Tensor):
            assert ours == theirs, field.name
        elif ours.is_sparse:
            assert theirs.is_sparse and ours.is_coalesced() and ours.shape == theirs.shape
            assert torch.equal(ours.indices(), theirs.indices())
            assert torch.equal(bits(ours.values()), bits(theirs.values()))
        else:
            assert ours.dtype == theirs.dtype and torch.equal(bits(ours), bits(theirs)), field.name


@pytest.mark.parametrize(
    "architecture, dtype, how, keep",
    [
        *(("BertForMaskedLM", torch.float64, {}, keep) for keep in (None, 0.0, 0.1, 1.0)),
        *(("GPT2LMHeadModel", torch.float32, {"preset": "official"}, keep) for keep in (None, 0.1)),
        *(("BertForMaskedLM", torch.float64, {"layers": [1], "output": "log_prob"}, keep) for keep in (None, 0.1)),
        *(("BertForMaskedLM", torch.float32, ABLATION, keep) for keep in (None, 0.0, 0.1, 1.0)),
        *(("GPT2LMHeadModel", torch.float64, {"method": "activation"}, keep) for keep in (None, 0.1)),
    ],
)
def test_scores_read_back_bit_for_bit(tmp_path, architecture, dtype, how, keep):
    model = model_once(architecture, dtype)
    prompts = kn.make_prompts(model, FACTS[:4], templates=TEMPLATES[:2])
    expected = kn.attribute(model, prompts, keep=keep, **how, **HOW)
    summary = kn.attribute_to_file(model, tmp_path / "scores.parquet", prompts, keep=keep, **how, **HOW)
    assert_same(kn.read_attribution(summary, prompts), expected)
    n_scores = (~expected.scores.isnan()).sum() if keep is None else expected.scores.values().numel()
    assert (summary.n_prompts, summary.n_scores) == (len(prompts), n_scores)
    assert summary.n_unconverged == len(expected.unconverged)
    assert list(tmp_path.iterdir()) == [summary.path]


def test_large_parts_are_written_in_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(score_files, "SCORES_PER_GROUP", 3 * N_LAYERS * D_MLP)
    for keep in (None, 0.1):
        file = kn.attribute_to_file(model_once(), tmp_path / f"{keep}.parquet", prompts_once(), keep=keep)
        groups = pq.ParquetFile(file.path).metadata
        assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) == 3 * N_LAYERS
        expected = kn.attribute(model_once(), prompts_once(), keep=keep)
        assert_same(kn.read_attribution(file, prompts_once()), expected)


@pytest.mark.parametrize("keep", [None, 0.1])
def test_only_reads_the_chosen_prompts_in_the_order_given(tmp_path, thresholded, keep):
    prompts, path = prompts_once(), thresholded
    if keep is None:
        path = kn.attribute_to_file(model_once(), tmp_path / "scores.parquet", prompts, keep=None, **HOW)
    everything = kn.read_attribution(path, prompts)
    assert everything.keep == keep
    only = [7, 0, 22]
    selected = kn.read_attribution(path, prompts, only=only)
    whole = everything.scores.to_dense()[only]
    assert torch.equal(bits(selected.scores.to_dense()), bits(whole))
    assert selected.prompts.text == tuple(prompts.text[i] for i in only)
    for name in ("clean", "expected", "total", "n_points", "tolerance"):
        assert torch.equal(getattr(selected, name), getattr(everything, name)[only])
    assert_same(kn.read_attribution(path, prompts, only=torch.tensor(only)), selected)
    with pytest.raises(kn.ArgumentError, match="there are 0 to 23"):
        kn.read_attribution(path, prompts, only=[24])
    with pytest.raises(kn.ArgumentError, match="each prompt once"):
        kn.read_attribution(path, prompts, only=[1, 1])


def test_refining_each_relation_from_the_file_equals_refining_all(thresholded):
    prompts = prompts_once()
    at_once = kn.refine(kn.read_attribution(thresholded, prompts), share_threshold=0.3, min_prompts=1)
    one_by_one = {}
    for relation in ("P0", "P1"):
        numbers = [i for i in range(len(prompts)) if prompts.fact(i).relation == relation]
        attr = kn.read_attribution(thresholded, prompts, only=numbers)
        one_by_one |= kn.refine(attr, share_threshold=0.3, min_prompts=1)
    assert one_by_one == at_once and any(at_once.values())


def test_scores_of_other_prompts_are_refused(thresholded):
    model, prompts = model_once(), prompts_once()
    # Neither the padding nor what the prompts are filed under is asked of the model.
    again = kn.make_prompts(model, [*FACTS, kn.Fact("Norway", "P9", "Oslo")], templates=TEMPLATES)
    assert kn.read_attribution(thresholded, again.select(range(len(prompts)))).clean.shape == (len(prompts),)
    backwards = prompts.select(list(reversed(range(len(prompts)))))
    for others in (prompts.select([0, 1]), backwards, again):
        with pytest.raises(kn.DataError, match=f"24 prompts that are not these {len(others)}"):
            kn.read_attribution(thresholded, others)


def test_a_threshold_below_the_kept_scores_is_refused(thresholded):
    attr = kn.read_attribution(thresholded, prompts_once())
    with pytest.raises(kn.ArgumentError, match=r"=0\.05, but only the scores from 0\.1 .* expected 0\.1 or more"):
        kn.refine(attr, attr_threshold=0.05)


def calls(so_far, stop=None):
    """A progress callback that counts its calls, and raises ``stop`` at the third."""

    def progress(done, total):
        so_far.append(done)
        if stop is not None and len(so_far) == 3 * N_LAYERS:
            raise stop

    return progress


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("stopped")])
def test_an_interrupted_write_leaves_no_file(tmp_path, stop):
    so_far = []
    with pytest.raises(type(stop)):
        kn.attribute_to_file(model_once(), tmp_path / "x.parquet", prompts_once(), progress=calls(so_far, stop), **HOW)
    assert so_far and not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(kn.DataError, match="cannot be written"):
            kn.attribute_to_file(model_once(), tmp_path / "x.parquet", prompts_once(), **HOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_invalid_arguments_are_refused_before_the_model_runs(tmp_path, thresholded):
    model, prompts, so_far = model_once(), prompts_once(), []
    before = thresholded.path.read_bytes()
    with pytest.raises(kn.ArgumentError, match=r"thresholded.parquet exists and is not overwritten"):
        kn.attribute_to_file(model, thresholded, prompts, progress=calls(so_far))
    with pytest.raises(kn.DataError, match=r"nowhere.*cannot be written"):
        kn.attribute_to_file(model, tmp_path / "nowhere" / "x.parquet", prompts, progress=calls(so_far))
    for wrong in ({"keep": 2}, {"method": "activations"}, {"n_steps": 3}):
        with pytest.raises(kn.ArgumentError, match=next(iter(wrong))):
            kn.attribute_to_file(model, tmp_path / "x.parquet", prompts, progress=calls(so_far), **wrong)
    with pytest.raises(TypeError, match="treshold"):
        kn.attribute_to_file(model, tmp_path / "x.parquet", prompts, progress=calls(so_far), treshold=0.1)
    assert not so_far and not list(tmp_path.iterdir()) and thresholded.path.read_bytes() == before


def test_missing_files_and_files_of_other_formats_are_refused(tmp_path, thresholded):
    prompts = prompts_once()
    with pytest.raises(kn.DataError, match=r"Did you mean 'thresholded.parquet'"):
        kn.read_attribution(thresholded.path.with_name("threshold.parquet"), prompts)
    foreign = tmp_path / "foreign.parquet"
    for content, message in ((b"", "damaged"), (b"PAR1, she said", "damaged"), (b"{}", "damaged")):
        foreign.write_bytes(content)
        with pytest.raises(kn.DataError, match=message):
            kn.read_attribution(foreign, prompts)
    head = pq.read_metadata(thresholded.path).metadata
    head = {key: head[key] for key in (b"kn_lens.scores", b"kn_lens.scores.sha256")}
    table = pq.read_table(thresholded.path).replace_schema_metadata(head)
    later = b'{"version": 3}'
    for changed, message in (
        (table.replace_schema_metadata(None), "holds no scores"),
        (table.replace_schema_metadata(head | {b"kn_lens.scores": later}), "damaged"),
        (table.replace_schema_metadata(dict(zip(head, (later, sha256(later).hexdigest()), strict=True))), "version 3"),
        (table.drop_columns("total"), "other columns"),
        (table.slice(1), "lacks scores of prompt"),
        (table.set_column(1, table.schema.field(1), [table["prompt"]]), "layers that do not exist"),
    ):
        pq.write_table(changed, foreign)
        with pytest.raises(kn.DataError, match=message):
            kn.read_attribution(foreign, prompts)


def test_damaged_files_are_refused(tmp_path, thresholded):
    prompts, content = prompts_once(), thresholded.path.read_bytes()
    damaged, expected = tmp_path / "damaged.parquet", kn.read_attribution(thresholded, prompts)
    for length in range(0, len(content), len(content) // 40):
        damaged.write_bytes(content[:length])
        with pytest.raises(kn.DataError):
            kn.read_attribution(damaged, prompts)
    for at in random.Random(0).sample(range(len(content)), 200):
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            found = kn.read_attribution(damaged, prompts)
        except kn.DataError:
            continue
        assert_same(found, expected)  # the bit was of no account


MEMORY = """
import sys, torch
import kn_lens as kn
from tests.tiny import tiny_model

def peak():  # of the resident set, in MB; it never falls. (ru_maxrss would begin with that of the parent.)
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

def prompts(n):
    ids = torch.randint(5, 100, (n, 6), generator=torch.Generator().manual_seed(0))
    return kn.PromptBatch.from_tokens(ids, read_pos=torch.full((n,), 2), target_ids=ids[:, 0])

model, directory = tiny_model("BertForMaskedLM", intermediate_size=4096), sys.argv[1]
how = {"method": "activation", "keep": None, "memory_budget": 5e7}
few, many = prompts(128), prompts(128 + 1024)
kn.read_attribution(kn.attribute_to_file(model, f"{directory}/few", few, **how), few, only=[5])
before = peak()
file = kn.attribute_to_file(model, f"{directory}/many", many, **how)
kn.read_attribution(file, many, only=range(16))
flat = peak() - before
kn.read_attribution(file, many)
print(flat, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read in Linux' way")
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    """The scores of 1,024 more prompts take 100 MB. If they were held, the peak memory of the process would show it.

    The allocators give back what is freed at once, else the peak is mostly of how they happened to keep and split it.
    """
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", MEMORY, tmp_path]
    output = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    streamed, held = map(float, output.split())
    assert streamed < 40 and held > 90


@pytest.mark.parametrize("keep", [None, 0.2])
@pytest.mark.parametrize("positions", ["all", "subject", torch.tensor([[1, 0], [2, -1], [3, 1]])])
def test_scores_at_several_positions_read_back(tmp_path, positions, keep):
    model = model_once("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, FACTS[:3], templates=TEMPLATES[:1])
    expected = kn.attribute(model, prompts, positions=positions, keep=keep)
    file = kn.attribute_to_file(model, tmp_path / "scores.parquet", prompts, positions=positions, keep=keep)
    found = kn.read_position_attribution(file, prompts)
    assert torch.equal(found.positions, expected.positions) and found.keep == keep
    ours, theirs = (attr.scores.to_dense() if keep else attr.scores for attr in (found, expected))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(found.expected, expected.expected, equal_nan=True)
    for only in ([2, 0], torch.tensor([1]), range(3)):
        some = kn.read_position_attribution(file, prompts, only=only)
        selected = found[list(only)]
        assert some.prompts.text == selected.prompts.text and torch.equal(some.positions, selected.positions)
        assert torch.equal(some.pair_index, selected.pair_index)
        ours, theirs = (attr.scores.to_dense() if keep else attr.scores for attr in (some, selected))
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)
    for only, message in (([3], "there are 0 to 2"), ([1, 1], "each prompt once"), ([], "at least one")):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.read_position_attribution(file, prompts, only=only)
    with pytest.raises(kn.DataError, match="read_position_attribution"):
        kn.read_attribution(file, prompts)
    with pytest.raises(kn.DataError, match="are not these"):
        kn.read_position_attribution(file, kn.make_prompts(model, FACTS[3:6], templates=TEMPLATES[:1]))


def test_files_of_prompts_put_elsewhere_are_not_those_of_the_read_position(tmp_path):
    model, prompts = model_once(), prompts_once()
    moved = prompts.at("subject_last")
    file = kn.attribute_to_file(model, tmp_path / "scores.parquet", moved)
    assert torch.equal(kn.read_attribution(file, moved).prompts.post_pos, moved.post_pos)
    with pytest.raises(kn.DataError, match="are not these"):
        kn.read_attribution(file, prompts)
    with pytest.raises(kn.DataError, match=r"one position.*read_attribution\(path"):
        kn.read_position_attribution(file, prompts)
