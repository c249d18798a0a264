"""The report of a run: one HTML file that opens offline, its figures and its tables as files.

    kn-lens report run/            # run/report.html

Everything is read from the run directory; no model is loaded. The report of an incomplete run lists what is missing,
and the command that computes it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens._core.atomic import write_whole
from kn_lens._core.checks import check_kind
from kn_lens.errors import ArgumentError, DataError
from kn_lens.reports.style import neuron_names
from kn_lens.runs.reader import RunRecords, checked_path

if TYPE_CHECKING:
    from kn_lens.reports.compare.comparison import Comparison

__all__ = ["write_comparison", "write_figures", "write_report", "write_tables"]


def write_report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report of a run: one HTML file that loads nothing else.

    Args:
        run: directory of ``kn-lens reproduce``, complete or not.
        out: output file, written whole or not at all; ``report.html`` in the run directory by default.

    Returns:
        The file. Its size is about 5 MB (the drawing library) and a few hundred bytes for each prompt.

    Raises:
        ArgumentError: ``run`` is not a run directory, or ``out`` cannot be a file.
        DataError: The run has no results yet, one of its files is damaged, or the report cannot be written.

    Example:
        >>> import tempfile
        >>> write_report(tempfile.mkdtemp())  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        kn_lens.errors.ArgumentError: ... is no run directory: it has no config.toml and provenance.json. ...
    """
    from kn_lens.reports.html.facts import fact_pages
    from kn_lens.reports.html.page import page
    from kn_lens.reports.html.panels import draw_figures, read_tables

    records = RunRecords.read(run)
    path = records.path / "report.html" if out is None else checked_path(out)
    if path.is_dir():
        raise ArgumentError(f"{path} is a directory; expected a file name.")
    if not path.parent.is_dir():
        raise ArgumentError(f"{path} cannot be written: there is no directory {path.parent}.")
    facts = fact_pages(records)
    tables = read_tables(records)
    if facts is None and not tables:
        raise DataError(f"{records.path} has no results yet. This command computes them: {records.command()}")
    _write(path, page(records, tables, draw_figures(records, tables), facts))
    return path


def write_comparison(comparison: "Comparison", out: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison: runs side by side in one HTML file that loads nothing else.

    Args:
        comparison: result of ``compare_runs``.
        out: output file, written whole or not at all.

    Returns:
        The file.

    Raises:
        ArgumentError: ``out`` cannot be a file.
        DataError: It cannot be written.

    Example:
        >>> import kn_lens as kn
        >>> kn.write_comparison(kn.compare_runs(["run_a", "run_b"]), "comparison.html")   # doctest: +SKIP
    """
    from kn_lens.reports.compare.comparison import Comparison
    from kn_lens.reports.html.comparison import comparison_page

    check_kind(comparison, Comparison, "a Comparison: kn_lens.compare_runs(['run_a', 'run_b'])", "comparison")
    path = checked_path(out)
    if path.is_dir():
        raise ArgumentError(f"{path} is a directory; expected a file name.")
    _write(path, comparison_page(comparison))
    return path


def write_figures(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("html",),
) -> list[Path]:
    """Write the figures of a run as files.

    Args:
        run: as for ``write_report``.
        folder: output folder, created if it does not exist; ``figures`` in the run directory by default.
        formats: any of ``html``, ``png``, ``svg``; see ``kn_lens.reports.figures.save_figures``.

    Returns:
        The files.

    Raises:
        ArgumentError: As for ``write_report``; a format is unknown; or the drawing of images is not installed.
        DataError: As for ``write_report``.
    """
    from kn_lens.reports.figures import save_figures
    from kn_lens.reports.html.panels import draw_figures, read_tables

    records = RunRecords.read(run)
    figures = draw_figures(records, read_tables(records))
    return save_figures(figures, folder or records.path / "figures", formats)


def write_tables(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write the tables of facts and of neurons in the report as CSV, beside the other tables of the run.

    Args:
        run: as for ``write_report``.
        folder: output folder, created if it does not exist; ``tables`` in the run directory by default.

    Returns:
        ``facts.csv`` and ``neurons.csv``: the columns of the report, with all digits. The neurons of a fact have names
        such as ``L3N412``, separated by spaces; the tokens and logits of a neuron are JSON lists.

    Raises:
        ArgumentError: As for ``write_report``.
        DataError: As for ``write_report``, or no fact has been queried yet.
    """
    from kn_lens.reports.html.facts import fact_pages

    records = RunRecords.read(run)
    pages = fact_pages(records)
    if pages is None:
        raise DataError(f"{records.path} has no facts. This command computes them: {records.command()}")
    folder = records.path / "tables" if folder is None else Path(folder)
    facts = pages.facts
    if "neurons" in facts:
        facts = facts.assign(neurons=facts["neurons"].map(neuron_names).map(" ".join))
    neurons = pages.neurons
    for name in ("tokens", "logits"):
        if name in neurons:
            neurons = neurons.assign(**{name: neurons[name].map(json.dumps)})
    paths = []
    for name, table in (("facts", facts), ("neurons", neurons)):
        paths.append(folder / f"{name}.csv")
        _write(paths[-1], table.to_csv(index=False))
    return paths


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
