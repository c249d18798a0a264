"""A bar in a notebook is HTML that any notebook shows, and leaves nothing; elsewhere nothing is drawn."""

from contextlib import contextmanager

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

import kn_lens as kn
from kn_lens._core.progress import progress_bar
from tests.effects import FACTS, sets_of
from tests.tiny import loaded

CELL = """
from kn_lens._core import progress
progress.UPDATE_EVERY = 0
shown = []
update = type(get_ipython().display_pub).publish
def publish(self, data, **options):
    shown.append(data["text/html"])
    return update(self, data, **options)
type(get_ipython().display_pub).publish = publish
with progress.progress_bar("Attributing <b>", "prompts") as report:
    report(1, 4)
print(shown)
"""


def test_a_notebook_shows_a_bar_and_keeps_none(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    local = {"transport": "ipc", "connection_file": str(tmp_path / "kernel.json")}  # opens no port
    client = NotebookClient(notebook, config=Config(KernelManager=local), kernel_name="python3", timeout=120)
    client.execute()
    bar, printed = notebook.cells[0].outputs
    assert bar.data["text/html"] == ""
    assert '<progress value="1" max="4"></progress> Attributing &lt;b&gt;: 1 of 4 prompts' in printed.text
    assert "<progress></progress>" in printed.text


def test_nothing_is_drawn_where_stderr_is_no_terminal(capsys):
    with progress_bar("Attributing", "prompts") as report:
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def measure(model, prompts, sets, **keywords):
    return kn.measure(model, prompts, kn.Suppress(sets[FACTS[0]]), **keywords)


def update_effects(model, prompts, sets, **keywords):
    return kn.update_effects(model, {FACTS[1]: "Tokyo"}, sets, **keywords)


def choose_lambdas(model, prompts, sets, **keywords):
    return kn.choose_lambdas(model, {FACTS[1]: "Tokyo"}, sets, prompts, grid=[(1, 2)], **keywords)


WORK = {
    "Attributing": kn.attribute,
    "Measuring": measure,
    "Measuring controls": kn.controlled_effects,
    "Measuring updates": update_effects,
    "Measuring erasures": kn.erase_effects,
    "Choosing the strength": choose_lambdas,
}


@pytest.mark.parametrize("description", WORK)
def test_true_draws_a_bar_and_a_function_is_called(description, monkeypatch):
    drawn = []

    @contextmanager
    def bar(description, unit):
        drawn.append(description)
        yield lambda done, total: drawn.append((done, total))

    monkeypatch.setattr("kn_lens._core.progress.progress_bar", bar)
    model = loaded("GPT2LMHeadModel")
    arguments = [model, kn.make_prompts(model, FACTS)]
    if description != "Attributing":
        arguments.append(sets_of(FACTS))
    work, called = WORK[description], []
    with_bar = work(*arguments, progress=True)
    with_function = work(*arguments, progress=lambda done, total: called.append((done, total)))
    assert drawn[0] == description and drawn[1:] == called
    assert called[-1][0] == called[-1][1] > 1 and called == sorted(called)
    assert repr(with_bar) == repr(with_function) == repr(work(*arguments))
