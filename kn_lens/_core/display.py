r"""Display of values: their text in one line, and their HTML in notebooks.

A value of any size is shown by its number of parts and its first ones, so that it never fills a screen. Names in data
may contain any character. Both forms show control characters escaped, and the HTML shows markup literally.
"""

from collections.abc import Iterable, Sequence
from html import escape

from kn_lens._core.escape import shown

ROWS_SHOWN = 10
"""Number of rows of a table in a notebook."""
LONGEST_TEXT = 80
"""Number of characters of a text in a line or a cell."""


def shortened(text: str, limit: int = LONGEST_TEXT) -> str:
    r"""Return a text as one line of at most ``limit`` characters, escaped and without credentials.

    >>> shortened("Ireland\n"), shortened("a long name", limit=6)
    ('Ireland\\n', 'a l...')
    """
    line = shown(text)
    if len(line) <= limit:
        return line
    return line[: limit - 3] + "..."


def enumerated(names: Sequence[str], limit: int) -> str:
    """Return names separated by commas: the first ``limit``, and the number of the others.

    >>> enumerated(["L3N5", "L3N7", "L3N9"], limit=2)
    'L3N5, L3N7, ... 1 more'
    """
    text = ", ".join(names[:limit])
    n_others = len(names) - limit
    if n_others > 0:
        text += f", ... {n_others:,} more"
    return text


def table_html(
    summary: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    n_rows: int,
) -> str:
    """Return a line and a table below it as HTML.

    Args:
        summary: the line.
        columns: the names of the columns.
        rows: the rows that are shown, at most ``ROWS_SHOWN``.
        n_rows: the number of all rows; the line below the table gives the number of those that are not shown.

    >>> print(table_html("1 fact", ["subject"], [["A & B"]], n_rows=1))
    <p>1 fact</p>
    <table>
    <thead><tr><th>subject</th></tr></thead>
    <tbody>
    <tr><td>A &amp; B</td></tr>
    </tbody>
    </table>
    """
    lines = [f"<p>{escape(shown(summary))}</p>", "<table>"]
    lines.append(f"<thead>{_row_html('th', columns)}</thead>")
    lines.append("<tbody>")
    n_shown = 0
    for row in rows:
        lines.append(_row_html("td", row))
        n_shown += 1
    lines += ["</tbody>", "</table>"]
    if n_shown < n_rows:
        lines.append(f"<p>... {n_rows - n_shown:,} more</p>")
    return "\n".join(lines)


def _row_html(tag: str, cells: Sequence[object]) -> str:
    texts = [escape(shortened(str(cell))) for cell in cells]
    return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"
