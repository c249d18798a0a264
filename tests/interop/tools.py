"""The other tools of these tests; some can be installed beside TransformerLens 3 only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore the warnings of a tool, which are errors elsewhere in the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tool(name: str) -> Any:
    """Return a module that ``make test-tl3`` installs; skip the test in other environments."""
    if version("transformer-lens").startswith("3."):
        with without_warnings():  # of what the tool itself imports
            return import_module(name)
    return pytest.importorskip(name, reason=f"{name} is in the environment of `make test-tl3` only")
