"""The notebooks in ``examples/``, and what runs them: ``python -m tests.notebooks [NAME ...]`` stores what they show.

They are stored with their outputs, so that they can be read where they cannot be run. A figure is stored twice: as
Plotly's JSON, which Jupyter draws, and as a PNG for all that does not; drawing it takes kaleido and a Chromium.
"""

import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.forked_kernel import NAME, forked_kernels

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

PLOTLY = "application/vnd.plotly.v1+json"
ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
"""Of the kernels: figures as data, and no bars, which are for who waits, nor word that they could be prettier."""
IMPORTED = (
    "ipykernel.kernelapp",
    "kn_lens.hosts.loading",
    "kn_lens.reports.report",
    "pandas",
    "plotly.io",
    "transformer_lens.model_bridge",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
)
"""What most notebooks import by and by: once, before their processes are forked."""
SECONDS = 1800
"""For a cell."""
SCALE = 1.5
"""Pixels of a stored image, for each of the page."""
RELATIVE, LAST_DIGITS = 0.02, 1.5
"""How far numbers may be from those stored: other processors round otherwise. Whole numbers must be the same."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?")


def read(path: Path) -> NotebookNode:
    """Return a notebook, checked against the format."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


@contextmanager
def kernels() -> Iterator[Path]:
    """Have processes for notebooks at hand until the block ends; yields the directory that lists their kind."""
    with forked_kernels(IMPORTED, {**os.environ, **ENVIRONMENT}) as directory:
        yield directory


def executed(notebook: NotebookNode, kernel_dir: Path) -> NotebookNode:
    """Return a notebook with the outputs that it has in a process of its own, in an empty directory.

    Args:
        notebook: with the cells.
        kernel_dir: what ``kernels`` yields.

    Raises:
        CellExecutionError: a cell raised what it was not expected to.
    """
    fresh = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as sockets, tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(
            kernel_name=NAME,
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernel_dir)]),
            transport="ipc",  # opens no port
            connection_file=f"{sockets}/kernel.json",
        )
        client = NotebookClient(
            fresh,
            km=manager,
            resources={"metadata": {"path": folder}},
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(cleanup_kc=True)
    return fresh


def shown(cell: NotebookNode) -> list[str]:
    """Return what a cell shows as text, a figure as the word."""
    texts = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            texts.append(f"{output.name}: {output.text}")
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        else:
            texts.append("figure" if PLOTLY in output.data else output.data["text/plain"])
    return texts


def agree(text: str, other: str) -> bool:
    """Return whether texts are the same but for spaces, and for the last digits of numbers.

    >>> agree("gap 0.0123, 38%", "gap  0.0124, 37%"), agree("neuron 12", "neuron 13"), agree("a 1.0", "b 1.0")
    (True, False, False)
    """
    words = [re.sub(r"[\s-]+", " ", _NUMBER.sub(" # ", one)) for one in (text, other)]
    numbers = [_NUMBER.findall(one) for one in (text, other)]
    return words[0] == words[1] and all(_close(*pair) for pair in zip(*numbers, strict=True))


def _close(number: str, other: str) -> bool:
    if number == other:
        return True
    if "." not in number + other and not (number.endswith("%") and other.endswith("%")):
        return False
    a, b = (float(one.rstrip("%")) for one in (number, other))
    digits = len(number.rstrip("%").partition("e")[0].partition(".")[2])
    return abs(a - b) <= max(RELATIVE * abs(a), LAST_DIGITS * 10**-digits)


def with_images(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook whose figures are images too."""
    import plotly.io as pio

    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if PLOTLY in output.get("data", {}):
                image = pio.to_image(dict(output.data[PLOTLY]), format="png", scale=SCALE, validate=False)
                output.data["image/png"] = base64.b64encode(_with_few_colors(image)).decode()
    return notebook


def _with_few_colors(image: bytes) -> bytes:
    """Return a PNG with at most 64 colours, which figures hardly have: a quarter of the size."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").quantize(64).save(small, "png", optimize=True)
    return small.getvalue()


def main(names: list[str]) -> None:
    """Run notebooks, all unless some are named, and store what they show."""
    with kernels() as kernel_dir:
        for path in [EXAMPLES / f"{name}.ipynb" for name in names] or NOTEBOOKS:
            nbformat.write(with_images(executed(read(path), kernel_dir)), path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
