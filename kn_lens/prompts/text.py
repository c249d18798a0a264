"""One text with its answer, as a fact that is queried in it.

A causal model reads what precedes the answer: ``"The capital of France is"`` and ``" Paris"``. A masked model reads the
whole sentence: ``"The capital of France is [MASK]."``, with its own mask token or the slot ``[Y]`` in the answer's
place. So does an encoder-decoder: with its mask token, or ``<extra_id_0>`` for a T5. All take the form with the slot.
"""

import re
from collections.abc import Sequence
from typing import Any

from kn_lens._core.checks import check_kind, is_list_of
from kn_lens.errors import ArgumentError
from kn_lens.facts import OBJECT_SLOT, SUBJECT_SLOT, Fact
from kn_lens.hosts import HookedModel, Host, host_of
from kn_lens.prompts.build import SENTINEL, placeholder_token

RELATION = "text"
"""Relation of the facts of texts."""
MASKS = ("[MASK]", "<mask>", SENTINEL)
"""Tokens that stand in an answer's place in some family, to recognise a text that was written for one."""


def text_fact(
    model: HookedModel | Host,
    texts: str | Sequence[str],
    answer: str,
    *,
    subject: str = "",
    tokenizer: Any = None,
) -> Fact:
    """Return the fact whose templates are texts and whose object is their answer.

    Its relation is ``text``, and its uid the first text, so that texts with the same answer are different facts. The
    blank between text and answer may stand in either; a text without it stays as it is, as in
    languages without blanks.

    Args:
        model: the model that is queried: its kind says where the answer stands.
        texts: one text, or several wordings with the same answer.
        answer: the answer.
        subject: what the fact is about, as it stands in every text; empty where it does not matter.
        tokenizer: has the mask token, instead of the model's own.

    Raises:
        ArgumentError: texts or answer of another kind, empty, or without a place for the answer; a mask for a causal
            model, or none for another one; a word that would run into the answer; a text that does not name the
            subject.

    Example:
        >>> import kn_lens as kn
        >>> fact = text_fact(kn.load_model("world-gpt2"), "The capital of Ireland is", " Dublin")
        >>> fact.object, fact.templates
        ('Dublin', ('The capital of Ireland is [Y]',))
    """
    host = host_of(model)
    wordings = [texts] if isinstance(texts, str) else list(texts)
    check_kind(answer, str, "one answer, a text: kn_lens.find(model, 'The capital of France is', ' Paris')", "answer")
    if not answer.strip():
        raise ArgumentError(
            f"answer={answer!r} is empty; expected the text that completes the prompt, such as ' Paris'."
        )
    if not wordings or not is_list_of(str, wordings):
        raise ArgumentError("Got no texts, or something else among them; expected one text, or wordings of one fact.")
    if tokenizer is None:
        tokenizer = host.tokenizer
    own_mask = MASKS[0]
    if tokenizer is not None:
        own_mask = placeholder_token(tokenizer, host.kind) or own_mask
    templates = []
    for text in wordings:
        if host.reads_whole_text:
            templates.append(_whole_template(text, answer, own_mask, host))
        else:
            templates.append(_causal_template(text, answer, host))
    uid = templates[0].strip()
    check_kind(subject, str, "the words of the text that name its subject, such as 'France'", "subject")
    subject = subject.strip()
    if subject:
        templates = [_with_subject_slot(template, subject) for template in templates]
    return Fact(subject, RELATION, answer.strip(), tuple(templates), uid=uid)


def _with_subject_slot(template: str, subject: str) -> str:
    """Return a template with the slot in place of the first mention of its subject: a word, if there is one.

    >>> _with_subject_slot("Romes are many, but Rome is in [Y]", "Rome")
    'Romes are many, but [X] is in [Y]'
    """
    if SUBJECT_SLOT in template:
        return template
    mention = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", template)
    start = template.find(subject) if mention is None else mention.start()
    if start < 0:
        raise ArgumentError(
            f"The text {template.replace(OBJECT_SLOT, '...')!r} does not name the subject {subject!r}; "
            "expected words that stand in it."
        )
    return template[:start] + SUBJECT_SLOT + template[start + len(subject) :]


def _causal_template(text: str, answer: str, host: Host) -> str:
    """Return a text with the slot where its answer follows."""
    for mask in MASKS:
        if mask in text:
            before = text.partition(mask)[0].rstrip()
            raise ArgumentError(
                f"{text!r} holds a mask, and {host.name} is a causal model, which reads what precedes the answer: "
                f"kn_lens.find(model, {before!r}, {' ' + answer.strip()!r})."
            )
    if OBJECT_SLOT in text:
        return text
    if not text.strip():
        raise ArgumentError(f"Got the text {text!r}, which is empty; expected what precedes the answer {answer!r}.")
    if _is_cased(text[-1]) and _is_cased(answer[0]):
        raise ArgumentError(
            f"{text!r} and {answer!r} would read {text.split()[-1] + answer!r}; "
            f"expected a blank between them: kn_lens.find(model, {text!r}, {' ' + answer!r})."
        )
    if text[-1].isspace():
        return text + OBJECT_SLOT
    blank = answer[: len(answer) - len(answer.lstrip())]
    return text + blank + OBJECT_SLOT


def _whole_template(text: str, answer: str, mask: str, host: Host) -> str:
    """Return a text with the slot in place of the mask."""
    template = text.replace(mask, OBJECT_SLOT)
    n_slots = template.count(OBJECT_SLOT)
    if n_slots == 0:
        before = text.rstrip()
        for other_mask in MASKS:
            before = before.partition(other_mask)[0].rstrip()
        kind = "an encoder-decoder" if host.kind == "encoder-decoder" else f"a {host.kind} model"
        name = mask if mask == SENTINEL else f"its mask token {mask}"
        raise ArgumentError(
            f"{host.name} is {kind}: expected {name} in the answer's place of {text!r}, as in "
            f"kn_lens.find(model, {before + ' ' + mask + '.'!r}, {answer.strip()!r})."
        )
    if n_slots > 1:
        raise ArgumentError(
            f"{text!r} holds {mask} {n_slots} times; expected it once: an answer of several tokens takes one."
        )
    return template


def _is_cased(character: str) -> bool:
    """Return whether a character is a letter of a script with capitals, all of which have blanks between words.

    >>> _is_cased("s"), _is_cased("是"), _is_cased("-")
    (True, False, False)
    """
    return character.lower() != character.upper()
