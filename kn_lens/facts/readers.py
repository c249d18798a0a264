"""Readers of the file formats of facts: each turns one format into a stream of ``Record``.

A record holds its location, so that every error about it, here or later, names the file and line. Readers skip
nothing: an entry that they cannot read raises a ``DataError``. They remove blanks around subjects, relations and
objects, because blanks would change the tokens. They alter nothing else.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

from kn_lens._core.atomic import read_whole
from kn_lens._core.checks import wrong_kind
from kn_lens._core.display import enumerated
from kn_lens._core.names import OWN_TEMPLATES, SPLITS, Split
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.facts.relations import WIKIDATA_LABELS

SUBJECT_SLOT = "[X]"
OBJECT_SLOT = "[Y]"
MASK = "[MASK]"  # the answer slot of the released data files, for every model

WORLD = Path(__file__).parents[1] / "world"

CAUSAL_TEMPLATES = Path(__file__).parent / "causal_templates" / "templates.jsonl"
"""Templates that end with the object, eight for each of ParaRel's 34 relations; the licence is beside them."""

NAMES_SHOWN = 8
"""Number of relations or languages that a message lists."""

FIELDS = ("subject", "relation", "object", "templates", "template", "uid", "relation_label", "language")
"""The keys of plain files and the columns of tables that are read."""

Templates = Mapping[str, Sequence[str]]
"""Templates by relation."""


class Record(NamedTuple):
    """The fields of one fact, and the file and line that they were read from."""

    location: str
    subject: str
    relation: str
    object: str
    templates: tuple[str, ...] = ()
    uid: str = ""
    relation_label: str = ""
    language: str = ""


# --- formats --------------------------------------------------------------------------------------


def read_world(split: Split) -> Iterator[Record]:
    """Read the embedded facts with the templates of one split."""
    _check_split(split)
    templates: dict[str, list[str]] = {}
    for location, row in json_lines(WORLD / "templates.jsonl"):
        relation = text_of(row, "relation", location)
        relation_templates = templates.setdefault(relation, [])
        if split in ("all", row.get("split")):
            relation_templates.append(text_of(row, "pattern", location))
    labels = _world_labels()
    records = _plain(json_lines(WORLD / "facts.jsonl"))
    for record in _with_templates(records, templates):
        yield record._replace(relation_label=labels[record.relation])


def read_translated_world(split: Split, languages: Iterable[str]) -> Iterator[Record]:
    """Read the embedded facts that have translations, with the templates of one split, language by language."""
    _check_split(split)
    templates: dict[tuple[str, str], tuple[str, ...]] = {}
    for location, row in json_lines(WORLD / "translated_templates.jsonl"):
        key = text_of(row, "language", location), text_of(row, "relation", location)
        templates.setdefault(key, ())
        if split in ("all", row.get("split")):
            templates[key] += (text_of(row, "pattern", location),)
    labels = _world_labels()
    known = list(dict.fromkeys(language for language, _ in templates))
    selected = _select(languages, known, "the embedded world", "language")
    records = list(_plain(json_lines(WORLD / "translations.jsonl")))
    for language in selected:
        for record in records:
            if record.language == language:
                yield record._replace(
                    templates=templates[language, record.relation], relation_label=labels[record.relation]
                )


def _check_split(split: Split) -> None:
    if split not in SPLITS:
        near = did_you_mean(split, SPLITS)
        raise ArgumentError(f"split={split!r}; expected one of {', '.join(SPLITS)}.{near}")


def _world_labels() -> dict[str, str]:
    labels = {}
    for location, row in json_lines(WORLD / "relations.jsonl"):
        labels[text_of(row, "relation", location)] = text_of(row, "label", location)
    return labels


