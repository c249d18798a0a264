r"""Escapes for control characters in texts that are shown to users.

Names in fact files, tokens, names of checkpoints, paths and messages of other libraries may contain any character. An
escape sequence in them could colour, move or overwrite the output of a terminal, or write to its clipboard or title; a
direction override reverses the text around it. Terminal output, error messages and reports therefore show such
characters as their Python or JSON escapes. Data files store texts unaltered.
"""

import json
from collections.abc import Callable
from typing import Any
from unicodedata import category

from kn_lens._core.redact import without_secrets

_CONTROL_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories: control, format (with direction overrides), surrogate, line and paragraph separator."""
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Format characters of Persian, Indic scripts and emoji, which affect only the adjacent characters."""


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control and format characters escaped; the result is one line, unless ``keep`` has "\n".

    Args:
        text: any text.
        keep: characters that are not escaped.

    >>> print(escaped("\x1b]0;title\x07 Dub\u202elin\n"))
    \x1b]0;title\x07 Dub\u202elin\n
    """
    return _replaced(text, keep, lambda char: char.encode("unicode_escape").decode())


def shown(text: str, *, keep: str = "") -> str:
    """Return a text for users: escaped and without credentials."""
    return without_secrets(escaped(text, keep=keep))


def shown_in(value: Any, *, keep: str = "") -> Any:
    """Return a JSON value with every text in it escaped, keys included."""
    if isinstance(value, str):
        return escaped(value, keep=keep)
    if isinstance(value, dict):
        return {shown_in(key, keep=keep): shown_in(item, keep=keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown_in(item, keep=keep) for item in value]
    return value


def json_text(value: Any, **options: Any) -> str:
    r"""Return a value as JSON with control characters escaped, so that a parser reads the same value.

    Args:
        value: a JSON value.
        options: keyword arguments of ``json.dumps``.

    >>> print(json_text({"object": "Dub\u202elin\x9b"}))
    {"object": "Dub\u202elin\u009b"}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    return _replaced(text, "\n", lambda char: json.dumps(char)[1:-1])  # JSON texts contain no raw line breaks


def _replaced(text: str, keep: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    controls = {char for char in set(text) if category(char) in _CONTROL_CATEGORIES}.difference(keep, _JOINERS)
    if not controls:
        return text
    return text.translate({ord(char): escape(char) for char in controls})
