"""What all parts of the sweep share: the command line in this process, and the count of what was tried."""

from collections import Counter

from tests.end_to_end.conftest import cli
from tests.reliability.tries import TRIED

__all__ = ["cli"]


def pytest_terminal_summary(terminalreporter):
    """Say how many inputs of each kind were tried (of this process: not under xdist)."""
    if not TRIED:
        return
    terminalreporter.section("tried")
    of_kind: dict[str, Counter[str]] = {}
    for (kind, ended), n in sorted(TRIED.items()):
        of_kind.setdefault(kind, Counter())[ended] += n
    for kind, counts in of_kind.items():
        told = ", ".join(f"{n:,} {ended}" for ended, n in counts.items())
        terminalreporter.write_line(f"{kind}: {counts.total():,} ({told})")
    terminalreporter.write_line(f"in all: {sum(TRIED.values()):,}")