def read_pararel(
    root: Path,
    relations: Iterable[str] | None,
    min_templates: int,
    templates: Templates | None = None,
) -> Iterator[Record]:
    """Read ``root/patterns/P*.jsonl`` and ``root/facts/P*.jsonl``, the layout of the ParaRel release.

    ``templates`` replace the patterns, which then need not be there.
    """
    needed = ["patterns", "facts"] if templates is None else ["facts"]
    missing = [name for name in needed if not os.path.isdir(root / name)]
    if missing:
        raise DataError(f"{root}: there is no {missing[0]}/ in it; expected a folder with patterns/ and facts/.")
    if templates is None:
        templates = _patterns(root / "patterns")
    files = _relation_files(root / "facts")
    if relations is None:
        selected = []
        for relation in files:
            if len(templates.get(relation, ())) >= min_templates:
                selected.append(relation)
        if not selected:
            raise DataError(f"{root}: no relation has both facts and min_templates={min_templates} templates.")
    else:
        selected = _select(relations, files, str(root), "relation")
        least = max(min_templates, 1)
        for relation in selected:
            n_templates = len(templates.get(relation, ()))
            if n_templates < least:
                raise DataError(
                    f"{root}: relation {relation} has {n_templates} templates, fewer than {least}. "
                    "Leave it out of relations, or lower min_templates."
                )
    for relation in selected:
        for location, row in json_lines(files[relation]):
            yield Record(
                location=location,
                subject=text_of(row, "sub_label", location),
                relation=relation,
                object=text_of(row, "obj_label", location),
                templates=tuple(templates[relation]),
                uid=_identifier(row, "uuid", location),
                relation_label=WIKIDATA_LABELS.get(relation, ""),
            )


def read_patterns(path: Path) -> dict[str, tuple[str, ...]]:
    """Read templates by relation.

    The path is a folder of ParaRel's ``P*.jsonl`` files, LAMA's ``relations.jsonl``, or ``kn_lens`` for the templates
    that ship with the package.
    """
    if str(path) == OWN_TEMPLATES:
        return _causal_templates()
    if os.path.isdir(path):  # unlike Path.is_dir, returns False for invalid names
        return _patterns(path)
    if not os.path.lexists(path):
        raise DataError(
            f"{path}: no such file. Templates are a folder of ParaRel's patterns, LAMA's relations.jsonl, or "
            f"{OWN_TEMPLATES!r} for those of the package.{did_you_mean(path.name, [OWN_TEMPLATES, *_siblings(path)])}"
        )
    templates: dict[str, tuple[str, ...]] = {}
    for location, row in json_lines(path):
        relation = text_of(row, "relation", location)
        templates[relation] = (text_of(row, "template", location),)
    return templates


def read_official(path: Path) -> Iterator[Record]:
    """Read the fact file of the released code: facts as lists of ``[prompt with [MASK], answer, "P36(capital)"]``."""
    data = json_document(path)
    if isinstance(data, dict):
        bags: list[Any] = []
        for group in data.values():
            bags += _list(group, path)
    else:
        bags = data
    for number, bag in enumerate(_list(bags, path)):
        location = f"{path}: fact {number}"
        rows = _list(bag, location)
        if not rows or not all(map(_is_official_row, rows)):
            raise DataError(
                f"{location}: expected a list of [prompt with [MASK], answer, relation]; got {_short(bag)}."
            )
        answers: set[str] = set()
        names: set[str] = set()
        templates: list[str] = []
        for prompt, answer, name in rows:
            templates.append(prompt.replace(MASK, OBJECT_SLOT))
            answers.add(answer.strip())
            names.add(name.strip())
        if len(answers) > 1 or len(names) > 1:
            raise DataError(
                f"{location}: the prompts of a fact share one answer and one relation; "
                f"got {sorted(answers)} and {sorted(names)}."
            )
        # "P36(capital)" is an identifier with its label. Other files name the relation by the identifier alone.
        relation, label = names.pop(), ""
        identifier_and_label = re.fullmatch(r"(P\d+)\s*\((.*)\)", relation, flags=re.DOTALL)
        if identifier_and_label is not None:
            relation, label = identifier_and_label.groups()
        yield Record(
            location=location,
            subject="",
            relation=relation,
            object=answers.pop(),
            templates=tuple(templates),
            uid=str(number),
            relation_label=label.strip(),
        )


def read_lama(
    path: Path,
    templates: Templates | None,
    relations: Iterable[str] | None,
) -> Iterator[Record]:
    """Read LAMA's T-REx lines, from one file or a folder of ``P*.jsonl``."""
    files = _relation_files(path) if os.path.isdir(path) else {path.stem: path}
    selected = _select(relations, files, str(path), "relation")
    # Where templates replace the sentences of a file, the sentences need not be valid templates.
    own_sentences = templates is None
    for name in selected:
        records = _lama_records(files[name], name, own_sentences=own_sentences)
        yield from _with_templates(records, templates)


