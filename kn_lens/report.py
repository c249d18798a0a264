"""One HTML file about a run, which opens anywhere and offline; and its figures as files.

    kn-lens report run/            # run/report.html

Everything is read from the run directory; no model is loaded. A run that was stopped has a report too: it says what is
not there yet, and the command that makes it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from kn_lens._run_records import RunRecords, checked_path
from kn_lens._whole_files import write_whole
from kn_lens.errors import ArgumentError, DataError

__all__ = ["write_figures", "write_report", "write_tables"]


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run: one HTML file that loads nothing else.

    Args:
        run: directory of ``kn-lens reproduce``, of a finished run or of a stopped one.
        out: the file to write, whole or not at all; ``report.html`` in the run directory unless given.

    Returns:
        The file. Its size is about 5 MB (the drawing library) and a few hundred bytes for each fact's prompt.

    Raises:
        ArgumentError: ``run`` is no run directory, or ``out`` cannot be a file.
        DataError: the run has no results yet, a file of it is damaged, or the report cannot be written.

    Example:
        >>> import tempfile
        >>> write_report(tempfile.mkdtemp())  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        kn_lens.errors.ArgumentError: ... is no run directory: it has no config.toml and provenance.json. ...
    """
    from kn_lens._report.facts import fact_pages
    from kn_lens._report.page import page
    from kn_lens._report.panels import drawn, sources

    records = RunRecords.read(run)
    path = records.path / "report.html" if out is None else checked_path(out)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"cannot be written: there is no directory {path.parent}"
        raise ArgumentError(f"{path} {what}; expected the name of a file to write.")
    facts, tables = fact_pages(records), sources(records)
    if facts is None and not tables:
        raise DataError(f"{records.path} has no results yet. They are made by: {records.command()}")
    _write(path, page(records, tables, drawn(records, tables), facts))
    return path


def write_figures(
    run: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None, formats: Sequence[str] = ("html",)
) -> list[Path]:
    """Write the figures of a run as files.

    Args:
        run: as for ``write_report``.
        folder: where to; ``figures`` in the run directory unless given. Made if need be.
        formats: of ``html``, ``png``, ``svg``; see ``kn_lens.figures.save_figures``.

    Returns:
        The files.

    Raises:
        ArgumentError: as ``write_report``; an unknown format; or what draws images is not installed.
        DataError: as ``write_report``.
    """
    from kn_lens._report.panels import drawn, sources
    from kn_lens.figures import save_figures

    records = RunRecords.read(run)
    return save_figures(drawn(records, sources(records)), folder or records.path / "figures", formats)


def write_tables(run: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write the report's tables of facts and of neurons as CSV, beside the run's own tables.

    Args:
        run: as for ``write_report``.
        folder: where to; ``tables`` in the run directory unless given. Made if need be.

    Returns:
        ``facts.csv`` and ``neurons.csv``: the columns that the report shows, with all digits. A fact's neurons
        are named ``L3N412`` with spaces between them, a neuron's tokens and logits are JSON lists.

    Raises:
        ArgumentError: as ``write_report``.
        DataError: as ``write_report``, or no fact has been asked yet.
    """
    from kn_lens._report.facts import fact_pages

    records = RunRecords.read(run)
    facts = fact_pages(records)
    if facts is None:
        raise DataError(f"{records.path} has no facts. They are made by: {records.command()}")
    folder = records.path / "tables" if folder is None else Path(folder)
    tables = {"facts": facts.facts, "neurons": facts.neurons}
    if "neurons" in facts.facts:
        names = [" ".join(f"L{layer}N{index}" for layer, index in pairs) for pairs in facts.facts["neurons"]]
        tables["facts"] = facts.facts.assign(neurons=names)
    for name in {"tokens", "logits"} & set(facts.neurons):
        tables["neurons"] = tables["neurons"].assign(**{name: facts.neurons[name].map(json.dumps)})
    for name, table in tables.items():
        _write(folder / f"{name}.csv", table.to_csv(index=False))
    return [folder / f"{name}.csv" for name in tables]


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
