"""The tools that are installed beside TransformerLens 3 only."""

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest


def tool(name: str) -> Any:
    """Return a module of the environment of ``make test-tl3``, where it has to be there; elsewhere, skip the test."""
    if version("transformer-lens").startswith("3."):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the tool itself imports
            return import_module(name)
    return pytest.importorskip(name, reason=f"{name} is in the environment of `make test-tl3` only")
