"""From what a shell user names to a ``FactSet``. Light: nothing here needs PyTorch."""

from collections.abc import Sequence
from pathlib import Path

from kn_lens.errors import ArgumentError
from kn_lens.fact_files import read_patterns
from kn_lens.facts import FactSet

_PEEK = 1 << 16


def format_of(source: str) -> str:
    """Tell the format of a file or folder of facts from its name and its first bytes.

    Raises:
        ArgumentError: neither says.
    """
    path = Path(source)
    if source == "world":
        return "world"
    if path.is_dir():
        return "pararel" if (path / "facts").is_dir() else "lama"
    beginning = ""
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(_PEEK).decode(errors="replace")
    if path.suffix == ".csv":
        return "csv"
    if path.suffix == ".json":
        return "counterfact" if '"requested_rewrite"' in beginning else "official"
    if path.suffix == ".jsonl" or not path.exists():  # its reader says best that a file is missing
        return "lama" if '"sub_label"' in beginning else "jsonl"
    raise ArgumentError(
        f"{source}: a name that ends in {path.suffix or 'nothing'!r} does not tell the format; "
        "name it with --format, or use .jsonl, .json or .csv."
    )


def read_facts(source: str, format: str | None, templates: Path | None, split: str) -> FactSet:
    """Read all facts of a source.

    Args:
        source: a path, or ``world``.
        format: one of ``kn_lens.cli._options.FORMATS``; None to tell it from the contents.
        templates: where to take the templates from, for the formats that need not have their own.
        split: which templates of the embedded facts.

    Raises:
        DataError: the file is missing or malformed; its line is named.
        ArgumentError: options that exclude each other.
    """
    format = format or format_of(source)
    if templates is not None and format not in ("lama", "jsonl", "csv"):
        raise ArgumentError(f"--templates is for lama, jsonl and csv files; {format} facts come with their own.")
    if split != "all" and format != "world":
        raise ArgumentError(f"--split {split} is for the embedded facts, 'world'; {source!r} has no such split.")
    if format == "world":
        if source != "world":
            raise ArgumentError(f"--format world is the embedded facts, named 'world'; got {source!r}.")
        return FactSet.world(split=split)  # type: ignore[arg-type]  # one of SPLITS
    if format in ("pararel", "official", "counterfact"):
        return getattr(FactSet, f"from_{format}")(source)
    patterns = None if templates is None else read_patterns(templates)
    return getattr(FactSet, f"from_{format}")(source, templates=patterns)


def choose(
    facts: FactSet, relations: Sequence[str] | None, subjects: Sequence[str] | None, limit: int | None, seed: int
) -> FactSet:
    """Keep the facts of some relations and subjects, and at most ``limit`` of them, drawn at random.

    Raises:
        ArgumentError: an unknown relation or subject; the nearest is named.
    """
    if relations:
        facts = facts.of(*relations)
    if subjects:
        known = {fact.subject for fact in facts}
        for subject in subjects:
            if subject not in known:
                facts.find(subject)  # raises
        facts = FactSet(fact for fact in facts if fact.subject in subjects)
    return facts if limit is None or limit >= len(facts) else facts.sample(limit, seed=seed)