def read_mlama(
    root: Path,
    languages: Iterable[str] | None,
    relations: Iterable[str] | None,
) -> Iterator[Record]:
    """Read ``root/LANGUAGE/P*.jsonl`` with ``root/LANGUAGE/templates.jsonl``, the layout of the mLAMA release."""
    with_templates = [folder for folder in _folders(root) if os.path.isfile(root / folder / "templates.jsonl")]
    if not with_templates:
        raise DataError(f"{root}: no folder of a language with a templates.jsonl in it, such as {root}/de.")
    for language in _select(languages, with_templates, str(root), "language"):
        templates: dict[str, tuple[str, ...]] = {}
        for location, row in json_lines(root / language / "templates.jsonl"):
            relation = text_of(row, "relation", location)
            templates[relation] = (_checked_pattern(text_of(row, "template", location), location),)
        yield from _tuples(root / language, language, templates, relations)


def read_mpararel(
    root: Path,
    languages: Iterable[str] | None,
    relations: Iterable[str] | None,
    min_templates: int,
) -> Iterator[Record]:
    """Read ``root/patterns/LANGUAGE/P*.jsonl`` with ``root/tuples/LANGUAGE/P*.jsonl``, the layout of mParaRel."""
    with_both = [folder for folder in _folders(root / "patterns") if os.path.isdir(root / "tuples" / folder)]
    if not with_both:
        raise DataError(
            f"{root}: no language has both patterns and facts; expected folders such as {root}/patterns/de and "
            f"{root}/tuples/de."
        )
    for language in _select(languages, with_both, str(root), "language"):
        templates: dict[str, tuple[str, ...]] = {}
        for relation, file in _relation_files(root / "patterns" / language).items():
            patterns = []
            for location, row in json_lines(file):
                patterns.append(_checked_pattern(text_of(row, "pattern", location), location))
            patterns = list(dict.fromkeys(patterns))  # two machines translated a pattern the same way
            if len(patterns) >= max(min_templates, 1):
                templates[relation] = tuple(patterns)
        yield from _tuples(root / "tuples" / language, language, templates, relations)


def _tuples(
    folder: Path,
    language: str,
    templates: Templates,
    relations: Iterable[str] | None,
) -> Iterator[Record]:
    """Yield the facts of mLAMA's lines in one language.

    ``lineid`` is the number of a fact in its relation, the same in every language.
    """
    files = _relation_files(folder)
    selected = [relation for relation in files if relation in templates]
    if not selected:
        raise DataError(f"{folder}: no relation has both facts and enough templates.")
    if relations is not None:
        selected = _select(relations, selected, str(folder), "relation")
    for relation in selected:
        for location, row in json_lines(files[relation]):
            number = _get(row, "lineid", location)
            if isinstance(number, bool) or not isinstance(number, int):
                raise DataError(f"{location}: 'lineid' must be a whole number; got {_short(number)}.")
            yield Record(
                location=location,
                subject=text_of(row, "sub_label", location),
                relation=relation,
                object=text_of(row, "obj_label", location),
                templates=tuple(templates[relation]),
                uid=str(number),
                relation_label=WIKIDATA_LABELS.get(relation, ""),
                language=language,
            )


def _checked_pattern(pattern: str, location: str) -> str:
    """Return a translated template; machines lose slots."""
    for slot in (SUBJECT_SLOT, OBJECT_SLOT):
        if pattern.count(slot) != 1:
            raise DataError(
                f"{location}: the template {_short(pattern)} holds {slot} {pattern.count(slot)} times; expected once. "
                "Correct the file, or take the line out of it."
            )
    return pattern


