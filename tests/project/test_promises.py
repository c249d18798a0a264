"""The pages' statements about names, files, defaults and records hold. ``test_pages.py`` runs their code."""

import inspect
import json
import re
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

import kn_lens as kn
from kn_lens._core import defaults
from kn_lens._core.names import UPDATE_FORMS
from kn_lens.attribution.options import PRESETS as ATTRIBUTION_PRESETS
from kn_lens.cli._app import app
from kn_lens.cli.models import REFUSED
from kn_lens.hosts import FAMILIES
from kn_lens.reports.compare.comparison import Comparison
from kn_lens.reports.compare.estimates import STATISTICS
from kn_lens.runs.paper import CHANGE_RATIO, TABLE_2
from kn_lens.runs.settings import PRESETS, Settings
from kn_lens.runs.stages.order import ON_REQUEST, STAGES
from tests.pages import DOCS, PAGES, ROOT

MARKDOWN = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((ROOT / "kn_lens").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in MARKDOWN} | {
    path: "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells) for path in NOTEBOOKS
}
NAMED = {path.relative_to(ROOT).as_posix(): text for path, text in TEXTS.items()}

MADE = {"build/docs", "docs/notebooks", "examples/checkpoints"}
"""Generated files that pages name."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all tables of a text, without the rules below headings."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"^\|[\s|:-]*\|$", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a text."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def dead_links(path: Path, text: str) -> list[str]:
    """Return the links of a text to missing files or headings; web addresses are not checked."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8")))
        ):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", TEXTS, ids=NAMED)
def test_links_of_pages_resolve(path):
    assert dead_links(path, TEXTS[path]) == []


def test_dead_links_are_detected(tmp_path):
    there, text = tmp_path / "there.md", "[a](there.md) [b](there.md#one-two) [c](https://x.org/y)"
    there.write_text("# One: two\n", encoding="utf-8")
    assert dead_links(tmp_path / "page.md", text) == []
    assert dead_links(tmp_path / "page.md", "[a](their.md) [b](there.md#three)") == ["their.md", "there.md#three"]


@pytest.mark.parametrize("name", NAMED)
def test_named_files_and_modules_exist(name):
    paths = set(re.findall(r"`((?:build|docs|examples|kn_lens|tests)/[\w./-]+)`", NAMED[name]))
    assert [path for path in paths if path.rstrip("/") not in MADE and not (ROOT / path).exists()] == []
    modules = set(re.findall(r"python -m ((?:kn_lens|tests)(?:\.\w+)*)", NAMED[name]))
    assert [module for module in modules if find_spec(module) is None] == []


@pytest.mark.parametrize("name", NAMED)
def test_named_settings_and_stages_exist_in_the_package(name):
    text = NAMED[name]
    assert set(re.findall(r"\bkn\.([A-Za-z]\w*)", text)) <= {*kn.__all__, "__version__"}
    if name != "docs/errors/ArgumentError.md":  # which shows what is refused
        assert set(re.findall(r"--set ([a-z]\w*)=", text)) <= {field.name for field in fields(Settings)}
        assert set(re.findall(r"--stage ([a-z_]+)", text)) <= {stage.name for stage in (*STAGES, *ON_REQUEST)}


def test_the_readme_names_every_command():
    listed = re.search(r"^## Command line\n\n(.*?); `kn-lens COMMAND", NAMED["README.md"], re.MULTILINE | re.DOTALL)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert listed and {one.removeprefix("kn-lens ") for one in re.findall(r"`([^`]+)`", listed[1])} == commands


@pytest.mark.parametrize("name", ["method.md", "reproduction.md"])
def test_tables_of_stages_are_complete(name):
    (table,) = re.findall(r"^\| stage (?!\| minutes).*\n((?:\|.*\n)+)", page(name), re.MULTILINE)
    first = [cell for cell, *_ in rows_of(table)]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(stage.name for stage in (*STAGES, *ON_REQUEST))


def test_hosted_and_refused_models_are_listed():
    text = page("hosts.md")
    listed = [row[:3] for row in rows_of(text) if row[1] in ("masked", "causal", "encoder-decoder")]
    assert listed == [[family.name, family.kind, f"`{family.architecture}`"] for family in FAMILIES]
    refused = {reason for reason, *_ in rows_of(text)}
    words = {"quantised weights": "quantised, but for GGUF", "a model in train mode": "in train mode"}
    assert {words.get(reason, reason) for reason in REFUSED} <= refused


