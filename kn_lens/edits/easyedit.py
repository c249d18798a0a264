"""Requests of EasyEdit: updates of facts in the form that ``BaseEditor.edit_requests`` takes, and back.

A request is a JSON object, with the field names of EasyEdit:

    {"prompt": "The capital of Ireland is", "subject": "Ireland", "ground_truth": "Dublin", "target_new": "Tokyo",
     "rephrase_prompt": "Ireland has the capital",
     "locality": {"same relation": {"prompt": ["The capital of Kenya is"], "ground_truth": ["Nairobi"]}},
     "portability": {}}

EasyEdit puts a blank and an answer behind a prompt, so a prompt is a template up to its ``[Y]``. The further fields
``relation``, ``relation_label``, ``uid`` and ``language`` are for this package alone; EasyEdit ignores fields that it
does not know.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from kn_lens._core.checks import wrong_kind
from kn_lens.edits.arguments import check_new_objects, checked_facts
from kn_lens.edits.questions import OTHER_RELATIONS, SAME_RELATION
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import OBJECT_SLOT, SUBJECT_SLOT, Fact, json_document, text_of
from kn_lens.prompts import object_is_last

PLACE = "{}"
"""The subject's place in prompts written for ROME."""
OWN_FIELDS = ("relation", "relation_label", "uid", "language")
"""What a fact has and a request of EasyEdit has no field for."""


class EasyEditRequests(NamedTuple):
    """What requests of EasyEdit say: see ``read_easyedit``.

    Attributes:
        new_objects: the new answer of each fact, as ``update_effects`` and ``choose_lambdas`` take it.
        others: for each fact the facts that its update should leave alone, by the name that the requests group them
            under.
    """

    new_objects: dict[Fact, str]
    others: dict[Fact, dict[str, tuple[Fact, ...]]]


def easyedit_requests(
    new_objects: Mapping[Fact, str],
    others: Iterable[Fact] | Mapping[Fact, Mapping[str, Sequence[Fact]]] = (),
) -> list[dict[str, Any]]:
    """Return updates as requests of EasyEdit, for ROME, MEMIT, KN and its other methods.

    The first template of a fact that ends with ``[Y]`` gives ``prompt``, the second ``rephrase_prompt``; EasyEdit has
    room for one other wording.

    Args:
        new_objects: the new answer of each fact.
        others: facts that should keep their answers: those of the updated fact's relation go to its ``locality`` as
            ``same relation``, the rest as ``other relations``. A mapping, as ``read_easyedit`` returns, has the groups
            of each fact.

    Returns:
        One JSON object for each fact, in their order.

    Raises:
        ArgumentError: another kind of argument, a fact without a subject, or one without a template that ends with
            ``[Y]``.

    Example:
        >>> fact = Fact("Ireland", "P36", "Dublin", ("The capital of [X] is [Y].", "[X] has the capital [Y]."))
        >>> (request,) = easyedit_requests({fact: "Tokyo"})
        >>> request["prompt"], request["target_new"], request["rephrase_prompt"]
        ('The capital of Ireland is', 'Tokyo', 'Ireland has the capital')
    """
    check_new_objects(new_objects)
    if isinstance(others, Mapping) and not all(isinstance(groups, Mapping) for groups in others.values()):
        raise wrong_kind(others, "several Facts, or those that read_easyedit returns: {fact: {name: facts}}", "others")
    shared = [] if isinstance(others, Mapping) else checked_facts(others)
    requests = []
    for fact, new_object in new_objects.items():
        if not isinstance(new_object, str) or not new_object.strip():
            raise ArgumentError(f"The new object of {fact.key} is {new_object!r}; expected a text, such as 'Tokyo'.")
        if not fact.subject:
            raise ArgumentError(f"{fact.key} has no subject, which EasyEdit asks for; expected facts with subjects.")
        prompt, *rewordings = _prompts(fact)
        groups = others.get(fact, {}) if isinstance(others, Mapping) else _grouped(fact, shared)
        request: dict[str, Any] = {
            "prompt": prompt,
            "subject": fact.subject,
            "ground_truth": fact.object,
            "target_new": new_object,
        }
        if rewordings:
            request["rephrase_prompt"] = rewordings[0]
        request["locality"] = {}
        for name, group in groups.items():
            if group:
                request["locality"][name] = _locality(group)
        request["portability"] = {}
        for name in OWN_FIELDS:
            request[name] = getattr(fact, name)
        requests.append(request)
    return requests


def read_easyedit(
    requests: str | PathLike[str] | Sequence[Mapping[str, Any]],
    *,
    rephrase: bool = True,
) -> EasyEditRequests:
    """Read requests of EasyEdit as facts with their new answers.

    ``ground_truth`` is the object. The prompts become templates: the subject, or ``{}``, becomes ``[X]``, at its last
    mention, and ``[Y]`` follows. Where a request has no ``relation``, facts with one template have one relation, named
    like the template. Locality prompts do not mark their subject, so the facts made of them have none.

    Args:
        requests: a JSON file with a list of requests, or the list.
        rephrase: use ``rephrase_prompt`` as a further template.

    Returns:
        The new answers and the other facts. ``portability``, ``target_neg`` and further fields are not read.

    Raises:
        ArgumentError: another kind of argument.
        DataError: the file cannot be read, no request is in it, a field is missing or no text, a prompt does not name
            the subject, or two requests are about one fact.

    Example:
        >>> request = {"prompt": "Ireland has the capital", "subject": "Ireland", "ground_truth": "Dublin",
        ...            "target_new": "Tokyo"}
        >>> read_easyedit([request]).new_objects
        {Fact('Ireland', '[X] has the capital [Y].', 'Dublin', 1 template): 'Tokyo'}
    """
    if isinstance(requests, (str, PathLike)):
        source = str(requests)
        entries = json_document(Path(requests))
    else:
        source = "requests"
        entries = requests
        if isinstance(requests, Mapping) or not isinstance(requests, Sequence):
            raise wrong_kind(requests, "a file, or a list of requests: [{'prompt': ..., 'subject': ...}]", "requests")
    if not isinstance(entries, Sequence) or not entries:
        raise DataError(f"{source}: expected a list of at least one request of EasyEdit.")
    result = EasyEditRequests({}, {})
    for number, entry in enumerate(entries):
        location = f"{source}: request {number}"
        entry = _object(entry, location)
        fact = _fact(entry, location, rephrase=rephrase)
        if fact in result.new_objects:
            raise DataError(f"{location}: {fact.key} was in an earlier request; expected one for each fact.")
        result.new_objects[fact] = text_of(entry, "target_new", location)
        groups = {}
        for name, group in _object(entry.get("locality", {}), f"{location}, locality").items():
            group_location = f"{location}, {name!r}"
            groups[name] = _locality_facts(_object(group, group_location), group_location)
        result.others[fact] = groups
    return result