def read_counterfact(path: Path, paraphrases: bool) -> Iterator[Record]:
    """Read ROME's CounterFact: the prompt and, if requested, its paraphrases, each with the true answer at its end."""
    for number, case in enumerate(_list(json_document(path), path)):
        location = f"{path}: case {number}"
        case = _object(case, location)
        rewrite = _object(_get(case, "requested_rewrite", location), location)
        subject = text_of(rewrite, "subject", location)
        prompt = text_of(rewrite, "prompt", location)
        if prompt.count("{}") != 1:
            raise DataError(f"{location}: the prompt {prompt!r} must hold '{{}}', the subject's place, exactly once.")
        openings = [prompt.replace("{}", SUBJECT_SLOT)]
        paraphrase_texts: tuple[str, ...] = ()
        if paraphrases:
            paraphrase_texts = _texts(_get(case, "paraphrase_prompts", location), location)
        for text in paraphrase_texts:
            if not subject or subject not in text:
                raise DataError(
                    f"{location}: the paraphrase {_short(text)} does not name the subject {subject!r}. "
                    f"Correct it, or read the file with paraphrases=False."
                )
            # The last mention, because paraphrases begin with a sentence about another topic.
            before, _, after = text.rpartition(subject)
            openings.append(before + SUBJECT_SLOT + after)
        # Without the full stop masked models would answer with one. Causal prompts end before it.
        templates = [f"{opening.rstrip()} {OBJECT_SLOT}." for opening in openings]
        relation = text_of(rewrite, "relation_id", location)
        target = _object(_get(rewrite, "target_true", location), location)
        yield Record(
            location=location,
            subject=subject,
            relation=relation,
            object=text_of(target, "str", location),
            templates=tuple(templates),
            uid=_identifier(case, "case_id", location),
            relation_label=WIKIDATA_LABELS.get(relation, ""),
        )


def read_jsonl(path: Path, templates: Templates | None) -> Iterator[Record]:
    """Read JSON lines with ``subject``, ``relation``, ``object``; optional: ``relation_label``, ``uid``, templates."""
    return _with_templates(_plain(json_lines(path)), templates)


def read_csv(path: Path, templates: Templates | None) -> Iterator[Record]:
    """Read a CSV table with a header; a ``templates`` cell holds a JSON list."""
    return _with_templates(_plain(_csv_rows(path)), templates)


def read_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    templates: Templates | None,
) -> Iterator[Record]:
    """Read pairs (location, row); rows have the keys of ``read_jsonl``."""
    return _with_templates(_plain(rows), templates)


def _is_official_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 3:
        return False
    return all(isinstance(part, str) for part in row)


# --- records --------------------------------------------------------------------------------------


def check_columns(names: Sequence[str], location: str) -> None:
    """Check that no column of ``FIELDS`` occurs twice, because one of the two would be lost.

    Raises:
        DataError: a column occurs twice.
    """
    for name in FIELDS:
        if names.count(name) > 1:
            raise DataError(
                f"{location}: {names.count(name)} columns are named {name!r}; expected one. Rename the others."
            )


def _check_spelling(row: Mapping[str, Any], location: str) -> None:
    """Raise if a key differs from one of ``FIELDS`` in case or blanks only, because its value would be lost."""
    for key in row:
        expected = key.strip().casefold()
        if key not in FIELDS and expected in FIELDS:
            raise DataError(f"{location}: {key!r} is not read; expected {expected!r}. Rename it.")


def _plain(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Record]:
    """Turn rows into records; rows of the same fact with one ``template`` each become one record, at the end."""
    gathered: dict[tuple[str, ...], tuple[Record, list[str]]] = {}
    for location, row in rows:
        _check_spelling(row, location)
        relation = text_of(row, "relation", location)
        # An empty label is one that the data have: only where they say nothing is that of the package taken.
        label = WIKIDATA_LABELS.get(relation, "")
        if "relation_label" in row:
            label = text_of(row, "relation_label", location)
        record = Record(
            location=location,
            subject=text_of(row, "subject", location),
            relation=relation,
            object=text_of(row, "object", location),
            uid=_identifier(row, "uid", location),
            relation_label=label,
            language=text_of(row, "language", location) if "language" in row else "",
        )
        if "template" in row:
            if "templates" in row:
                raise DataError(f"{location}: both 'template' and 'templates' are given; keep one.")
            key = (record.subject, record.relation, record.object, record.uid, record.language)
            first, patterns = gathered.setdefault(key, (record, []))
            if record.relation_label != first.relation_label:
                raise DataError(
                    f"{location}: relation_label is {record.relation_label!r} "
                    f"and was {first.relation_label!r} for this fact before; give it one label."
                )
            pattern = text_of(row, "template", location)
            if pattern in patterns:
                raise DataError(f"{location}: the template {pattern!r} was given to this fact before.")
            patterns.append(pattern)
            continue
        yield record._replace(templates=_texts(row.get("templates", []), location))
    for first, patterns in gathered.values():
        yield first._replace(templates=tuple(patterns))


