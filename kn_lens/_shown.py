r"""Texts on their way to people: without what a terminal obeys, and without credentials.

Names in fact files, tokens and names of checkpoints, paths and messages of other libraries may hold anything. An escape
sequence among them could colour, move or overwrite what else a terminal shows, write to its clipboard or title; an
override of direction turns the text around it. Wherever text leaves for a terminal, an error message or a report, such
characters are shown as the escapes that Python and JSON have for them. Files of data keep their texts as they are.
"""

import json
from collections.abc import Callable
from typing import Any
from unicodedata import category

from kn_lens._secrets import without_secrets

_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of control and format characters (directions among them), half pairs, separators of lines, paragraphs."""
_WRITING = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Format characters that Persian, Indic scripts and emoji are written with, and that act on their neighbours alone."""


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control and format characters as escapes: one line, unless line breaks are kept.

    Args:
        text: any text.
        keep: characters to leave as they are.

    >>> print(escaped("\x1b]0;title\x07 Dub\u202elin\n"))
    \x1b]0;title\x07 Dub\u202elin\n
    """
    return _replaced(text, keep, lambda char: char.encode("unicode_escape").decode())


def shown(text: str, *, keep: str = "") -> str:
    """Return a text as people are shown it: escaped, and without credentials."""
    return without_secrets(escaped(text, keep=keep))


def shown_in(value: Any, *, keep: str = "") -> Any:
    """Return a value as JSON has it, with all texts in it, keys too, escaped."""
    if isinstance(value, str):
        return escaped(value, keep=keep)
    if isinstance(value, dict):
        return {shown_in(key, keep=keep): shown_in(item, keep=keep) for key, item in value.items()}
    return [shown_in(item, keep=keep) for item in value] if isinstance(value, (list, tuple)) else value


def json_text(value: Any, **how: Any) -> str:
    r"""Return a value as JSON that a terminal can show: the same value to whoever reads it.

    >>> print(json_text({"object": "Dub\u202elin\x9b"}))
    {"object": "Dub\u202elin\u009b"}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **how)
    return _replaced(text, "\n", lambda char: json.dumps(char)[1:-1])  # line breaks stand between, not in, texts


def _replaced(text: str, keep: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    acting = {char for char in set(text) if category(char) in _ACTING}.difference(keep, _WRITING)
    return text.translate({ord(char): escape(char) for char in acting}) if acting else text
