"""The file formats that facts come in: each reader turns one of them into a stream of ``Record``.

A record says where it stands in its file, so that whatever is wrong with it, here or later, is reported with its file
and line. Readers leave out nothing: what they cannot read is a ``DataError``. Blanks around a subject, relation or
object are removed, since they would change the tokens; nothing else is altered.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kn_lens._whole_files import read_whole
from kn_lens.errors import ArgumentError, DataError, did_you_mean

SUBJECT_SLOT = "[X]"
OBJECT_SLOT = "[Y]"
MASK = "[MASK]"  # how the released data files write the answer's place, whatever the model

WORLD = Path(__file__).parent / "world"

FIELDS = ("subject", "relation", "object", "templates", "template", "uid")
"""The keys and columns that plain files and tables are read by."""

Split = Literal["all", "trained", "held_out"]
Templates = Mapping[str, Sequence[str]]


class Record(NamedTuple):
    """The fields of one fact and the place in its file that they were read from."""

    place: str
    subject: str
    relation: str
    object: str
    templates: tuple[str, ...] = ()
    uid: str = ""


# --- formats --------------------------------------------------------------------------------------


def read_world(split: Split) -> Iterator[Record]:
    """Read the embedded facts with the templates of one split."""
    if split not in ("all", "trained", "held_out"):
        raise ArgumentError(f"split is {split!r}; expected 'all', 'trained' or 'held_out'.")
    templates: dict[str, list[str]] = {}
    for place, row in json_lines(WORLD / "templates.jsonl"):
        chosen = templates.setdefault(text_of(row, "relation", place), [])
        if split in ("all", row.get("split")):
            chosen.append(text_of(row, "pattern", place))
    yield from _with_templates(_plain(json_lines(WORLD / "facts.jsonl")), templates)


def read_pararel(root: Path, relations: Iterable[str] | None, min_templates: int) -> Iterator[Record]:
    """Read ``root/patterns/P*.jsonl`` and ``root/facts/P*.jsonl``, the layout of the ParaRel release."""
    templates = _patterns(root / "patterns")
    files = _relation_files(root / "facts")
    if relations is None:
        chosen = [name for name in files if len(templates.get(name, ())) >= min_templates]
        if not chosen:
            raise DataError(f"{root}: no relation has both facts and min_templates={min_templates} templates.")
    else:
        chosen = _chosen(relations, files, root)
        for name in chosen:
            if len(templates.get(name, ())) < max(min_templates, 1):
                raise DataError(
                    f"{root}: relation {name} has {len(templates.get(name, ()))} templates, fewer than "
                    f"{max(min_templates, 1)}. Leave it out of relations, or lower min_templates."
                )
    for name in chosen:
        for place, row in json_lines(files[name]):
            yield Record(
                place,
                text_of(row, "sub_label", place),
                name,
                text_of(row, "obj_label", place),
                templates[name],
                _identifier(row, "uuid", place),
            )


def read_patterns(path: Path) -> dict[str, tuple[str, ...]]:
    """Read templates by relation: a folder of ParaRel's ``P*.jsonl`` files, or LAMA's one ``relations.jsonl``."""
    if os.path.isdir(path):  # unlike Path's, false for names that cannot be
        return _patterns(path)
    return {text_of(row, "relation", place): (text_of(row, "template", place),) for place, row in json_lines(path)}


def read_official(path: Path) -> Iterator[Record]:
    """Read the released code's file: facts as lists of ``[prompt with [MASK], answer, "P36(capital)"]``."""
    data = _json(path)
    bags = [bag for group in data.values() for bag in _list(group, path)] if isinstance(data, dict) else data
    for number, bag in enumerate(_list(bags, path)):
        place = f"{path}: fact {number}"
        rows = _list(bag, place)
        if not rows or not all(
            isinstance(row, list) and len(row) == 3 and all(isinstance(part, str) for part in row) for row in rows
        ):
            raise DataError(f"{place}: expected a list of [prompt with [MASK], answer, relation]; got {_short(bag)}.")
        answers, names = {row[1].strip() for row in rows}, {row[2].strip() for row in rows}
        if len(answers) > 1 or len(names) > 1:
            raise DataError(
                f"{place}: the prompts of a fact share one answer and one relation; "
                f"got {sorted(answers)} and {sorted(names)}."
            )
        # "P36(capital)" is P36 with its label: the bare identifier is what other files call the relation.
        relation = re.sub(r"^(P\d+)\s*\(.*\)$", r"\1", names.pop(), flags=re.DOTALL)
        prompts = tuple(row[0].replace(MASK, OBJECT_SLOT) for row in rows)
        yield Record(place, "", relation, answers.pop(), prompts, str(number))


def read_lama(path: Path, templates: Templates | None, relations: Iterable[str] | None) -> Iterator[Record]:
    """Read LAMA's T-REx lines, from one file or a folder of ``P*.jsonl``."""
    files = _relation_files(path) if os.path.isdir(path) else {path.stem: path}
    for name in files if relations is None else _chosen(relations, files, path):
        # Sentences that are to be replaced by templates need not be such as could be one.
        own = templates is None
        records = (_lama_record(place, row, name, own_sentences=own) for place, row in json_lines(files[name]))
        yield from records if templates is None else _with_templates(records, templates)


