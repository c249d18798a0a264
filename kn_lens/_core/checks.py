"""Checks of arguments that several packages share, each with one wording."""

import os
from numbers import Integral, Real
from typing import Any

from kn_lens._core.wording import type_with_article
from kn_lens.errors import ArgumentError, KNLensError

TEXT_SHOWN = 60
"""Characters of a text that a message shows."""
PATH = "the name of a file or folder, or a Path"


def wrong_kind(
    value: object,
    expected: str,
    name: str = "",
    error: type[KNLensError] = ArgumentError,
) -> KNLensError:
    """Return the error of an argument of another kind: what it is, what is expected, and the call that makes that.

    Args:
        value: the argument.
        expected: the kind of argument, with the call: ``"a PromptBatch: kn_lens.make_prompts(model, facts)"``.
        name: the name of the argument.
        error: the class of the error.

    >>> print(wrong_kind("Ireland", "a Fact: facts.find('Ireland', 'P36')", "fact"))
    Got the text 'Ireland' as fact; expected a Fact: facts.find('Ireland', 'P36').
    """
    got = "None" if value is None else type_with_article(value)
    if isinstance(value, str):
        text = value if len(value) <= TEXT_SHOWN else f"{value[:TEXT_SHOWN]}..."
        got = f"the text {text!r}"
    role = f" as {name}" if name else ""
    return error(f"Got {got}{role}; expected {expected}.")


def check_kind(value: object, kind: Any, expected: str, name: str = "") -> None:
    """Raise unless an argument is of a kind; see ``wrong_kind``.

    Raises:
        ArgumentError: it is of another.
    """
    if not isinstance(value, kind):
        raise wrong_kind(value, expected, name)


def check_path(path: object, name: str = "path") -> None:
    """Raise unless an argument is the name of a file or folder.

    Raises:
        ArgumentError: another kind of argument.
    """
    check_kind(path, (str, os.PathLike), PATH, name)


def check_table(table: object, expected: str, name: str) -> None:
    """Raise unless an argument is a table.

    Raises:
        ArgumentError: another kind of argument.
    """
    import pandas as pd

    check_kind(table, pd.DataFrame, expected, name)


def check_number(name: str, value: object) -> None:
    """Raise unless an argument is a number.

    Raises:
        ArgumentError: another kind of argument, such as a text.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name}={value!r}; expected a number.")


def check_whole(name: str, value: object, least: int = 0) -> None:
    """Raise unless an argument is a whole number of at least a size.

    Raises:
        ArgumentError: with the name and the value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{name}={value!r}; expected a whole number from {least}.")


def check_share(name: str, value: float) -> None:
    """Raise unless an argument is a share, from 0 to 1.

    Raises:
        ArgumentError: with the name and the value.
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value}; expected a share from 0 to 1.")


def is_list_of(kind: type, value: object) -> bool:
    """Return whether a value is a list or a tuple whose items are all of a type.

    >>> is_list_of(str, ["a", "b"]), is_list_of(str, ["a", 1]), is_list_of(str, "ab")
    (True, False, False)
    """
    return isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)
