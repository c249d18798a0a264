"""``kn-lens report``: files written, files refused."""

import json
import struct
import xml.etree.ElementTree as ElementTree

import pytest

from tests.browser import chromium
from tests.synthetic_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


def test_a_report_is_written_into_the_run_directory(cli, run):
    code, out, err = cli("report", run)
    assert (code, err) == (0, "") and out.split()[0] == str(run / "report.html")
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_figures_and_tables_are_written_next_to_the_report(cli, run, tmp_path):
    chromium()
    code, out, err = cli(
        "report",
        run,
        "--out",
        tmp_path / "r.html",
        *("--figures", "html", "--figures", "png", "--figures", "svg"),
        "--tables",
        "csv",
        "--json",
    )
    assert code == 0, err
    files = json.loads(out)["files"]
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(tmp_path / name) for name in names - {"figures/plotly.min.js"}} == set(files)
    assert {"r.html", "figures/effects.png", "figures/effects.svg", "tables/facts.csv", "tables/neurons.csv"} <= names
    image = (tmp_path / "figures" / "effects.png").read_bytes()
    width, height = struct.unpack(">II", image[16:24])
    assert image.startswith(b"\x89PNG") and width == 2 * 900 and height > 300
    texts = [one.text for one in ElementTree.parse(tmp_path / "figures" / "effects.svg").iter() if one.text]
    assert "knowledge neurons" in texts


def test_without_kaleido_images_are_refused_with_the_cure_and_nothing_is_written(cli, run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    code, out, err = cli("report", run, "--out", tmp_path / "r.html", "--figures", "png")
    assert code == 2 and out == "" and "pip install 'kn-lens[figures]'" in err and not list(tmp_path.iterdir())


def test_without_a_browser_images_are_refused_with_the_cure(cli, run, tmp_path, monkeypatch):
    from choreographer.errors import ChromeNotFoundError

    def nothing(*args, **kwargs):
        raise ChromeNotFoundError

    monkeypatch.setattr("kaleido.write_fig_from_object_sync", nothing)
    code, _, err = cli("report", run, "--out", tmp_path / "r.html", "--figures", "png")
    assert code == 2 and "Install one" in err and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--figures", "pgn"), "not one of html, png, svg. Did you mean 'png'"),
        (("--tables", "cvs"), "not one of csv. Did you mean 'csv'"),
        (("--out", "no/such/report.html"), "there is no directory no/such"),
    ],
)
def test_invalid_input_is_one_line(cli, run, tmp_path, args, message):
    code, out, err = cli("report", run, *args)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_directory_without_a_run_is_refused_with_the_command(cli, tmp_path):
    code, _, err = cli("report", tmp_path)
    assert code == 2 and "is no run directory" in err and "kn-lens reproduce --out" in err
