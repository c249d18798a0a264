"""The content of a report, read back from the written page and compared with the records."""

import base64
import gzip
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise

import pandas as pd
import pyarrow as pa
import pytest

from kn_lens._core.advice import NO_SUCCESS, has_no_success
from kn_lens.errors import ArgumentError, DataError
from kn_lens.reports.html.facts import FACTS_AT_ONCE, _text_rows
from kn_lens.reports.html.page import _table_entries
from kn_lens.reports.html.panels import draw_figures, read_tables
from kn_lens.reports.report import write_figures, write_report, write_tables
from kn_lens.reports.style import description_of
from kn_lens.runs.reader import RunRecords
from tests.old_columns import write_old_columns
from tests.synthetic_run import LAST, STAGES, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def copy(run, tmp_path):
    """Return a copy of the run without its report, to be changed."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("*.html"))


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text()


def test_a_run_with_the_columns_of_earlier_versions_has_the_same_report(run, page, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        write_old_columns(patch)
        old = write_run(tmp_path / "run")
    assert "facts" in pd.read_parquet(old / "records" / "effects" / "P1.parquet")
    assert write_report(old).read_text().replace(str(old), str(run)) == page


def packed(page, name):
    (text,) = re.findall(rf'<script type="application/json" id="data-{name}">(.*?)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(json.loads(text))))


def records(run, stage):
    return RunRecords.read(run).records(stage)


def near(value):
    return pytest.approx(value, rel=5e-4)  # four digits


def test_facts_show_the_numbers_of_their_records(run, page):
    facts = pd.DataFrame(packed(page, "core")["facts"]).set_index("key")
    fact_records, answers, effects = (records(run, stage) for stage in ("facts", "answers", "effects"))
    assert list(facts.index) == list(fact_records["key"]) and list(facts["subject"]) == list(fact_records["subject"])
    for row in answers.itertuples():
        assert facts["right"][row.key] == near(row.n_right / row.n_prompts)
    names = {("found", 0.0): "off", ("random", 0.0): "random_off", ("found", 2.0): "up"}
    for row in effects.query("scope == 'own'").itertuples():
        if (row.neuron_set, row.factor) in names:
            assert facts[names[row.neuron_set, row.factor]][row.key] == near(row.after)
            assert facts["before"][row.key] == near(row.before)
    found = records(run, "neurons").query("neuron_set == 'found'").set_index("key")
    for key, neurons in facts["neurons"].items():
        assert neurons == [list(pair) for pair in zip(found["layer"][key], found["index"][key], strict=True)]


def test_neurons_are_counted_over_facts_and_relations(run, page):
    found = records(run, "neurons").query("neuron_set == 'found'").explode(["layer", "index"]).dropna()
    scores, readouts = records(run, "neuron_scores"), records(run, "readouts").set_index(["layer", "index"])
    neurons = pd.DataFrame(packed(page, "core")["neurons"])
    assert len(neurons) == len(found.drop_duplicates(["layer", "index"])) > 10
    for row in neurons.itertuples():
        number = neurons["index"][row.Index]
        own_rows = found[(found["layer"] == row.layer) & (found["index"] == number)]
        assert (row.n_facts, row.n_relations) == (own_rows["key"].nunique(), own_rows["relation"].nunique())
        its = scores[(scores["layer"] == row.layer) & (scores["index"] == number)]
        assert row.score == near(its["score"].mean())
        assert row.tokens == list(readouts.loc[(row.layer, number), "tokens"])


def test_details_belong_to_each_fact(run, page):
    predictions, scores = records(run, "predictions"), records(run, "neuron_scores")
    keys = packed(page, "core")["facts"]["key"]
    details = packed(page, "facts-0")
    assert len(details) == len(keys) == 12
    for key, of_fact in zip(keys, details, strict=True):
        own_rows = predictions[predictions["key"] == key]
        assert of_fact["predictions"]["text"] == list(own_rows["text"])
        assert of_fact["predictions"]["after"] == near(list(own_rows["after"]))
        assert of_fact["predictions"]["rank_after"] == list(own_rows["rank_after"])
        assert of_fact["scores"]["low"] == near(list(scores.loc[scores["key"] == key, "low"]))


def test_details_have_the_effects_and_the_texts_of_most_and_least_activation(run, page):
    effects, texts = records(run, "effects"), records(run, "texts")
    for key, of_fact in zip(packed(page, "core")["facts"]["key"], packed(page, "facts-0"), strict=True):
        shown = pd.DataFrame(of_fact["effects"])
        assert list(zip(shown["neuron_set"], shown["scope"], strict=True)) == [
            ("found", "own"), ("found", "other"), ("random", "own"),
        ]  # fmt: skip
        for row in shown.itertuples():
            cells = effects.query("key == @key and neuron_set == @row.neuron_set and scope == @row.scope")
            after = cells.set_index("factor")["after"]
            assert (row.suppressed, row.amplified) == (near(after[0.0]), near(after[2.0]))
        own_texts = texts[texts["key"] == key].sort_values("found")
        assert of_fact["texts"]["end"] == ["top"] * 3 + ["bottom"] * 3
        assert of_fact["texts"]["text"][:3] == list(own_texts["text"][:-4:-1])
        assert set(of_fact["texts"]["text"][3:]) == set(own_texts["text"][:3])
        assert of_fact["texts"]["found"][0] == near(own_texts["found"].max())


def test_a_text_is_not_among_those_of_most_and_of_least_activation():
    texts = pd.DataFrame({"key": "k", "found": [0.1, 0.4, 0.3, 0.2], "text": list("abcd")})
    shown = _text_rows(texts)
    assert list(zip(shown["end"], shown["text"], strict=True)) == [
        ("top", "b"), ("top", "c"), ("top", "d"), ("bottom", "a"),
    ]  # fmt: skip


def test_details_come_in_parts_with_every_fact_once(tmp_path):
    n = FACTS_AT_ONCE // 2 + 1
    page = write_report(write_run(tmp_path / "run", n_relations=2, n_facts=n, n_prompts=1)).read_text()
    sizes = [len(packed(page, f"facts-{number}")) for number in range(2)]
    assert sizes == [FACTS_AT_ONCE, 2] and "data-facts-2" not in page
    last = packed(page, "facts-1")[1]["predictions"]["text"]
    assert last == [f"In sentence 0 the P2 of subject {n - 1} is [MASK], they say."]


def test_findings_have_intervals_controls_and_the_papers_values(run, page):
    table = pd.read_csv(run / "tables" / "figures4_5.csv")
    row = table.query("factor == 0 and neuron_set == 'found' and scope == 'own'").iloc[0]
    card = re.search(r'<article class="card">\s*<h2>Suppressed</h2>.*?</article>', page, re.DOTALL)[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", card)).replace("\N{MINUS SIGN}", "-")
    assert f"{row['value']:+.1%} 95% interval {row['low']:+.1%} to {row['high']:+.1%}" in text
    assert "random neurons +1.0%" in text and "Dai et al. (2022) -29.0%" in text
    excluded = not row["low"] <= 0.01 <= row["high"]
    assert ("the interval excludes the control" in text) == excluded


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/someone/models/tiny-bert", "tiny-bert"),
        ("C:\\models\\tiny-bert\\", "tiny-bert"),
        ("owner/tiny-bert", "tiny-bert"),
        (".", "a model without a name"),
    ],
)
def test_title_is_the_name_of_the_model_and_no_path(copy, tmp_path, model, name):
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config.replace('model = "bert-base-cased"', f"model = {json.dumps(model)}"))
    page = write_report(copy).read_text()
    assert re.search(r"<title>(.*?)</title>", page)[1] == f"Knowledge neurons in {name} - kn_lens"
    assert re.search(r"<h1[^>]*>(.*?)</h1>", page)[1] == name
    assert str(tmp_path) not in page


def test_tables_have_words_for_columns_and_labels_in_place_of_names_for_code(page):
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    titles = set(re.findall(r"<th [^>]*>(.*?)</th>", "".join(tables)))
    assert {"neurons", "measured on", "sample size (n)", "95% interval", "Dai et al. (2022)"} <= titles
    cells = set(re.findall(r"<td>(.*?)</td>", "".join(tables)))
    assert {"the fact itself", "knowledge neurons", "left rule, 20 steps", "integrated gradients"} <= cells
    assert not [text for text in titles | cells if "_" in text]


def test_figures_have_text_alternatives_that_say_what_they_show(run, page):
    labels = {
        name: html.unescape(text)
        for name, text in re.findall(r'data-figure="(\w+)" role="img"\s+aria-label="([^"]*)', page)
    }
    assert len(labels) == page.count("<figure ") > 5
    records = RunRecords.read(run)
    drawn = draw_figures(records, read_tables(records))
    for name, label in labels.items():
        assert description_of(drawn[name]) in label and re.search(r"\d", label), name
    row = pd.read_csv(run / "tables" / "figures4_5.csv").query("neuron_set == 'found' and scope == 'own'").iloc[0]
    assert f"{row['value']:+.0%}".replace("-", "\N{MINUS SIGN}") in labels["effects"]


def test_report_is_deterministic(run, page, tmp_path):
    assert write_report(run, tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize("lacking", [LAST, ("effects", "doses"), STAGES[1:]])
def test_report_of_an_incomplete_run_names_missing_stages_and_the_command(page, tmp_path, lacking):
    run = write_run(tmp_path / "it's a run", stages=[stage for stage in STAGES if stage not in lacking])
    incomplete = write_report(run).read_text()
    (command,) = re.findall(r"<pre><code>(.*?)</code></pre>", incomplete)
    words = shlex.split(command.replace("&#39;", "'").replace("&#34;", '"'))
    assert words[:2] == ["kn-lens", "reproduce"] and words[words.index("--out") + 1] == str(run)
    stages = [value for name, value in pairwise(words) if name == "--stage"]
    assert sorted(stages) == sorted(lacking)
    assert all(f"<code>{stage}</code>" in incomplete for stage in lacking)
    assert "Not measured yet" in incomplete and "Not measured yet" not in page


def test_stopped_stage_is_marked_incomplete(copy):
    (copy / "records" / "predictions" / "P2.parquet").unlink()
    (copy / "records" / "predictions" / "_P2.json").unlink()
    page = write_report(copy).read_text()
    assert re.search(r"<code>predictions</code>, incomplete", page)
    without = [one["predictions"]["text"] for one in packed(page, "facts-0")]
    assert [len(texts) for texts in without] == [5] * 4 + [0] * 4 + [5] * 4


def test_command_repeats_the_settings(run):
    from kn_lens.cli.reproduce import _settings

    records = RunRecords.read(run)
    changed = {**records.config, "attr_threshold": 0.3, "relations": ["P1", "P 2"], "doses": [0.0, 3.0], "seed": 5}
    changed |= {"format": "lama", "split": "trained"}
    words = shlex.split(RunRecords(run, changed, records.provenance).command("effects"))
    options = list(zip(words[2::2], words[3::2], strict=True))
    given = dict(options)
    sets = [value for name, value in options if name == "--set"]
    settings = _settings(
        given.get("--preset", "kn_lens"), sets, seed=int(given["--seed"]), limit=int(given["--limit"]),
        relations=tuple(value for name, value in options if name == "--relation"),
    )  # fmt: skip
    assert {name: value for name, value in settings.as_dict().items() if value is not None} == {
        name: value for name, value in changed.items() if name not in ("model", "facts", "format", "split")
    }
    assert (given["--format"], given["--split"]) == ("lama", "trained")
    assert "--split" not in RunRecords(run, {**changed, "split": "all"}, records.provenance).command()
    read = {"texts": "a.txt", "texts_digest": "1", "syntax": "b.jsonl", "syntax_digest": "2"}
    command = RunRecords(run, {**changed, **read}, records.provenance).command()
    assert "texts=a.txt" in command and "syntax=b.jsonl" in command and "digest" not in command


def test_damaged_records_are_named_and_stop_the_report(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "records" / "effects" / "P2.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"P2.parquet is damaged; it is made again by: kn-lens reproduce .* --stage effects"
    ):
        write_report(run)
    assert not (run / "report.html").exists()
    (run / "config.toml").write_text("seed = \n")
    with pytest.raises(DataError, match=r"config.toml is damaged"):
        write_report(run)


def test_records_of_two_versions_of_a_stage_are_refused_and_kept(tmp_path):
    run = write_run(tmp_path / "run")
    note = run / "records" / "effects" / "_P2.json"
    noted = json.loads(note.read_text())
    note.write_text(json.dumps({**noted, "version": 0}))
    there = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        DataError, match=r"more than one version of the stage effects \(.*P2: 0.*\).* by: kn-lens .*--force"
    ):
        write_report(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == there
    del noted["version"]  # as before versions were noted
    note.write_text(json.dumps(noted))
    with pytest.raises(DataError, match="P2: unknown"):
        write_report(run)


def test_directories_without_a_run_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"is not there. 'kn-lens reproduce --out"):
        write_report(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match=r"is no run directory"):
        write_report(tmp_path)
    run = write_run(tmp_path / "run", stages=())
    with pytest.raises(DataError, match="has no results yet"):
        write_report(run)
    with pytest.raises(ArgumentError, match="there is no directory"):
        write_report(write_run(tmp_path / "whole"), tmp_path / "no" / "report.html")


def test_summary_of_neuron_files_has_a_report_without_facts(run, tmp_path):
    from kn_lens.runs.directory import open_run

    tables = {path.name: path.read_text() for path in (run / "tables").glob("*.csv")}
    with open_run(tmp_path / "run", {"neurons": ["a.json"], "seed": 0}, {"made_from": {}}) as summary:
        for name in ("table2.csv", "figure3.csv"):
            summary.write_text(f"tables/{name}", tables[name])
    page = write_report(tmp_path / "run").read_text()
    assert "Neurons found elsewhere" in page and 'id="facts-table"' not in page and "layer_distribution" in page


def test_data_is_never_markup_and_only_own_scripts_are_allowed(tmp_path):
    name = "</script><script>alert(1)</script>"
    page = write_report(write_run(tmp_path / "run", n_facts=2, name=lambda text: f"{name}{text}")).read_text()
    assert "alert(1)</script>" not in page and "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src &#39;none&#39;") and "unsafe-eval" not in policy and "http" not in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert policy.count("sha256-") == len(re.findall(r"<script>", page)) == 6


def test_tables_of_facts_and_neurons_have_all_digits(run, tmp_path):
    facts, neurons = write_tables(run, tmp_path / "tables")
    effects = records(run, "effects").query("scope == 'own' and neuron_set == 'found' and factor == 0").set_index("key")
    # As text: not every version of pandas reads a number as it was written.
    table = pd.read_csv(facts, converters={"off": float}).set_index("key")
    assert (table["off"] == effects["after"].reindex(table.index)).all()
    assert table["neurons"].fillna("").str.split().str.len().sum() == table["n_neurons"].sum()
    assert pd.read_csv(neurons)["tokens"].map(json.loads).str.len().eq(10).all()


def test_relations_are_shown_by_their_labels_and_named_by_identifiers_in_data(tmp_path):
    run = write_run(tmp_path / "run", labels={"P1": "capital of"})
    page = write_report(run).read_text()
    facts = packed(page, "core")["facts"]
    assert set(facts["relation"]) == {"capital of (P1)", "P2", "P3"} and "relation_name" not in facts
    figures = packed(page, "core")["figures"]
    assert "capital of (P1)" in json.dumps(figures["effects_by_relation"])
    assert "capital of (P1)" in figures["neuron_relation_map"]["data"][0]["x"]
    assert "<td>capital of (P1)</td>" in re.sub(r"<td[^>]*>\s*", "<td>", page)
    table = pd.read_csv(write_tables(run, tmp_path / "tables")[0])
    assert set(zip(table["relation"], table["relation_name"], strict=True)) == {
        ("P1", "capital of (P1)"),
        ("P2", "P2"),
        ("P3", "P3"),
    }


def test_figures_of_a_run_are_named_after_their_panels(run, tmp_path):
    written = write_figures(run, tmp_path)
    assert {path.stem for path in written} >= {"effects", "layer_distribution", "dose_response", "neuron_relation_map"}
    assert all(path.parent == tmp_path and path.suffix == ".html" for path in written)


def test_report_imports_neither_torch_nor_a_model(run, tmp_path):
    code = (
        "import sys; from kn_lens.reports.report import write_report; write_report(sys.argv[1], sys.argv[2]); "
        "print(sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), str(tmp_path / "report.html")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_report_of_many_facts_stays_small(tmp_path):
    sizes = {}
    for n_facts in (50, 300):
        run = write_run(tmp_path / str(n_facts), n_relations=2, n_facts=n_facts, n_prompts=10)
        sizes[2 * n_facts] = len(write_report(run).read_bytes())
    each = (sizes[600] - sizes[100]) / 500
    assert sizes[100] + each * 20_000 < 25e6, f"{each:.0f} bytes a fact of 10 prompts"


def test_synthetic_records_have_the_schemas_of_the_stages(run):
    from kn_lens.reports.html.page import CONTENT_OF_STAGES
    from kn_lens.runs.stages.answers import ANSWERS_SCHEMA
    from kn_lens.runs.stages.fact_details import PREDICTIONS_SCHEMA, SCORES_SCHEMA
    from kn_lens.runs.stages.facts import FACTS_SCHEMA
    from kn_lens.runs.stages.interventions import EFFECTS_SCHEMA
    from kn_lens.runs.stages.neurons import NEURONS_SCHEMA
    from kn_lens.runs.stages.order import STAGES as ALL_STAGES
    from kn_lens.runs.stages.readouts import READOUTS_SCHEMA
    from kn_lens.runs.stages.texts import TEXTS_SCHEMA

    schemas = {
        "facts": FACTS_SCHEMA,
        "neurons": NEURONS_SCHEMA,
        "effects": EFFECTS_SCHEMA,
        "answers": ANSWERS_SCHEMA,
        "predictions": PREDICTIONS_SCHEMA,
        "neuron_scores": SCORES_SCHEMA,
        "readouts": READOUTS_SCHEMA,
        "texts": TEXTS_SCHEMA,
    }
    for stage, schema in schemas.items():
        table = records(run, stage)
        assert set(table) <= set(schema.names), stage
        pa.Table.from_pandas(table, pa.schema([schema.field(name) for name in table]), preserve_index=False)
    assert set(CONTENT_OF_STAGES) <= {stage.name for stage in ALL_STAGES}


def table6(success):
    """A table of updates with this success of the found neurons in the facts' own wordings."""
    rows = []
    for kind, value in (("found", success), ("random", 0.0)):
        rows.append({"neuron_set": kind, "question": "own wording", "measure": "success", "value": value})
        rows.append({"neuron_set": kind, "question": "own wording", "measure": "changed", "value": 1.0})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("success", [0.0, 0.25])
def test_updates_without_success_come_with_what_to_try(success):
    (entry,) = _table_entries({"table6": table6(success)})
    assert entry["note"] == ("" if success else NO_SUCCESS)
    assert not has_no_success(table6(0.0).query("measure != 'success'")) and not has_no_success(None)