@pytest.mark.parametrize(
    ("function", "option", "default", "said"),
    [
        (kn.refine, "attr_threshold", 0.2, "$t$ = `attr_threshold` = 0.2"),
        (kn.refine, "share_threshold", 0.7, "$p$ = `share_threshold` = 0.7"),
        (kn.refine, "min_prompts", 3, r"at least $\max(pn, 3)$ prompts"),
        (kn.refine_by_relation, "step", 0.05, "moves $p$ by 0.05"),
        (kn.refine_by_relation, "target", (2, 5), "fewer than 2 neurons on average and up when more than 5"),
        (kn.refine_by_relation, "max_moves", 6, "at most 6\n   times"),
        (kn.attribute, "tolerance", 1e-3, "`tolerance` being 1e-3"),
        (kn.attribute, "max_points", 129, "and panels where it is slow; 129 at most"),
        (kn.update_fact, "lambdas", None, r"$(\lambda_1, \lambda_2) = (1, 2)$"),
        (kn.update_fact, "scaling", "norm", '`scaling="norm"` unless given'),
        (kn.update_fact, "max_share", 0.1, "more than a tenth of the\nrelation's facts"),
        (kn.effect_table, "n_resamples", 1000, "1,000 times"),
        (kn.effect_table, "level", 0.95, "the middle 95%"),
    ],
)
def test_defaults_match_the_method_page(function, option, default, said):
    assert inspect.signature(function).parameters[option].default == default
    assert said in page("method.md")


def test_presets_match_the_pages():
    assert {"paper": ("right", 20), "official": ("left", 20)} == ATTRIBUTION_PRESETS
    rows = {row[0]: row[1:] for row in rows_of(page("reproduction.md")) if len(row) == 4}
    assert rows["quadrature"] == ["adaptive", "right sum, 20 points", "left sum, 20 points"]
    for preset in ("paper", "official"):
        settings = Settings.of(preset)
        assert (settings.quadrature, settings.n_steps) == ATTRIBUTION_PRESETS[preset]
        assert PRESETS[preset]["baseline"] == "refined"
    assert rows["beside the found neurons"] == ["as many most active ones", *["the refined baseline"] * 2]
    assert Settings.of("kn_lens").baseline == "matched"
    lambdas = [Settings.of(preset).lambdas for preset in ("kn_lens", "paper", "official")]
    assert [defaults.LAMBDAS, UPDATE_FORMS["paper"].lambdas, UPDATE_FORMS["official"].lambdas] == lambdas
    assert rows["lambdas of updates"] == ["({:g}, {:g})".format(*pair) for pair in lambdas]
    assert rows["updates scale the embeddings"] == ["by norms", "not", "by norms"]
    assert [UPDATE_FORMS[preset].scaling for preset in ("paper", "official")] == ["plain", "norm"]


def test_values_of_the_paper_match_the_pages():
    rows = {row[0]: row[1:] for row in rows_of(page("method.md"))}
    row_names = {
        "neurons_per_fact": "neurons of a fact",
        "shared_within": "shared by two facts of a relation",
        "shared_across": "shared by two facts of different relations",
    }
    for name, said in row_names.items():
        assert rows[said] == [f"{TABLE_2[name, kind]:.2f}" for kind in ("found", "baseline")]
    for factor, said in {0.0: "suppressed", 2.0: "amplified"}.items():
        assert rows[said] == [f"{CHANGE_RATIO[factor, kind]:+.2%}" for kind in ("found", "baseline")]


def test_accuracies_of_embedded_models_match_their_measurements():
    rows = {row[0].strip("`"): row for row in rows_of(page("world.md")) if len(row) == 6 and "%" in row[2]}
    models = {path.parent.name: path for path in (ROOT / "kn_lens/world/models").glob("*/recipe.json")}
    assert rows.keys() == models.keys()
    for name, path in models.items():
        recall = json.loads(path.read_text(encoding="utf-8"))["measured"]["recall"]
        assert rows[name][2:4] == [f"{recall['trained']:.2%}", f"{recall['held_out']:.2%}"]


def test_tables_and_statistics_of_a_comparison_are_listed():
    text = page("compare.md")
    tables, _, statistics = text.partition("| statistic |")
    assert [one.name for one in fields(Comparison) if one.name != "notes"] == re.findall(
        r"^\| `(\w+)` \|", tables.partition("## The tables")[2], re.MULTILINE
    )
    first = [cell for cell, *_ in rows_of(statistics.partition("\n\n")[0])]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(STATISTICS)


def test_example_study_of_the_page_is_valid(tmp_path):
    (study,) = re.findall(r"^```toml\n(.*?)^```$", page("studies.md"), re.MULTILINE | re.DOTALL)
    (tmp_path / "study.toml").write_text(study, encoding="utf-8")
    config = kn.read_study(tmp_path / "study.toml")
    assert [model.name for model in config.models] == ["bert-small-0", "pythia-early", "pythia-160m"]
    assert (config.models[1].revision, config.models[1].tags["step"]) == ("step3000", 3000)


def test_the_version_is_the_same_everywhere():
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    newest = re.search(r"^## (\S+)", NAMED["CHANGELOG.md"], re.MULTILINE)
    assert newest and kn.__version__ == cited == newest[1]
    assert f'version = "{cited}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
