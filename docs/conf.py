"""How Sphinx builds these pages: ``make docs``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode

import kn_lens

HERE = Path(__file__).parent

project = "kn_lens"
author = "The kn_lens developers"
copyright = "The kn_lens developers, MIT licence"
version = release = kn_lens.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Sphinx reads nothing outside of this directory, and the notebooks are in examples/, with links from there.
for notebook in sorted((HERE.parent / "examples").glob("*.ipynb")):
    copy, text = HERE / "notebooks" / notebook.name, notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
    if not copy.exists() or copy.read_text(encoding="utf-8") != text:
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text, encoding="utf-8")

html_theme = "furo"
html_title = "kn_lens"
html_static_path = ["_static"]
html_css_files = ["notebooks.css"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # code in the pages is run by the tests, where its output is compared
suppress_warnings = ["mystnb.unknown_mime_type"]  # figures are stored as Plotly's JSON too, for Jupyter

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
