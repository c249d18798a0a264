"""Selection of facts on the command line: source, format, relations, subjects. PyTorch is not needed."""

from collections.abc import Sequence
from pathlib import Path

from kn_lens._core.atomic import read_whole
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import FactSet

_HEAD_BYTES = 1 << 16

WITH_LANGUAGES = ("world", "mlama", "mpararel")
"""Formats whose source may be followed by languages: ``world:de,fr``."""


def split_languages(source: str) -> tuple[str, tuple[str, ...] | None]:
    """Return a source without the languages that follow it, and these languages; None if none follow.

    >>> split_languages("world:de,fr"), split_languages("world")
    (('world', ('de', 'fr')), ('world', None))
    """
    path, colon, languages = source.rpartition(":")
    if not colon or Path(source).exists() or not (path == "world" or Path(path).is_dir()):
        return source, None
    return path, tuple(languages.split(","))


def detect_format(source: str) -> str:
    """Return the format of a file or folder of facts, judged by its name and its first bytes.

    Raises:
        ArgumentError: Neither determines the format.
    """
    source, _ = split_languages(source)
    path = Path(source)
    if source == "world":
        return "world"
    if path.is_dir():
        if (path / "tuples").is_dir():
            return "mpararel"
        if any(path.glob("*/templates.jsonl")):
            return "mlama"
        return "pararel" if (path / "facts").is_dir() else "lama"
    head = head_of(path)
    if path.suffix == ".csv":
        return "csv"
    if path.suffix == ".json":
        return "counterfact" if '"requested_rewrite"' in head else "official"
    if path.suffix == ".jsonl" or not path.exists():  # the reader reports a missing file
        return "lama" if '"sub_label"' in head else "jsonl"
    raise ArgumentError(
        f"{source}: the suffix {path.suffix!r} does not determine the format. Name the format with "
        "--format, or use a file that ends in .jsonl, .json or .csv."
    )


def head_of(path: Path) -> str:
    """Return the first bytes of a file as text; nothing where there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode(errors="replace")


def read_facts(source: str, format: str | None, templates: Path | None, split: str) -> FactSet:
    """Read all facts of a source.

    Args:
        source: a path, or ``world``. Languages may follow those of several: ``world:de,fr``.
        format: one of ``kn_lens._core.names.FACT_FORMATS``; None detects it.
        templates: source of the templates, in place of those of the files; ``kn_lens`` for the package's own.
        split: split of the templates of the embedded facts.

    Raises:
        DataError: The file is missing or malformed. The message names the line.
        ArgumentError: Options contradict each other.
    """
    format = format or detect_format(source)
    path, languages = split_languages(source)
    if languages is not None and format not in WITH_LANGUAGES:
        raise ArgumentError(
            f"{source!r} names the languages {', '.join(languages)}, and {format} facts have none; expected {path!r}."
        )
    source = path
    if templates is not None and format not in ("pararel", "lama", "jsonl", "csv"):
        raise ArgumentError(
            f"--templates is for pararel, lama, jsonl and csv files; {format} facts have their own templates."
        )
    if split != "all" and format != "world":
        raise ArgumentError(f"--split {split} is for the embedded facts, 'world'; {source!r} has no splits.")
    if format == "world":
        if source != "world":
            raise ArgumentError(f"--format world is for the embedded facts, 'world'; got {source!r}.")
        return FactSet.world(split=split, languages=languages)  # type: ignore[arg-type]  # one of SPLITS
    if format == "mlama":
        return FactSet.from_mlama(source, languages)
    if format == "mpararel":
        return FactSet.from_mpararel(source, languages)
    if format == "official":
        return FactSet.from_official(source)
    if format == "counterfact":
        return FactSet.from_counterfact(source)
    if format == "pararel":
        return FactSet.from_pararel(source, templates=templates)
    if format == "lama":
        return FactSet.from_lama(source, templates=templates)
    if format == "csv":
        return FactSet.from_csv(source, templates=templates)
    return FactSet.from_jsonl(source, templates=templates)


def read_texts(path: Path) -> list[str]:
    """Read a text file in UTF-8, a text a line; empty lines are left out.

    Raises:
        DataError: The file is missing, no text in UTF-8, or empty.
    """
    try:
        lines = read_whole(path).decode().splitlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null character
        raise DataError(f"{path}: cannot be read as text in UTF-8 ({error}).") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path}: there is no text in it; expected at least one, a text a line.")
    return texts


def choose(
    facts: FactSet,
    relations: Sequence[str] | None,
    subjects: Sequence[str] | None,
    limit: int | None,
    seed: int,
) -> FactSet:
    """Return the facts of some relations and subjects, at most ``limit`` of each relation, drawn at random.

    Raises:
        ArgumentError: A relation or subject is unknown. The message names the nearest.
    """
    if relations:
        facts = facts.of(*relations)
    if subjects:
        known = {fact.subject for fact in facts}
        for subject in subjects:
            if subject not in known:
                facts.find(subject)  # raises, with a suggestion
        facts = FactSet(fact for fact in facts if fact.subject in subjects)
    if limit is None:
        return facts
    return facts.sample_per_relation(limit, seed)