def read_counterfact(path: Path, paraphrases: bool) -> Iterator[Record]:
    """Read ROME's CounterFact: the prompt and, if wanted, the paraphrases, with the true answer after them."""
    for number, case in enumerate(_list(_json(path), path)):
        place = f"{path}: case {number}"
        rewrite = _object(_get(_object(case, place), "requested_rewrite", place), place)
        subject = text_of(rewrite, "subject", place)
        prompt = text_of(rewrite, "prompt", place)
        if prompt.count("{}") != 1:
            raise DataError(f"{place}: the prompt {prompt!r} must hold '{{}}', the subject's place, exactly once.")
        templates = [prompt.replace("{}", SUBJECT_SLOT)]
        for text in _texts(_get(case, "paraphrase_prompts", place), place) if paraphrases else ():
            # The last mention: paraphrases begin with a sentence about something else.
            before, found, after = text.rpartition(subject) if subject else ("", "", "")
            if not found:
                raise DataError(
                    f"{place}: the paraphrase {_short(text)} does not name the subject {subject!r}. "
                    f"Correct it, or read the file with paraphrases=False."
                )
            templates.append(before + SUBJECT_SLOT + after)
        yield Record(
            place,
            subject,
            text_of(rewrite, "relation_id", place),
            text_of(_object(_get(rewrite, "target_true", place), place), "str", place),
            # The full stop is for masked models, which otherwise answer with one; causal prompts end before it.
            tuple(f"{template.rstrip()} {OBJECT_SLOT}." for template in templates),
            _identifier(case, "case_id", place),
        )


def read_jsonl(path: Path, templates: Templates | None) -> Iterator[Record]:
    """Read lines with ``subject``, ``relation``, ``object`` and optionally ``templates`` or ``template``, ``uid``."""
    return _with_templates(_plain(json_lines(path)), templates)


def read_csv(path: Path, templates: Templates | None) -> Iterator[Record]:
    """Read a table with a header; a ``templates`` cell is a JSON list."""
    return _with_templates(_plain(_csv_rows(path)), templates)


def read_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], templates: Templates | None) -> Iterator[Record]:
    """Read (place, row) pairs with the keys of ``read_jsonl``."""
    return _with_templates(_plain(rows), templates)


# --- records --------------------------------------------------------------------------------------


def check_columns(names: Sequence[str], place: str) -> None:
    """Raise where a column that is read stands there twice, so that one of the two would be lost.

    Raises:
        DataError: naming it.
    """
    for name in FIELDS:
        if names.count(name) > 1:
            raise DataError(
                f"{place}: {names.count(name)} columns are named {name!r}; expected one. Rename the others."
            )


def _check_spelling(row: Mapping[str, Any], place: str) -> None:
    """Raise where a key is one of those that are read but for case and blanks: what it holds would be lost."""
    for key in row:
        meant = key.strip().casefold()
        if key not in FIELDS and meant in FIELDS:
            raise DataError(f"{place}: {key!r} is not read; expected {meant!r}. Rename it.")


def _plain(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Record]:
    """Turn rows into records; rows that give one ``template`` each are gathered into their fact."""
    gathered: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for place, row in rows:
        _check_spelling(row, place)
        subject, relation, answer = (text_of(row, key, place) for key in ("subject", "relation", "object"))
        uid = _identifier(row, "uid", place)
        if "template" in row:
            if "templates" in row:
                raise DataError(f"{place}: both 'template' and 'templates' are given; keep one.")
            _, patterns = gathered.setdefault((subject, relation, answer, uid), (place, []))
            pattern = text_of(row, "template", place)
            if pattern in patterns:
                raise DataError(f"{place}: the template {pattern!r} was given to this fact before.")
            patterns.append(pattern)
            continue
        yield Record(place, subject, relation, answer, _texts(row.get("templates", []), place), uid)
    for (subject, relation, answer, uid), (place, patterns) in gathered.items():
        yield Record(place, subject, relation, answer, tuple(patterns), uid)


def _with_templates(records: Iterable[Record], templates: Templates | None) -> Iterator[Record]:
    """Give each record the templates of its relation; without ``templates`` it keeps its own."""
    for record in records:
        if templates is None:
            yield record
        elif record.relation in templates:
            yield record._replace(templates=tuple(templates[record.relation]))
        else:
            raise DataError(
                f"{record.place}: relation {record.relation!r} has no templates; there are some for "
                f"{', '.join(templates) or 'none'}.{did_you_mean(record.relation, templates)}"
            )


