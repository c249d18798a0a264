"""Shared by the tests of this package: the command line in this process, and counts of the inputs."""

from collections import Counter

from tests.end_to_end.conftest import cli
from tests.reliability.tries import TRIED

__all__ = ["cli"]


def pytest_terminal_summary(terminalreporter):
    """Print how many inputs of each kind were tried, in this process: there is no sum under xdist."""
    if not TRIED:
        return
    terminalreporter.section("tried")
    groups: dict[str, dict[str, Counter[str]]] = {}
    for (kind, ended), n in sorted(TRIED.items()):
        groups.setdefault(kind.partition(": ")[0], {}).setdefault(kind, Counter())[ended] += n
    for group, kinds in groups.items():
        terminalreporter.write_line(_told(group, sum(kinds.values(), Counter())))
        for kind, counts in kinds.items() if len(kinds) > 1 else ():
            terminalreporter.write_line("    " + _told(kind.partition(": ")[2], counts))
    terminalreporter.write_line(f"in all: {sum(TRIED.values()):,}")


def _told(what: str, counts: Counter[str]) -> str:
    return f"{what}: {counts.total():,} ({', '.join(f'{n:,} {ended}' for ended, n in counts.items())})"
