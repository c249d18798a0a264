"""Flat settings as TOML, one entry a line, and back."""

import json
import re
from collections.abc import Mapping
from typing import Any


def as_toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML, one a line; TOML has no null, so None is left out.

    >>> print(as_toml({"seed": 0, "relations": ["P36"], "limit": None}), end="")
    seed = 0
    relations = ["P36"]
    """
    lines = []
    for key, value in settings.items():
        if value is not None:
            lines.append(f"{key} = {toml_value(value)}\n")
    return "".join(lines)


def toml_value(value: Any) -> str:
    """Return a string, a number, a boolean or a list of them as TOML; but for NaN and infinities, this is JSON too.

    >>> toml_value(["Zürich", 1e999, True])
    '["Zürich", inf, true]'
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    # TOML takes no pairs of surrogates, and neither lone ones (file names can have them) nor DEL as they are.
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def from_toml(text: str) -> dict[str, Any]:
    """Return the settings that ``as_toml`` wrote.

    >>> from_toml(as_toml({"seed": 0, "relations": ["P36"], "limit": None}))
    {'seed': 0, 'relations': ['P36']}
    """
    settings = {}
    for line in text.split("\n"):  # strings may hold the other line separators of Unicode
        if line:
            key, _, value = line.partition(" = ")
            settings[key] = json.loads(value)
    return settings