def _with_templates(
    records: Iterable[Record],
    templates: Templates | None,
) -> Iterator[Record]:
    """Replace the templates of each record with those of its relation; without ``templates`` keep its own."""
    for record in records:
        if templates is None:
            yield record
        elif record.relation in templates:
            yield record._replace(templates=tuple(templates[record.relation]))
        else:
            raise DataError(
                f"{record.location}: relation {record.relation!r} has no templates; "
                f"there are some for {', '.join(templates) or 'none'}."
                f"{did_you_mean(record.relation, templates)}"
            )


def _lama_records(path: Path, name: str, *, own_sentences: bool) -> Iterator[Record]:
    """Read the LAMA lines of a file; see ``_lama_record``."""
    for location, row in json_lines(path):
        yield _lama_record(location, row, name, own_sentences=own_sentences)


def _lama_record(
    location: str,
    row: Mapping[str, Any],
    name: str,
    *,
    own_sentences: bool,
) -> Record:
    """Read one LAMA line; its sentences become its templates, with the first mention of the subject as the slot.

    Args:
        location: the file and line.
        row: the line.
        name: the relation, where the line does not name it.
        own_sentences: whether to make templates of the sentences.
    """
    subject = text_of(row, "sub_label", location)
    sentences = _lama_sentences(row, subject, location) if own_sentences else ()
    templates: list[str] = []
    for sentence, mention in sentences:
        if not mention or mention not in sentence:
            raise DataError(
                f"{location}: the sentence {_short(sentence)} does not name the subject {mention!r}. "
                "Pass templates= to use templates instead of the file's sentences."
            )
        template = sentence.replace(mention, SUBJECT_SLOT, 1).replace(MASK, OBJECT_SLOT)
        if template.count(OBJECT_SLOT) != 1:
            raise DataError(
                f"{location}: the sentence {_short(sentence)} holds {MASK} {sentence.count(MASK)} times; "
                "expected one. Pass templates= to use templates instead of the file's sentences."
            )
        templates.append(template)
    relation = text_of(row, "predicate_id", location) if "predicate_id" in row else name
    return Record(
        location=location,
        subject=subject,
        relation=relation,
        object=text_of(row, "obj_label", location),
        templates=tuple(templates),
        uid=_identifier(row, "uuid", location),
        relation_label=WIKIDATA_LABELS.get(relation, ""),
    )


def _lama_sentences(
    row: Mapping[str, Any],
    subject: str,
    location: str,
) -> Iterator[tuple[str, str]]:
    """Yield each sentence of a line with its mention of the subject.

    The sentences are the ``masked_sentences`` of the line, and the ``evidences`` of T-REx.
    """
    for sentence in _texts(row.get("masked_sentences", []), location):
        yield sentence, subject
    for evidence in _list(row.get("evidences", []), location):
        evidence = _object(evidence, location)
        sentence = text_of(evidence, "masked_sentence", location)
        yield sentence, text_of(evidence, "sub_surface", location)


# --- files ----------------------------------------------------------------------------------------


def _siblings(path: Path) -> list[str]:
    """Return the names of the files and folders beside a path."""
    if not path.parent.is_dir():
        return []
    return [item.name for item in path.parent.iterdir()]


def _read(path: Path) -> str:
    try:
        return read_whole(path).decode("utf-8-sig")  # text mode would translate line ends in CSV cells
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.{did_you_mean(path.name, _siblings(path))}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from error
    except ValueError as error:  # a path with a null character
        raise DataError(f"{path}: cannot be read: {error}.") from error


