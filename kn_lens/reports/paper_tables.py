r"""Tables for papers and pages: Markdown and LaTeX, with each value and its interval in one cell.

In every table of the package ``low`` and ``high`` are the interval of the column before them:

    change_ratio      low     high          change ratio
         -0.4038  -0.4876  -0.3210          -0.404 [-0.488, -0.321]
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from kn_lens._core.checks import check_table
from kn_lens._core.escape import escaped
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

TableFormat = Literal["markdown", "latex"]


def format_table(
    table: "pd.DataFrame",
    form: TableFormat = "markdown",
    *,
    caption: str = "",
    label: str = "",
    digits: int = 3,
) -> str:
    r"""Return a table of results as Markdown or LaTeX, with each value and its interval in one cell.

    Args:
        table: a table of the package, such as ``effect_table`` returns, or any other; the index is not shown.
        form: ``"markdown"`` or ``"latex"``, which needs the package booktabs.
        caption: a line above the Markdown, or the ``\caption``, in LaTeX's own notation.
        label: the ``\label`` of the LaTeX table.
        digits: digits behind the decimal point; integers have none.

    Raises:
        ArgumentError: no table, another form, or digits below 0.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"scope": ["own"], "change_ratio": [-0.4038], "low": [-0.4876], "high": [-0.321]})
        >>> print(format_table(table))
        | scope | change ratio            |
        |:------|------------------------:|
        | own   | -0.404 [-0.488, -0.321] |
        >>> print(format_table(table, "latex", digits=2).splitlines()[4])
        own & $-0.40$ [$-0.49$, $-0.32$] \\
    """
    check_table(table, "a table: kn_lens.effect_table(effects)", "table")
    forms = get_args(TableFormat)
    if form not in forms:
        raise ArgumentError(f"form={form!r}; expected one of {', '.join(forms)}.{did_you_mean(str(form), forms)}")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 0:
        raise ArgumentError(f"digits={digits!r}; expected a whole number from 0.")
    columns = list(map(str, table))
    low_of_value = _interval_columns(columns)
    shown = []
    is_number = []
    names = []
    for position, column in enumerate(columns):
        if position - 1 not in low_of_value and position - 2 not in low_of_value:
            shown.append(position)
            is_number.append(table.dtypes.iloc[position].kind in "iuf")
            names.append(_text(column.replace("_", " "), form))
    rows = []
    for values in table.itertuples(index=False, name=None):
        cells = []
        for position in shown:
            cell = _cell(values[position], digits, form)
            low = low_of_value.get(position)
            if low is not None:
                cell += f" {_interval(values[low], values[low + 1], digits, form)}"
            cells.append(cell)
        rows.append(cells)
    if form == "latex":
        return _latex(names, rows, is_number, caption, label)
    return _markdown(names, rows, is_number, caption)


def _interval_columns(columns: Sequence[str]) -> dict[int, int]:
    """Return the position of ``low`` by that of its value, the column before it."""
    positions = {}
    for position in range(1, len(columns) - 1):
        if columns[position : position + 2] == ["low", "high"]:
            positions[position - 1] = position
    return positions


# --- cells ------------------------------------------------------------------------------------------------


def _interval(low: float, high: float, digits: int, form: str) -> str:
    if math.isnan(low):
        return "[-]"
    return f"[{_cell(low, digits, form)}, {_cell(high, digits, form)}]"


def _cell(value: Any, digits: int, form: str) -> str:
    """Return a value as text; a dash where it is missing."""
    import pandas as pd

    if pd.api.types.is_float(value):
        if math.isnan(value):
            return "-"
        return _number(format(value, f"z.{digits}f"), form)
    if pd.api.types.is_integer(value):
        return _number(str(value), form)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "-"
    return _text(str(value), form)


def _number(text: str, form: str) -> str:
    return f"${text}$" if form == "latex" and text.startswith("-") else text


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def _text(text: str, form: str) -> str:
    """Return a text with what the form would read as its own signs escaped."""
    text = escaped(text)
    if form == "latex":
        return text.translate(_LATEX)
    return text.replace("\\", "\\\\").replace("|", "\\|")


# --- forms ------------------------------------------------------------------------------------------------


def _markdown(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    caption: str,
) -> str:
    widths = []
    for position, name in enumerate(names):
        widths.append(max([3, len(name), *(len(row[position]) for row in rows)]))
    rules = []
    for width, right in zip(widths, is_number, strict=True):
        rules.append("-" * (width + 1) + ":" if right else ":" + "-" * (width + 1))
    lines = [_line(names, widths, [False] * len(names)), f"|{'|'.join(rules)}|"]
    lines += [_line(row, widths, is_number) for row in rows]
    text = "\n".join(lines)
    return f"{caption}\n\n{text}" if caption else text


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for cell, width, is_right in zip(cells, widths, right, strict=True):
        padded.append(cell.rjust(width) if is_right else cell.ljust(width))
    return f"| {' | '.join(padded)} |"


def _latex(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    caption: str,
    label: str,
) -> str:
    import pandas as pd

    alignment = "".join("r" if right else "l" for right in is_number)
    return (
        pd.DataFrame(rows, columns=pd.Index(names))
        .to_latex(
            index=False,
            escape=False,  # the cells are escaped, and their numbers are in math mode for the sake of the minus
            column_format=alignment,
            caption=caption or None,
            label=label or None,
        )
        .rstrip()
    )
