"""Figures as files: HTML pages and images."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._core.atomic import part_folder, read_whole, replace_durably, write_whole
from kn_lens._core.checks import check_kind, check_path, wrong_kind
from kn_lens._core.escape import escaped
from kn_lens._core.names import FIGURE_FORMATS
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.reports.style import description_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDTH = 900
"""Width of an image, in pixels."""
PNG_SCALE = 2
"""Pixels of a PNG per pixel of the figure."""


def save_figures(
    figures: "Mapping[str, Figure]",
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("html",),
) -> list[Path]:
    """Write figures to files with their names. Each file is written whole or not at all.

    Args:
        figures: figures by name.
        folder: output folder; created if it does not exist.
        formats: any of ``html`` (one page per figure that opens offline, with a common ``plotly.min.js``), ``png`` and
            ``svg``.

    Returns:
        The files of the figures, by format and in their order.

    Raises:
        ArgumentError: No figures by name, a format is unknown, a name is not a file name, or, for images, kaleido or a
            Chrome or Chromium browser is missing.
        DataError: A file cannot be written.

    Example:
        >>> import tempfile, pandas as pd
        >>> from kn_lens import figures
        >>> scores = pd.DataFrame({"layer": [3], "index": [7], "score": [0.5], "low": [0.4], "high": [0.6]})
        >>> [path.name for path in save_figures({"scores": figures.neuron_scores(scores)}, tempfile.mkdtemp())]
        ['scores.html']
    """
    check_kind(figures, Mapping, "figures by name: {'scores': attr.plot()}", "figures")
    for name, figure in figures.items():
        if not hasattr(figure, "to_plotly_json"):
            raise wrong_kind(figure, "a figure, such as attr.plot() returns", f"the figure {name!r}")
    check_path(folder, "folder")
    for form in formats:
        if form not in FIGURE_FORMATS:
            hint = did_you_mean(form, FIGURE_FORMATS)
            raise ArgumentError(f"Format {form!r} of figures; expected some of {', '.join(FIGURE_FORMATS)}.{hint}")
    for name in figures:
        if not name or set(name) & set("/\\\0") or name in (".", ".."):
            raise ArgumentError(f"Figure name {name!r}; expected a file name without a directory.")
    if not figures:
        return []
    folder = Path(folder)
    files: list[tuple[str, str]] = []
    images: list[tuple[str, str]] = []
    for form in formats:
        for name in figures:
            files.append((name, form))
            if form != "html":
                images.append((name, form))
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
    return [folder / f"{name}.{form}" for name, form in files]


def _write_pages(figures: "Mapping[str, Figure]", folder: Path) -> None:
    from plotly.offline import get_plotlyjs

    library = folder / "plotly.min.js"
    text = get_plotlyjs()
    if not library.exists() or read_whole(library) != text.encode():
        write_whole(library, text)
    for name, figure in figures.items():
        write_whole(folder / f"{name}.html", _page(name, figure))


def _page(name: str, figure: "Figure") -> str:
    """Return the page of a figure, with its text alternative."""
    drawing = figure.to_html(
        full_html=False,
        include_plotlyjs="directory",
        div_id=name,
        config={"displaylogo": False},
    )
    layout: Any = figure.layout
    title = escape(escaped(layout.title.text or name))
    description = escape(escaped(description_of(figure)))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n</head>\n<body>\n"
        f'<main>\n<div role="img" aria-label="{description}">\n{drawing}\n</div>\n</main>\n</body>\n</html>\n'
    )


def _check_kaleido() -> None:
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise ArgumentError(
            "Figures as PNG or SVG need kaleido: pip install 'kn-lens[figures]'. Alternatives: "
            "the format html, or the button in the corner of each figure in the report."
        ) from None


def _write_images(
    figures: "Mapping[str, Figure]",
    folder: Path,
    images: Sequence[tuple[str, str]],
) -> None:
    """Draw all images in one headless browser, without network access."""
    import kaleido
    from choreographer.errors import ChromeNotFoundError

    with part_folder(folder) as scratch:
        tasks: list[Any] = []
        for name, form in images:
            options = {"format": form, "width": WIDTH, "scale": PNG_SCALE if form == "png" else 1}
            tasks.append(
                {
                    "fig": figures[name],
                    "path": str(Path(scratch, f"{name}.{form}")),
                    "opts": options,
                }
            )
        try:
            kaleido.write_fig_from_object_sync(
                tasks,
                cancel_on_error=True,
                kopts={"mathjax": False},
            )
        except ChromeNotFoundError:
            raise ArgumentError(
                "Figures as PNG or SVG are drawn by Chrome or Chromium; neither was found. "
                "Install one ('apt install chromium', or 'kaleido_get_chrome'), or set the "
                "environment variable BROWSER_PATH to its path."
            ) from None
        for name, form in images:
            replace_durably(scratch / f"{name}.{form}", folder / f"{name}.{form}")
