"""Pages from templates: scripts, style, security policy and packed data, which all pages share.

Text from the data is either escaped by the template or packed (gzip, base64) and unpacked as text in the browser.
Control and format characters in it are shown as escapes, so that no name can affect the text around it. The content
security policy of a page allows the scripts below, by their digests, and nothing else; nothing can be loaded.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import kn_lens
from kn_lens._core.escape import escaped, shown_in

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCRIPTS = ("data.js", "table.js", "plots.js", "facts.js", "page.js")


def rendered(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: file name of its template.
        data: values for the scripts by name, each packed on its own; ``core`` is unpacked when the page starts.
        **values: values of the template.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    folder = files("kn_lens.reports.html")

    def text_of(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(text_of),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_escaped_value,
    )
    scripts = [get_plotlyjs(), *map(text_of, SCRIPTS)]
    packed = {name: Markup(_packed(value)) for name, value in data.items()}
    return environment.get_template(template).render(
        policy=_security_policy(scripts),
        css=Markup(text_of("page.css")),
        scripts=list(map(Markup, scripts)),
        version=kn_lens.__version__,
        data=packed,
        **values,
    )


def figures_json(figures: "Mapping[str, Figure]") -> dict[str, Any]:
    """Return figures as JSON values, by name."""
    return {name: json.loads(str(figure.to_json())) for name, figure in figures.items()}


def _escaped_value(value: Any) -> Any:
    """Return a value of the template; control and format characters in text from the data are escaped."""
    # The page's own markup has the type Markup.
    return escaped(value, keep="\n") if type(value) is str else value


def _security_policy(scripts: Sequence[str]) -> str:
    hashes = []
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        hashes.append(f"'sha256-{digest}'")
    # Plotly writes style sheets, and draws an image of a figure in order to save it.
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src "
        "data: blob:; base-uri 'none'; form-action 'none'"
    )


def _packed(value: Any) -> str:
    """Return data as a JSON string of base64 of gzip of JSON, which has no characters with a meaning in HTML."""
    text = json.dumps(
        shown_in(value, keep="\n"),
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    packed = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
    return f'"{packed}"'
