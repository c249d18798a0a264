"""The benchmark for GPUs runs on a CPU with small shapes, so that it is right the first time it has a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu

ROOT = Path(__file__).parents[2]


def gpu_benchmark(*arguments: str) -> str:
    """Run the benchmark with small shapes, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--device", "cpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_it_measures_every_row(tmp_path):
    profile = tmp_path / "profile.txt"
    printed = gpu_benchmark("--seconds", "3000", "--profile", "GPT-2, bf16", "--profile-file", str(profile))
    assert not [word for word in ("failed", "stopped", "skipped") if word in printed], printed
    for case in gpu.CASES:
        expected = len(case.rows) + 1 + case.captum  # the loop
        assert printed.count(f"\n| {case.model} | {case.precision} | ") == expected
        assert printed.count(f"\n| {case.name}, in parts") == len(case.growth)
    assert "\n| cpu | " in printed and ", attributions " in printed
    assert "ParaRel, 215,929 prompts at this rate: " in printed
    assert "aten::" in profile.read_text(encoding="utf-8")


def test_rows_are_skipped_once_the_time_is_over(monkeypatch, capsys):
    only = ("--only", "Llama 2", "reproduce")
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu", "--seconds", "0.5", *only])
    gpu.main()
    printed = capsys.readouterr().out
    assert "Llama 2 7B shape, bf16, weights: skipped, the time is over" in printed
    assert "reproduce on two cores: skipped, the time is over" in printed
    assert "BERT-base" not in printed


@pytest.fixture
def session(tmp_path):
    """A session of small rows on the processor."""
    return gpu.Session(
        device=gpu.torch.device("cpu"),
        tiny=True,
        deadline=gpu.time.perf_counter() + 60,
        only=(),
        profile="",
        profile_file=tmp_path / "profile.txt",
    )


def test_a_row_that_takes_too_long_or_fails_says_so_and_the_next_one_runs(session, capsys):
    def endless() -> str:
        while True:
            pass

    def failing() -> str:
        raise RuntimeError("no kernel")

    session.attempt("first", endless, limit=0.1)
    session.attempt("second", failing)
    session.attempt("third", lambda: "| third |")
    assert capsys.readouterr().out.splitlines() == [
        "first: stopped at its time limit",
        "second: failed, RuntimeError: no kernel",
        "| third |",
    ]


@pytest.mark.parametrize(("name", "precision"), [("BERT-base", "float32"), ("GPT-2", "float32")])
def test_the_loop_captum_and_kn_lens_agree_on_its_prompts(session, name, precision):
    case = gpu.Case(model=name, precision=precision, rows=())
    hf_model = gpu.random_model(session, case)
    prompts = gpu.random_prompts(session, hf_model.config, 3)
    loop = gpu.torch.stack([gpu.loop_scores(hf_model, prompts, number) for number in range(3)])
    captum = gpu.captum_scores(hf_model, prompts)
    model = gpu.kn.load_model(hf_model, check=False)
    scores = gpu.kn.attribute(model, prompts, preset="official").scores
    largest = loop.abs().max()
    assert largest > 1e-8
    assert (captum - loop).abs().max() < 1e-5 * largest
    assert (scores - loop).abs().max() < 1e-5 * largest
