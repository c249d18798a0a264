"""Checks of arguments that several packages share."""

from kn_lens.errors import ArgumentError


def check_share(name: str, value: float) -> None:
    """Raise unless an argument is a share, from 0 to 1.

    Raises:
        ArgumentError: with the name and the value.
    """
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value}; expected a share from 0 to 1.")


def is_list_of(kind: type, value: object) -> bool:
    """Return whether a value is a list or a tuple whose items are all of a type.

    >>> is_list_of(str, ["a", "b"]), is_list_of(str, ["a", 1]), is_list_of(str, "ab")
    (True, False, False)
    """
    return isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)
