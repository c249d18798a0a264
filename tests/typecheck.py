"""The type checker of the suite: beartype, with int accepted where float is annotated, as type checkers do."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_compiled: dict[tuple[str, ...], Callable[..., Any]] = {}


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """Return the checks of a function's arguments or result, compiled from a function of jaxtyping with its signature.

    An inner function is decorated again at each call of the outer one: its checks are compiled at the first.
    """
    if "<locals>" not in signature.__qualname__:
        return _compile(signature)
    hints = (f"{name}: {hint!r}" for name, hint in signature.__annotations__.items())
    key = (signature.__module__, signature.__qualname__, *hints)
    if key not in _compiled:
        _compiled[key] = _compile(signature)
    return _compiled[key]


_compile = beartype(conf=BeartypeConf(is_pep484_tower=True))
