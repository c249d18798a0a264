"""What the metadata, the constraints and the page of the installation say of dependencies is the same."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.dependencies import canonical, installed_for, megabytes, requirements_of
from tests.pages import DOCS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (DOCS / "install.md").read_text(encoding="utf-8")


def test_the_page_lists_what_transformer_lens_requires():
    """The names are those of the metadata, and the last column what kn_lens would need without TransformerLens."""
    listed = dict(re.findall(r"^\| ([\w-]+) \| [\d.]+ \| (yes|no) \|$", PAGE, flags=re.MULTILINE))
    needed_without = installed_for("kn-lens", without=frozenset({"transformer-lens"}))
    required = requirements_of("transformer-lens")
    assert listed == {name: "yes" if name in needed_without else "no" for name in required}
    (number,) = re.findall(r"requires (\d+) packages", PAGE)
    assert int(number) == len(required)


def test_the_page_counts_the_packages():
    """Where the environment has the versions of the page, as that of ``make test`` has."""
    everything = installed_for("kn-lens") - {"kn-lens"}
    brought = installed_for("transformer-lens")
    needed_without = installed_for("kn-lens", without=frozenset({"transformer-lens"}))
    assert everything - brought == {"lazy-loader", "narwhals", "plotly"}
    (total, alone) = re.findall(r"(\d+) packages of [\d,]+ MB .*?\. (\d+) of them", PAGE, flags=re.DOTALL)[0]
    assert (len(everything), len(brought - needed_without)) == (int(total), int(alone))


def test_the_page_lists_the_extras_of_users():
    listed = dict(re.findall(r"^\| `kn-lens\[(\w+)\]` \| ([\w, ]+) \|", PAGE, flags=re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    assert set(listed) == set(extras) - {"docs", "test", "tl3", "dev"}
    for name, brought in listed.items():
        assert brought.split(", ") == [canonical(Requirement(line).name) for line in extras[name]]


def test_the_lowest_versions_are_what_is_tested():
    """All but PyTorch, whose older wheels for Linux bring CUDA."""
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    tested = {canonical(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)}
    extras = PROJECT["optional-dependencies"]
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in ("figures", "gguf", "ray", "world", "test"):
        requirements += [Requirement(line) for line in extras[extra]]
    compared = 0
    for requirement in requirements:
        name = canonical(requirement.name)
        if name in ("kn-lens", "torch"):
            continue
        (lowest,) = (one.version for one in requirement.specifier if one.operator == ">=")
        assert re.fullmatch(rf"{re.escape(lowest)}(\.\d+)*", tested[name]), f"{requirement}: tested is {tested[name]}"
        compared += 1
    assert compared > 25


def test_the_page_names_the_pythons_of_the_classifiers():
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    (listed,) = re.findall(r"runs on Python ([\d., and]+\d)\.", PAGE)
    assert re.findall(r"3\.\d+", listed) == classified


@pytest.mark.parametrize("name", ["torch", "plotly"])
def test_sizes_are_those_of_the_files(name):
    """A package of many files has a size; its description alone has kilobytes."""
    assert megabytes(name) > 10
