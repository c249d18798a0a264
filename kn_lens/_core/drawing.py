"""How results reach their figures, which they do not import.

A result is a plain value; what it looks like is for ``kn_lens.reports.notebook``. Notebooks ask the value itself to be
drawn, so its methods look the drawing function up by name when they are called, and not before.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

DRAWN_IN = "kn_lens.reports.notebook"


def drawing(name: str) -> Callable[..., Any]:
    """Return the function of that name that draws.

    >>> drawing("attribution_figure").__module__
    'kn_lens.reports.notebook'
    """
    return getattr(import_module(DRAWN_IN), name)
