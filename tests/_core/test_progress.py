"""A bar in a notebook is HTML that any notebook shows, and leaves nothing; elsewhere nothing is drawn."""

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from kn_lens._core.progress import progress_bar

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
