"""Checks of arguments that several packages share."""

from kn_lens.errors import ArgumentError


def check_share(name: str, value: float) -> None:
    """Raise unless an argument is a share, from 0 to 1.

    Raises:
        ArgumentError: with the name and the value.
    """
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value}; expected a share from 0 to 1.")
