"""Files of neuron sets, as plain lists of ``(layer, index)``.

The formats, recognised by the shape of the document:

- our own JSON, the only one that is also written: ``{"format": "kn_lens.neurons", "version": 1, "meta": {...},
  "neurons": {key: [[layer, index], ...]}}``; ``meta["model"]``, if given, identifies their model;
- EleutherAI's results: ``{uuid: [[layer, index], ...]}``;
- the released code's ``kn_bag-P36.json``: a list with one list of ``[layer, index]`` per fact of the relation, keyed
  here ``P36[0]``, ``P36[1]``, ... by the fact's position among the relation's facts, and its ``kn_rel-P36.json``: one
  list of ``[layer, index]``, keyed by the relation. A score after the index is ignored;
- the released code's attributions ``*.rlt.jsonl``, from which sets are yet to be refined: one fact a line, a list of
  ``[{"relation": "P36(capital)", ...}, {"ig_gold": [[layer, index, score], ...], ...}]``, one for each prompt.

A neuron's name, ``"L9N1234"``, is read in the place of a pair. Neurons of experts are written by their names,
``"L9E5N338"``: a third number in a list is a score.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from kn_lens._core.atomic import opened, write_whole
from kn_lens._core.notation import neuron_key, neuron_name
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.facts import unique_keys

FORMAT = "kn_lens.neurons"
VERSION = 1

Pair = tuple[int, ...]
"""The key of a neuron."""


def read_sets(path: Path) -> tuple[dict[str, list[Pair]], Any]:
    """Read the neuron sets of a JSON file of any of the formats above, and its metadata about their model, or None.

    Raises:
        DataError: no such file, not JSON, another format or version, or an entry that is no neuron.
    """
    with _opened(path) as file:
        document = _parse(file.read(), str(path))
    meta = None
    if isinstance(document, dict) and "format" in document:
        meta = document.get("meta")
    of_model = meta.get("model") if isinstance(meta, dict) else None
    return _sets(document, path), of_model


def _sets(document: Any, path: Path) -> dict[str, list[Pair]]:
    """Return the sets of a document in any of the formats, by key."""
    if isinstance(document, dict):
        if "format" in document:
            document = _own(document, path)
        if not document:
            raise DataError(f"{path} holds no neuron sets.")
        sets = {}
        for key, entries in document.items():
            sets[key] = _pairs(entries, f"{path}, {key!r}")
        return sets
    if not isinstance(document, list) or not document:
        raise DataError(
            f"{path} holds {_short(document)}; expected neuron sets: a JSON object of lists, or a list of lists."
        )
    stem = path.name.split(".")[0]
    first = document[0]
    if isinstance(first, list) and first and not isinstance(first[0], (list, str)):
        relation = stem.rpartition("kn_rel-")[2]
        return {relation: _pairs(document, str(path))}
    relation = stem.rpartition("kn_bag-")[2] if "kn_bag-" in path.name else ""
    sets = {}
    for number, entries in enumerate(document):
        sets[f"{relation}[{number}]"] = _pairs(entries, f"{path}, set {number}")
    return sets


def read_scores(
    path: Path,
    metric: str = "ig_gold",
) -> Iterator[tuple[str, list[dict[Pair, float]]]]:
    """Yield each fact of the released code's attributions: its key and, for each of its prompts, the stored scores.

    The released code stores the neurons with at least a tenth of the prompt's largest score. One fact is held at once.

    Raises:
        DataError: no such file, a malformed line, or the metric is not in it.
    """
    n_facts: Counter[str] = Counter()
    for location, line in _lines(path):
        relations, results = [], []
        try:
            for info, result in _parse(line, location):
                relations.append(info["relation"].partition("(")[0])
                results.append(result)
            relation = relations[0]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{location}: got {_short(line)}; expected a list of [{{'relation': ...}}, {{{metric!r}: ...}}]."
            ) from error
        key = f"{relation}[{n_facts[relation]}]"
        n_facts[relation] += 1
        yield key, [_scores(result, metric, location) for result in results]
    if not n_facts:
        raise DataError(f"{path} is empty; expected one fact a line.")


def write_sets(
    path: Path,
    sets: Mapping[str, Iterable[Pair]],
    meta: Mapping[str, Any],
) -> None:
    """Write our own format, one set a line. The file appears whole or not at all.

    Raises:
        ArgumentError: ``meta`` cannot be written as JSON, or a text is no valid Unicode.
        DataError: the file cannot be written.
    """
    try:
        head = json.dumps(
            {"format": FORMAT, "version": VERSION, "meta": meta},
            ensure_ascii=False,
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"The meta data cannot be written as JSON: {error}.") from error
    lines = []
    for key, pairs in sets.items():
        name = json.dumps(key, ensure_ascii=False)
        entries = [pair if len(pair) == 2 else neuron_name(*pair) for pair in pairs]
        lines.append(f"{name}: {json.dumps(entries)}")
    try:
        text = head[:-1] + ', "neurons": {\n' + ",\n".join(lines) + "\n}}\n"
        write_whole(path, text)
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"A key or the meta data is no valid Unicode text, half of a surrogate pair: {error}."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be written: {reason}.") from error


def _own(document: dict[str, Any], path: Path) -> Mapping[str, Any]:
    if document["format"] != FORMAT or document.get("version") != VERSION:
        raise DataError(
            f"{path} is {document['format']!r} version {document.get('version')!r}; "
            f"this version of kn_lens reads {FORMAT!r} version {VERSION}."
        )
    neurons = document.get("neurons")
    if not isinstance(neurons, dict):
        raise DataError(f"{path}: 'neurons' is {_short(neurons)}; expected an object of lists.")
    return neurons


def _pairs(entries: Any, location: str) -> list[Pair]:
    if not isinstance(entries, list):
        raise DataError(f"{location}: got {_short(entries)}; expected a list of [layer, index].")
    return [_pair(entry, location) for entry in entries]


def _pair(entry: Any, location: str) -> Pair:
    # A bool is an int in Python, and a float that looks whole is a sign of another format: only true ints will do.
    if isinstance(entry, str):
        named = neuron_key(entry)
        if named is not None:
            return named
    if isinstance(entry, list) and len(entry) in (2, 3):
        layer, index = entry[:2]
        if type(layer) is int and type(index) is int and layer >= 0 and index >= 0:
            return layer, index
    raise DataError(
        f"{location}: got {_short(entry)}; expected [layer, index], two whole numbers from 0, or a name: 'L9N1234'."
    )


def _scores(results: Any, metric: str, location: str) -> dict[Pair, float]:
    if not isinstance(results, dict) or metric not in results:
        known = list(results) if isinstance(results, dict) else []
        names = ", ".join(known) or "nothing"
        raise DataError(f"{location}: no {metric!r} among {names}.{did_you_mean(metric, known)}")
    entries = results[metric]
    if not isinstance(entries, list):
        entries = [entries]
    scores = {}
    for entry in entries:
        pair = _pair(entry, location)
        has_score = len(entry) == 3 and type(entry[2]) in (int, float)
        if not has_score or not abs(entry[2]) <= sys.float_info.max:
            raise DataError(f"{location}: got {_short(entry)}; expected [layer, index, score], a finite number.")
        scores[pair] = entry[2]
    return scores


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            yield f"{path}, line {number}", line


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with TextIOWrapper(opened(path), encoding="utf-8") as file:
            yield file
    except FileNotFoundError as error:
        names = []
        if path.parent.is_dir():
            names = [sibling.name for sibling in path.parent.iterdir()]
        raise DataError(f"There is no file {path}.{did_you_mean(path.name, names)}") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null character
        raise DataError(f"{path} cannot be read: {error}.") from error


def _parse(text: str, location: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys(location))
    except json.JSONDecodeError as error:
        raise DataError(f"{location} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{location} cannot be read: {error}.") from error
    except RecursionError as error:
        raise DataError(f"{location} is nested too deeply to hold neuron sets.") from error


def _short(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
