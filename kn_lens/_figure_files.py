"""Figures as files: pages to look at and images to print."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._whole_files import part_folder, read_whole, write_whole
from kn_lens.errors import ArgumentError, DataError, did_you_mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FORMATS = ("html", "png", "svg")
WIDTH, SCALE = 900, 2
"""Of images: pixels of a figure's width, and how many times as many a PNG has."""


def save_figures(
    figures: "Mapping[str, Figure]", folder: str | os.PathLike[str], formats: Sequence[str] = ("html",)
) -> list[Path]:
    """Write figures as files named after them, each whole or not at all.

    Args:
        figures: by name.
        folder: where to; made if need be.
        formats: of ``html`` (a page each that opens offline, one ``plotly.min.js`` beside them), ``png``, ``svg``.

    Returns:
        The files of the figures, in their order.

    Raises:
        ArgumentError: an unknown format; a name that is no file's; or for images, kaleido or a Chrome or Chromium
            browser is not there.
        DataError: a file cannot be written.

    Example:
        >>> import tempfile, pandas as pd
        >>> from kn_lens import figures
        >>> scores = pd.DataFrame({"layer": [3], "index": [7], "score": [0.5], "low": [0.4], "high": [0.6]})
        >>> [path.name for path in save_figures({"scores": figures.neuron_scores(scores)}, tempfile.mkdtemp())]
        ['scores.html']
    """
    for form in formats:
        if form not in FORMATS:
            raise ArgumentError(
                f"Figures as {form!r}; expected some of {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}"
            )
    for name in figures:
        if not name or set(name) & set("/\\\0") or name in (".", ".."):
            raise ArgumentError(f"A figure is called {name!r}; expected the name of a file, without a directory.")
    if not figures:
        return []
    folder = Path(folder)
    images = [(name, form) for form in formats if form != "html" for name in figures]
    if images:
        _check_kaleido()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if "html" in formats:
            _write_pages(figures, folder)
        if images:
            _write_images(figures, folder, images)
    except OSError as error:
        raise DataError(f"The figures cannot be written to {folder}: {error.strerror or error}.") from error
    return [folder / f"{name}.{form}" for form in formats for name in figures]


def _write_pages(figures: "Mapping[str, Figure]", folder: Path) -> None:
    from plotly.offline import get_plotlyjs

    library = folder / "plotly.min.js"
    text = get_plotlyjs()
    if not library.exists() or read_whole(library) != text.encode():
        write_whole(library, text)
    for name, figure in figures.items():
        page = figure.to_html(include_plotlyjs="directory", div_id=name, config={"displaylogo": False})
        write_whole(folder / f"{name}.html", page)


def _check_kaleido() -> None:
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise ArgumentError(
            "Figures as PNG or SVG need kaleido: pip install 'kn-lens[figures]'. Or take html, or save a figure "
            "from the report by the button in its corner."
        ) from None


def _write_images(figures: "Mapping[str, Figure]", folder: Path, images: Sequence[tuple[str, str]]) -> None:
    """Draw images in a browser that nobody sees, all with one start of it; nothing is loaded from elsewhere."""
    import kaleido
    from choreographer.errors import ChromeNotFoundError

    with part_folder(folder) as scratch:
        wanted: list[Any] = [
            {
                "fig": figures[name],
                "path": str(Path(scratch, f"{name}.{form}")),
                "opts": {"format": form, "width": WIDTH, "scale": SCALE if form == "png" else 1},
            }
            for name, form in images
        ]
        try:
            kaleido.write_fig_from_object_sync(wanted, cancel_on_error=True, kopts={"mathjax": False})
        except ChromeNotFoundError:
            raise ArgumentError(
                "Figures as PNG or SVG are drawn by Chrome or Chromium; neither was found. Install one ('apt install "
                "chromium', or 'kaleido_get_chrome'), or name it in the environment variable BROWSER_PATH."
            ) from None
        for name, form in images:
            Path(scratch, f"{name}.{form}").replace(folder / f"{name}.{form}")
