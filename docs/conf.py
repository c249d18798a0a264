"""How Sphinx builds these pages: ``make docs``."""

from collections.abc import Callable
from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode

import kn_lens

project = "kn_lens"
author = "The kn_lens developers"
copyright = "The kn_lens developers, MIT licence"
version = release = kn_lens.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "kn_lens"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # code in the pages is run by the tests, where its output is compared

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a dataclass' fields are told once, where its docstring tells them

html_math_renderer = "mathml"  # which browsers draw themselves: the pages need no script from elsewhere


def _math(display: str) -> Callable[[Any, Any], None]:
    def visit(translator: Any, node: Any) -> None:
        translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
        raise SkipNode

    return visit


def setup(app: Any) -> None:
    """Let Sphinx write formulas as MathML."""
    app.add_html_math_renderer("mathml", (_math("inline"), None), (_math("block"), None))