# --- to EasyEdit ------------------------------------------------------------------------------------------


def _prompts(fact: Fact) -> list[str]:
    """Return the prompts of a fact that a blank and the answer complete.

    Raises:
        ArgumentError: there is none.
    """
    prompts = []
    for template in fact.templates:
        opening = fact.filled(template).partition(OBJECT_SLOT)[0]
        if object_is_last(template) and opening.endswith(" ") and opening.strip():
            prompts.append(opening.rstrip())
    if not prompts:
        raise ArgumentError(
            f"{fact.key} has no template that ends with [Y] behind a blank, and so no prompt for EasyEdit; "
            "expected one such as 'The capital of [X] is [Y].'."
        )
    return prompts


def _grouped(fact: Fact, others: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Return the other facts by whether they are of a fact's relation."""
    groups: dict[str, list[Fact]] = {SAME_RELATION: [], OTHER_RELATIONS: []}
    for other in others:
        if other != fact:
            groups[SAME_RELATION if other.relation == fact.relation else OTHER_RELATIONS].append(other)
    return groups


def _locality(facts: Iterable[Fact]) -> dict[str, list[str]]:
    """Return a group of facts as lists of prompts, answers and their other fields."""
    columns: dict[str, list[str]] = {"prompt": [], "ground_truth": [], "subject": []}
    for name in OWN_FIELDS:
        columns[name] = []
    for fact in facts:
        columns["prompt"].append(_prompts(fact)[0])
        columns["ground_truth"].append(fact.object)
        for name in ("subject", *OWN_FIELDS):
            columns[name].append(getattr(fact, name))
    return columns


# --- from EasyEdit ----------------------------------------------------------------------------------------


def _fact(entry: Mapping[str, Any], location: str, *, rephrase: bool) -> Fact:
    """Return the fact of a request."""
    subject = text_of(entry, "subject", location)
    if not subject:
        raise DataError(f"{location}: 'subject' is empty; expected the text of the subject.")
    names = ["prompt"]
    if rephrase and entry.get("rephrase_prompt") is not None:
        names.append("rephrase_prompt")
    templates = []
    for name in names:
        prompt = text_of(entry, name, location)
        before, mention, after = prompt.rpartition(PLACE if PLACE in prompt else subject)
        if not mention:
            cure = "" if name == "prompt" else " Correct it, or read with rephrase=False."
            raise DataError(f"{location}: {name} {prompt!r} does not name the subject {subject!r}.{cure}")
        templates.append(_template(before.replace(PLACE, subject) + SUBJECT_SLOT + after))
    return _checked_fact(entry, location, subject, tuple(dict.fromkeys(templates)))


def _locality_facts(group: Mapping[str, Any], location: str) -> tuple[Fact, ...]:
    """Return the facts of a group: texts, or lists of texts of one length."""
    columns = {}
    for name in ("prompt", "ground_truth", "subject", *OWN_FIELDS):
        if name in group or name in ("prompt", "ground_truth"):
            value = group.get(name)
            columns[name] = value if isinstance(value, list) else [value]
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values)} of {name!r}" for name, values in columns.items())
        raise DataError(f"{location}: got {lengths}; expected as many of each.")
    facts = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        prompt = text_of(row, "prompt", location)
        subject = text_of(row, "subject", location) if "subject" in row else ""
        if subject and subject in prompt:
            before, _, after = prompt.rpartition(subject)
            prompt = before + SUBJECT_SLOT + after
        else:
            subject = ""
        facts.append(_checked_fact(row, location, subject, (_template(prompt),)))
    return tuple(facts)


def _template(prompt: str) -> str:
    """Return the template of a prompt; without the full stop masked models would answer with one."""
    return f"{prompt.rstrip()} {OBJECT_SLOT}."


def _checked_fact(
    entry: Mapping[str, Any],
    location: str,
    subject: str,
    templates: tuple[str, ...],
) -> Fact:
    """Return a fact whose other fields are those of an entry.

    Raises:
        DataError: a field is none of a fact, with the place of its request.
    """
    own = {}
    for name in OWN_FIELDS:
        if name in entry:
            own[name] = text_of(entry, name, location)
    relation = own.pop("relation", templates[0])
    try:
        return Fact(subject, relation, text_of(entry, "ground_truth", location), templates, **own)
    except ArgumentError as error:
        raise DataError(f"{location}: {error}") from None


def _object(value: Any, location: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{location}: got {type(value).__name__}; expected a JSON object.")
    return value
