"""What an installation consists of: ``python -m tests.dependencies`` prints the tables of ``docs/install.md``."""

import re
from importlib.metadata import distribution

from packaging.requirements import Requirement


def canonical(name: str) -> str:
    """Return the name of a distribution as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(name: str, extras: frozenset[str] = frozenset()) -> dict[str, frozenset[str]]:
    """Return the distributions that an installed one requires here, each with the extras that it asks for."""
    required: dict[str, frozenset[str]] = {}
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            key = canonical(requirement.name)
            required[key] = required.get(key, frozenset()) | requirement.extras
    return required


def installed_for(name: str, without: frozenset[str] = frozenset()) -> set[str]:
    """Return a distribution and all that it needs, directly or not; those of ``without`` are not followed."""
    extras_of: dict[str, frozenset[str]] = {}
    waiting = [(canonical(name), frozenset[str]())]
    while waiting:
        current, extras = waiting.pop()
        if current in without or (extras <= extras_of.get(current, frozenset()) and current in extras_of):
            continue
        extras_of[current] = extras_of.get(current, frozenset()) | extras
        waiting += requirements_of(current, extras_of[current]).items()
    return set(extras_of)


def megabytes(name: str) -> float:
    """Return the size of a distribution's files, its compiled Python files included."""
    installed = distribution(name)
    paths = [installed.locate_file(file) for file in installed.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    """Print which packages TransformerLens brings, which kn_lens adds, and their sizes."""
    everything = installed_for("kn-lens") - {"kn-lens"}
    brought = installed_for("transformer-lens")
    needed_without = installed_for("kn-lens", without=frozenset({"transformer-lens"}))
    print("| package | MB | without TransformerLens |\n| --- | --- | --- |")
    for name in sorted(requirements_of("transformer-lens"), key=megabytes, reverse=True):
        print(f"| {name} | {megabytes(name):.1f} | {'yes' if name in needed_without else 'no'} |")
    groups = {
        "all": everything,
        "brought by TransformerLens alone": brought - needed_without,
        "added by kn_lens": everything - brought,
    }
    for title, names in groups.items():
        listed = ", ".join(sorted(names)) if len(names) < 10 else ""
        print(f"{title}: {len(names)} packages, {sum(map(megabytes, names)):.0f} MB. {listed}")


if __name__ == "__main__":
    main()
