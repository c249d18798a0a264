"""The command line in this process with captured streams and exit code, and models and facts for it."""

import io
import json
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import pytest
from transformers.utils import logging as transformers_logging

import kn_lens as kn
from kn_lens.cli import _terminal, main
from tests.tiny import COUNTRIES, tiny_checkpoint

CAPITAL = ["The capital of [X] is [Y].", "[Y] is the capital of [X].", "In fact, [X] has its seat in [Y]", "[X], [Y]."]
CAPITAL_OF = ["[X] is the capital of [Y].", "The capital of [Y] is [X].", "[X] lies in [Y].", "The capital [X] of [Y]."]


@pytest.fixture(scope="module")
def cli():
    """Run ``kn-lens``; returns exit code, stdout and stderr."""

    def run(*args):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            patch.setattr("kn_lens.cli._prepare_process", lambda: None)  # it is for a process of its own
            patch.setattr(_terminal, "FIRST_LINE", 1e6)  # how busy the machine is shall not show in what is printed
            patch.setattr(sys, "argv", ["kn-lens", *map(str, args)])
            with warnings.catch_warnings(), pytest.raises(SystemExit) as exit_info:
                main()
        return exit_info.value.code, *(stream.buffer.getvalue().decode() for stream in streams)

    # What the entry point does by what is in the environment when transformers is imported.
    transformers_logging.disable_progress_bar()
    yield run
    transformers_logging.enable_progress_bar()


@pytest.fixture
def terminal(monkeypatch):
    """Let the results of this process go to a terminal with so many columns."""

    def set_width(columns):
        monkeypatch.setattr(_terminal.EscapingConsole, "is_terminal", True)
        for console in (_terminal.out, _terminal.err):  # they have the width that COLUMNS said at import, if any
            monkeypatch.setattr(console, "_width", columns)
            monkeypatch.setattr(console, "_height", 40)

    return set_width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def checkpoints(folder):
    """A masked and a causal checkpoint, as directories."""
    kinds = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel"}
    return {name: str(tiny_checkpoint(kind, folder / name)) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def facts_file(folder):
    facts = [kn.Fact(country, "P36", capital, tuple(CAPITAL)) for country, capital in COUNTRIES.items()]
    facts += [kn.Fact(capital, "P1376", country, tuple(CAPITAL_OF)) for country, capital in COUNTRIES.items()]
    kn.FactSet(facts).to_jsonl(folder / "facts.jsonl")
    return str(folder / "facts.jsonl")


@pytest.fixture(scope="module")
def found_neurons(cli, checkpoints, facts_file, tmp_path_factory):
    """The content of a neuron file of the masked checkpoint, and the document that came with it."""
    path = tmp_path_factory.mktemp("found") / "neurons.json"
    code, out, err = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "--out", path, "--json")
    assert (code, err) == (0, "")
    return path.read_bytes(), out


@pytest.fixture
def found(found_neurons, tmp_path):
    """A file of its own with these neurons, and the document."""
    content, out = found_neurons
    path = tmp_path / "neurons.json"
    path.write_bytes(content)
    return path, json.loads(out)