def _lama_record(place: str, row: Mapping[str, Any], name: str, *, own_sentences: bool) -> Record:
    """Read one LAMA line; its own sentences become its templates, the first mention of the subject its slot."""
    subject = text_of(row, "sub_label", place)
    templates = []
    for sentence, mention in _lama_sentences(row, subject, place) if own_sentences else ():
        before, found, after = sentence.partition(mention) if mention else ("", "", "")
        if not found:
            raise DataError(
                f"{place}: the sentence {_short(sentence)} does not name the subject {mention!r}. "
                "Pass templates= to use templates instead of the file's sentences."
            )
        template = (before + SUBJECT_SLOT + after).replace(MASK, OBJECT_SLOT)
        if template.count(OBJECT_SLOT) != 1:
            raise DataError(
                f"{place}: the sentence {_short(sentence)} holds {MASK} {sentence.count(MASK)} times; expected one. "
                "Pass templates= to use templates instead of the file's sentences."
            )
        templates.append(template)
    relation = text_of(row, "predicate_id", place) if "predicate_id" in row else name
    return Record(
        place, subject, relation, text_of(row, "obj_label", place), tuple(templates), _identifier(row, "uuid", place)
    )


def _lama_sentences(row: Mapping[str, Any], subject: str, place: str) -> Iterator[tuple[str, str]]:
    """Yield a line's sentences and how each calls the subject: ``masked_sentences``, or the ``evidences`` of T-REx."""
    for sentence in _texts(row.get("masked_sentences", []), place):
        yield sentence, subject
    for evidence in _list(row.get("evidences", []), place):
        evidence = _object(evidence, place)
        yield text_of(evidence, "masked_sentence", place), text_of(evidence, "sub_surface", place)


# --- files ----------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return read_whole(path).decode("utf-8-sig")  # text mode would translate line ends inside CSV cells
    except FileNotFoundError:
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file.{did_you_mean(path.name, siblings)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from error
    except ValueError as error:  # a path with a null character
        raise DataError(f"{path}: cannot be read: {error}.") from error


def unique_keys(place: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return what makes objects of JSON, for ``json.loads(object_pairs_hook=...)``, of which no key stands twice.

    Of two values JSON readers keep the last, and lose the other without a word.
    """

    def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) < len(members):
            keys = [key for key, _ in members]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{place}: the key {twice!r} stands there twice.")
        return found

    return unique


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys(place))
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise DataError(f"{place}: not JSON: {error}; got {_short(text)}.") from error


def _json(path: Path) -> Any:
    return _parse(_read(path), str(path))


def json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with its place.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _object(_parse(line, place), place)


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(StringIO(_read(path), newline=""), strict=True)
    try:
        check_columns(list(reader.fieldnames or ()), str(path))
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place}: expected {len(reader.fieldnames or ())} columns, as in the header.")
            cells: dict[str, Any] = dict(row)
            if "templates" in cells:
                cells["templates"] = _parse(cells["templates"], place)
            yield place, cells
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: not CSV: {error}.") from error


def _relation_files(folder: Path) -> dict[str, Path]:
    """Return the folder's ``P*.jsonl`` by relation, in order of the relations' numbers."""
    found = folder.glob("P*.jsonl") if os.path.isdir(folder) else ()
    files = {file.stem: file for file in found if file.stem[1:].isdecimal()}
    if not files:
        raise DataError(f"{folder}: no files of the form P36.jsonl there.")
    return dict(sorted(files.items(), key=lambda item: int(item[0][1:])))


def _patterns(folder: Path) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(text_of(row, "pattern", place) for place, row in json_lines(file))
        for name, file in _relation_files(folder).items()
    }


def _chosen(relations: Iterable[str], known: Iterable[str], place: Path) -> list[str]:
    chosen = [relations] if isinstance(relations, str) else list(dict.fromkeys(relations))
    known = list(known)
    for name in chosen:
        if name not in known:
            raise DataError(f"{place}: no relation {name!r} there.{did_you_mean(name, known)}")
    return chosen


# --- values ---------------------------------------------------------------------------------------


def _get(row: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in row:
        keys = [str(name) for name in row]
        raise DataError(f"{place}: no {key!r}; got {', '.join(keys) or 'nothing'}.{did_you_mean(key, keys)}")
    return row[key]


def text_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """Return a field of an object as text, without blanks around it.

    Raises:
        DataError: there is no such field, or it is no text.
    """
    value = _get(row, key, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: {key!r} must be text; got {_short(value)}, of type {type(value).__name__}.")
    return value.strip()


def _identifier(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key, "")
    # Tables turn whole numbers with gaps into floats. From 2 ** 53 on these no longer tell neighbours apart.
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, Integral)):
        raise DataError(f"{place}: {key!r} must be text or a whole number; got {_short(value)}.")
    return str(value).strip()


def _object(value: Any, place: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected a JSON object; got {_short(value)}.")
    return value


def _list(value: Any, place: object) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{place}: expected a list; got {_short(value)}.")
    return value


def _texts(value: Any, place: object) -> tuple[str, ...]:
    for text in _list(value, place):
        if not isinstance(text, str):
            raise DataError(f"{place}: expected a list of texts; got {_short(text)} in it.")
    return tuple(value)


def _short(value: object, limit: int = 80) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
