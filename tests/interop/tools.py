"""The tools that are tried beside kn_lens; some are installed beside TransformerLens 3 only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest


@contextmanager
def without_warnings() -> Iterator[None]:
    """Have warnings of a tool, which are errors here, pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tool(name: str) -> Any:
    """Return a module of the environment of ``make test-tl3``, where it has to be there; elsewhere, skip the test."""
    if version("transformer-lens").startswith("3."):
        with without_warnings():  # of what the tool itself imports
            return import_module(name)
    return pytest.importorskip(name, reason=f"{name} is in the environment of `make test-tl3` only")
