"""The notebooks run completely, reproduce their stored outputs, and can be read without being run."""

import json

import pytest

from tests.notebooks import EXAMPLES, NOTEBOOKS, PLOTLY, agree, executed, kernels, read, shown

KILOBYTES = 150


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags_of(cell):
    return cell.metadata.get("tags", [])


@pytest.fixture(scope="module")
def kernel_dir():
    with kernels() as directory:
        yield directory


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_reproduces_its_stored_outputs(path, kernel_dir):
    """The outputs of cells tagged ``varies`` depend on the processor; their assertions check them."""
    stored = read(path)
    for before, after in zip(code_of(stored), code_of(executed(stored, kernel_dir)), strict=True):
        assert not [one for one in shown(after) if one.startswith("stderr")], before.source
        assert [output.output_type for output in after.outputs] == [output.output_type for output in before.outputs]
        if "varies" not in tags_of(before):
            for old, new in zip(shown(before), shown(after), strict=True):
                assert agree(old, new), f"{before.source}\n--- stored\n{old}\n--- shown now\n{new}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_complete_small_and_with_images(path):
    notebook = read(path)
    assert path.stat().st_size < 1000 * KILOBYTES
    assert notebook.cells[0].source.startswith("# ") and notebook.cells[-1].cell_type == "markdown"
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    figures = [output.data for output in outputs if PLOTLY in output.get("data", {})]
    assert figures and all("image/png" in data for data in figures)
    for cell in code_of(notebook):
        failed = [output for output in cell.outputs if output.output_type == "error"]
        assert len(failed) == ("raises-exception" in tags_of(cell))
        for output in cell.outputs:  # an image says to those who do not see it what is to be seen
            if PLOTLY in output.get("data", {}):
                assert cell.metadata["mystnb"]["image"]["alt"]
    text = json.dumps([shown(cell) for cell in code_of(notebook)])
    assert "/tmp" not in text and "/home" not in text and "site-packages" not in text


def test_every_notebook_is_in_the_gallery_and_in_the_list_of_examples():
    gallery = (EXAMPLES.parent / "docs" / "notebooks.md").read_text(encoding="utf-8")
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 10
    for path in NOTEBOOKS:
        assert f"notebooks/{path.stem}\n" in gallery and f"({path.name})" in listed