def unique_keys(location: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return a function for ``json.loads(object_pairs_hook=...)`` that rejects JSON objects with a repeated key.

    Without it ``json`` keeps the last value of a repeated key and drops the others silently.

    Raises:
        DataError: raised by the function, where a key is repeated.
    """

    def build(members: list[tuple[str, Any]]) -> dict[str, Any]:
        members_by_key = dict(members)
        if len(members_by_key) < len(members):
            counts = Counter(key for key, _ in members)
            repeated = next(key for key, count in counts.items() if count > 1)
            raise DataError(f"{location}: the key {repeated!r} stands there twice.")
        return members_by_key

    return build


def _parse(text: str, location: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys(location))
    except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
        raise DataError(f"{location}: not JSON: {error}; got {_short(text)}.") from error


def json_document(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: the file cannot be read, is not JSON, or repeats a key.
    """
    return _parse(_read(path), str(path))


def json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield pairs (location, object) of a file of JSON lines; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            location = f"{path}:{number}"
            yield location, _object(_parse(line, location), location)


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(StringIO(_read(path), newline=""), strict=True)
    try:
        check_columns(list(reader.fieldnames or ()), str(path))
        for row in reader:
            location = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                n_columns = len(reader.fieldnames or ())
                raise DataError(f"{location}: expected {n_columns} columns, as in the header.")
            cells: dict[str, Any] = dict(row)
            if "templates" in cells:
                cells["templates"] = _parse(cells["templates"], location)
            yield location, cells
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: not CSV: {error}.") from error


def _relation_files(folder: Path) -> dict[str, Path]:
    """Return the ``P*.jsonl`` files of a folder by relation, in order of the relations' numbers."""
    files: dict[str, Path] = {}
    if os.path.isdir(folder):
        for file in folder.glob("P*.jsonl"):
            if file.stem[1:].isdecimal():
                files[file.stem] = file
    if not files:
        raise DataError(f"{folder}: no files of the form P36.jsonl there.")
    return dict(sorted(files.items(), key=lambda item: int(item[0][1:])))


def _patterns(folder: Path) -> dict[str, tuple[str, ...]]:
    templates: dict[str, tuple[str, ...]] = {}
    for relation, file in _relation_files(folder).items():
        patterns = []
        for location, row in json_lines(file):
            patterns.append(text_of(row, "pattern", location))
        templates[relation] = tuple(patterns)
    return templates


def _causal_templates() -> dict[str, tuple[str, ...]]:
    templates: dict[str, tuple[str, ...]] = {}
    for location, row in json_lines(CAUSAL_TEMPLATES):
        relation = text_of(row, "relation", location)
        templates[relation] = (*templates.get(relation, ()), text_of(row, "pattern", location))
    return templates


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; none where there is no such folder."""
    if not os.path.isdir(path):
        return []
    return sorted(item.name for item in path.iterdir() if item.is_dir())


def _select(
    names: Iterable[str] | None,
    known: Iterable[str],
    source: str,
    kind: str,
) -> list[str]:
    """Return the requested relations or languages without repeats, all known ones for None; raise if one is unknown."""
    known = list(known)
    if names is None:
        return known
    if not isinstance(names, Iterable):
        raise wrong_kind(names, f"the name of a {kind}, or several: {known[:2]}", f"{kind}s")
    selected = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    there = enumerated(known, NAMES_SHOWN)
    if not selected:
        raise ArgumentError(f"{source}: no {kind} is named; expected at least one of {there}, or None for all.")
    for name in selected:
        if name not in known:
            near = did_you_mean(name, known) or f" There are {there}."
            raise DataError(f"{source}: no {kind} {name!r} there.{near}")
    return selected


# --- values ---------------------------------------------------------------------------------------


def _get(row: Mapping[str, Any], key: str, location: str) -> Any:
    if key not in row:
        keys = [str(name) for name in row]
        names = ", ".join(keys) or "nothing"
        raise DataError(f"{location}: no {key!r}; got {names}.{did_you_mean(key, keys)}")
    return row[key]


def text_of(row: Mapping[str, Any], key: str, location: str) -> str:
    """Return a text field of an object, without blanks around it.

    Raises:
        DataError: the field is missing or is not text.
    """
    value = _get(row, key, location)
    if not isinstance(value, str):
        raise DataError(f"{location}: {key!r} must be text; got {_short(value)}, of type {type(value).__name__}.")
    return value.strip()


def _identifier(row: Mapping[str, Any], key: str, location: str) -> str:
    value = row.get(key, "")
    # Tables store integer columns with missing cells as floats, which represent integers exactly below 2 ** 53.
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, Integral)):
        raise DataError(f"{location}: {key!r} must be text or a whole number; got {_short(value)}.")
    return str(value).strip()


def _object(value: Any, location: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{location}: expected a JSON object; got {_short(value)}.")
    return value


def _list(value: Any, location: object) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{location}: expected a list; got {_short(value)}.")
    return value


def _texts(value: Any, location: object) -> tuple[str, ...]:
    for text in _list(value, location):
        if not isinstance(text, str):
            raise DataError(f"{location}: expected a list of texts; got {_short(text)} in it.")
    return tuple(value)


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    if len(text) <= limit:
        return text
    return text[: limit - 3] + "..."
