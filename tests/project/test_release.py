"""The release: the wheel has what the library needs and nothing else, the source archive what its tests need."""

import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kn_lens"
MODELS = ("world-bert", "world-bert-multilingual", "world-bert-plain", "world-gpt2", "world-gpt2-plain")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an archive of the source, made with the backend alone: nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--target",
        "sdist",
        "--directory",
        folder,
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def names_in(wheel):
    return {name for name in ZipFile(wheel).namelist() if not name.endswith("/")}


def test_the_wheel_has_the_package_with_its_data_and_nothing_else(wheel):
    here = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    inside = {name for name in names_in(wheel) if ".dist-info/" not in name}
    assert inside == {name for name in here if "__pycache__" not in name}
    assert {"kn_lens/py.typed", "kn_lens/__init__.pyi", "kn_lens/reports/html/page.html"} <= inside
    for name in ("relations.jsonl", "facts.jsonl", "templates.jsonl", "minimal_pairs.jsonl", "DATA_CARD.md"):
        assert f"kn_lens/world/{name}" in inside
    other = {name for name in inside if not re.search(r"\.(py|pyi|typed|jsonl|md|txt|html|css|js)$", name)}
    assert all(re.fullmatch(r"kn_lens/world/models/[\w-]+/\w+\.(json|safetensors)", name) for name in other)
    weights = {name for name in other if name.endswith(".safetensors")}
    assert weights == {f"kn_lens/world/models/{name}/model.safetensors" for name in MODELS}


def test_the_wheel_carries_its_licences(wheel):
    """The licences of code and data are in the metadata, where tools look for them."""
    licences = {name.split(".dist-info/licenses/")[1] for name in names_in(wheel) if ".dist-info/licenses/" in name}
    data = {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "world" / "LICENSES").iterdir()}
    assert licences == {"LICENSE"} | data and len(data) == 3


def test_the_wheel_is_as_small_as_the_readme_says(wheel):
    (said,) = re.findall(r"wheel of ([\d.]+) MB", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert wheel.stat().st_size / 1e6 == pytest.approx(float(said), rel=0.05)


def test_required_python_is_the_same_everywhere():
    """README, metadata, linter and type checker name the same version, which all dependencies support."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (said,) = re.findall(r"Python (3\.\d+) or newer", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == f">={said}"
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(project["project"]["classifiers"]))
    assert min(classified, key=lambda version: int(version[2:])) == said
    assert project["tool"]["ruff"]["target-version"] == f"py{said.replace('.', '')}"
    assert project["tool"]["pyright"]["pythonVersion"] == said
    own = {re.split(r"[^\w-]", one)[0] for one in project["project"]["dependencies"]}
    for name in own:
        required = metadata(name).get("Requires-Python") or ""
        least = [int(minor) for minor in re.findall(r">=3\.(\d+)", required.replace(" ", ""))]
        assert max(least, default=0) <= int(said[2:]), f"{name} asks for {required}"


def test_the_source_is_what_is_under_version_control(built):
    """Tests, documentation and examples can be run from the archive."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is the source as it was handed out")
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    tracked = {name for name in listed if name and not name.startswith(".ci/")}
    assert tracked - inside == set()
    assert not [name for name in inside - tracked if re.search(r"\.(safetensors|pyc)$|checkpoints/|\.venv", name)]
