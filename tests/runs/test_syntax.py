"""Syntactic phenomena: the reading of minimal pairs, the queried pairs, and measurements equal to the library's."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import kn_lens as kn
from kn_lens.errors import DataError
from kn_lens.facts.readers import WORLD
from kn_lens.runs.context import neuron_sets, open_context
from kn_lens.runs.directory import ALL, Shard
from kn_lens.runs.execute import run_stages
from kn_lens.runs.minimal_pairs import Pair, form_of, read_pairs, wrong_form
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.interventions import EFFECTS
from kn_lens.runs.stages.neurons import NEURONS
from kn_lens.runs.stages.syntax import SYNTAX, SYNTAX_NEURONS, compared_facts
from kn_lens.runs.stages.syntax_pairs import REASONS, SYNTAX_PAIRS, queried_forms
from tests.intervals import hold_their_values
from tests.tiny import COUNTRIES, tiny_model
from tests.tiny_runs import tiny_facts

NAMES = list(COUNTRIES)


def row(phenomenon, good, bad, **more):
    return {"sentence_good": good, "sentence_bad": bad, "UID": phenomenon, "field": "syntax", **more}


# In words of the tiny vocabulary; what tells number stands before the word, what tells case behind it.
ROWS = [
    *(row("number", f"People of {one} speak.", f"People of {one} lies.", one_prefix_method=True) for one in NAMES),
    *(row("number", f"A seat of {one} lies.", f"A seat of {one} speak.", one_prefix_method=True) for one in NAMES[:6]),
    row("number", "The capital speak on.", "On the capital speak.", one_prefix_method=True),
    *(row("case", f"In fact, {one} of Kenya.", f"In fact, {one} in Kenya.") for one in NAMES[:4]),
    row("case", "The people with a river.", "The people and a river."),
    row("last", "The people on a capital", "The people on a river"),
]
SETTINGS = {"n_resamples": 20, "min_prompts": 2, "max_moves": 0, "attr_threshold": 0.4, "syntax_facts": 3}


def written(folder, rows=ROWS, name="pairs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad", "parts"),
    [
        ("Some cats don't sleep.", "Some cats doesn't sleep.", ("Some cats ", "don't", "doesn't", " sleep.")),
        ("These cats sleep.", "This cats sleep.", ("", "These", "This", " cats sleep.")),
        ("She likes the book", "She likes the books", ("She likes the ", "book", "books", "")),
        ("It is so, and well.", "It is so. and well.", None),  # no word differs
        ("Cats eat mice.", "Mice eat cats.", None),
        ("Cats eat.", "Cats eat mice.", None),
        ("Cats eat.", "Cats eat.", None),
    ],
)
def test_the_differing_word_is_found(good, bad, parts):
    pair = Pair("p", good, bad, False)
    assert pair.parts == parts
    if parts:
        before, right, wrong, behind = parts
        assert (before + right + behind, before + wrong + behind) == (good, bad)


def test_words_that_a_causal_model_can_decide_between():
    assert Pair("p", "A cat sleeps well.", "A cat sleep well.", True).told_before()
    assert not Pair("p", "A cat sleeps well.", "A cat sleep well.", False).told_before()
    assert Pair("p", "I see the cat.", "I see the cats.", False).told_before()  # no text follows it
    assert not Pair("p", "This cat.", "These cat.", True).told_before()  # no text precedes it
    assert not Pair("p", "Cats eat.", "Eat cats.", True).told_before()


def test_a_wrong_form_queries_the_same_sentences_for_the_other_word():
    form = form_of("number", "is", "are", ["It [Y] so."])
    assert wrong_form(form).object == "are" and wrong_form(form).templates == form.templates
    assert wrong_form(wrong_form(form)) == form


def test_files_and_folders_are_read_alike(tmp_path):
    path = written(tmp_path, ROWS[:20])
    written(tmp_path, ROWS[20:], "rest.jsonl")
    assert read_pairs(tmp_path) == [*read_pairs(path), *read_pairs(tmp_path / "rest.jsonl")]
    assert len(read_pairs(tmp_path)) == len(ROWS)
    assert read_pairs(path)[0] == Pair("number", ROWS[0]["sentence_good"], ROWS[0]["sentence_bad"], True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"sentence_good": "A b.", "UID": "p"}, r"pairs.jsonl:2: no 'sentence_bad'"),
        (row("p", "A b.", 3), r":2: 'sentence_bad' must be text"),
        (row("", "A b.", "A c."), r":2: expected a UID and two sentences"),
        (row("p", "A [Y] b.", "A [Y] c."), r":2: 'A \[Y\] b.' has a slot"),
        (row("p", "A b.", "A c.", one_prefix_method="yes"), r"must be true or false; got 'yes'"),
        ([1], r":2: expected a JSON object"),
    ],
)
def test_malformed_lines_are_refused_before_anything_runs(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        Settings.of(syntax=str(written(tmp_path, [ROWS[0], line])))


def test_missing_and_empty_paths_are_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(DataError, match=r"no such file. Did you mean 'pairs.jsonl'"):
        Settings.of(syntax=str(tmp_path / "pair.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pairs there"):
        Settings.of(syntax=str(tmp_path / "empty"))


def test_settings_identify_pairs_by_their_content(tmp_path):
    first = Settings.of(syntax=str(written(tmp_path))).syntax_digest
    assert Settings.of(syntax=str(written(tmp_path, [{**one, "pairID": "7"} for one in ROWS]))).syntax_digest == first
    assert Settings.of(syntax=str(written(tmp_path, ROWS[1:]))).syntax_digest != first


# --- the embedded pairs ---------------------------------------------------------------------------


def test_embedded_pairs_use_the_words_of_the_embedded_models():
    patterns = (WORLD / "templates.jsonl").read_text("utf-8").splitlines()
    known = {word for line in patterns for word in re.findall(r"\w+", json.loads(line)["pattern"])}
    lines = [json.loads(line) for line in (WORLD / "minimal_pairs.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        words = re.findall(r"\w+", re.sub(r"\[[XYW]\]", "", line["pattern"]))
        assert {*words, line["good"], line["bad"]} <= known, line
    pairs = read_pairs(None)
    assert len(pairs) == 4 * len(lines) == len({(pair.good, pair.bad) for pair in pairs})
    assert all(pair.parts is not None for pair in pairs)
    forms = {(line["UID"], line["good"], line["bad"]) for line in lines}
    assert all(sum((line["UID"], line["good"], line["bad"]) == form for line in lines) == 5 for form in forms)


@pytest.mark.parametrize(
    ("name", "phenomena", "min_accuracy"),
    [
        ("world-gpt2", ("subject_verb_agreement", "noun_number", "relative_pronoun", "preposition"), 0.85),
        ("world-bert", ("relative_pronoun", "preposition"), 0.9),
    ],
)
def test_embedded_models_prefer_the_right_word(name, phenomena, min_accuracy):
    model = kn.load_model(name)
    masked = name == "world-bert"
    for phenomenon in phenomena:
        pairs = [pair for pair in read_pairs(None) if pair.phenomenon == phenomenon]
        assert all(pair.told_before() or masked or not pair.parts[0].strip() for pair in pairs)
        probabilities = []
        for place in (1, 2):
            facts = [
                kn.Fact("", phenomenon, parts[place], (f"{parts[0]}[Y]{parts[3] if masked else ''}",), uid=str(number))
                for number, parts in enumerate(pair.parts for pair in pairs)
                if masked or parts[0].strip()
            ]
            effect = kn.measure(model, kn.make_prompts(model, facts), kn.Suppress(kn.NeuronSet([])))
            probabilities.append(effect["before"].to_numpy())
        right, wrong = probabilities
        assert (right > wrong).mean() >= min_accuracy, phenomenon


# --- queried pairs --------------------------------------------------------------------------------


def query_pairs(tmp_path, architecture, rows, **settings):
    """Return the coverage of pairs, and the queried forms."""
    chosen = Settings.of(**{**SETTINGS, **settings}, syntax=str(written(tmp_path, rows)))
    with open_context(tiny_model(architecture), tiny_facts(2), tmp_path / "run", chosen) as context:
        table = run_stages(context, [SYNTAX_PAIRS], lambda state: None)["syntax_coverage"]
        forms = {name: queried_forms(context, name) for name in table["phenomenon"]}
    counts = table.set_index("phenomenon")
    assert (counts["n_pairs"] == counts["n_queried_pairs"] + counts[list(REASONS)].sum(axis=1)).all()
    for name, mine in forms.items():
        assert len(mine) == counts.loc[name, "n_queried_forms"]
        assert sum(len(form.templates) for form in mine) == counts.loc[name, "n_queried_pairs"]
    return counts, forms


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_pairs_are_queried_or_have_a_reason(architecture, tmp_path):
    masked = architecture == "BertForMaskedLM"
    counts, forms = query_pairs(tmp_path, architecture, ROWS)
    assert counts.loc["number", ["n_forms", "n_queried_forms", "n_queried_pairs", "not_one_word"]].tolist() == [
        2,
        2,
        14,
        1,
    ]
    people = forms["number"][0]
    assert (people.object, people.uid) == ("speak", "lies")
    assert set(people.templates) == {f"People of {one} [Y]{'.' if masked else ''}" for one in NAMES}
    assert counts.loc["case", ["n_queried_pairs", "told_behind"]].tolist() == ([4, 0] if masked else [0, 5])
    assert counts.loc["case", "too_few"] == (1 if masked else 0)
    assert counts.loc["last", "too_few"] == 1  # decided by the text before it, as no text follows


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_impossible_and_repeated_prompts_are_left_out(architecture, tmp_path):
    alike = [
        row("number", f"The people speak {one}", f"The people lies {one}", one_prefix_method=True) for one in NAMES
    ]
    long = "capital " * 70
    rows = [
        *ROWS[:3],
        ROWS[0],
        row("number", f"{long}speak.", f"{long}lies.", one_prefix_method=True),
        row("number", "People in Peru speak.", "People in Peru \u4eba.", one_prefix_method=True),
        row("number", "People in Peru speak.", "People in Peru Dublin's-river.", one_prefix_method=True),
        *alike,
    ]
    counts, forms = query_pairs(tmp_path, architecture, rows)
    masked = architecture == "BertForMaskedLM"
    assert counts.loc["number", ["same_prompt", "too_long", "not_writable"]].tolist() == [1 if masked else 8, 1, 2]
    (form,) = forms["number"]
    assert len(form.templates) == (3 + len(alike) if masked else 3 + 1)


def test_the_largest_forms_are_drawn_from(tmp_path):
    counts, forms = query_pairs(tmp_path, "BertForMaskedLM", ROWS, syntax_forms=1, syntax_sentences=5)
    (form,) = forms["number"]
    assert form.object == "speak" and len(form.templates) == 5  # of eight; the other form has six
    assert counts.loc["number", "not_drawn"] == 3 + 6


# --- what is measured -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["BertForMaskedLM", "GPT2LMHeadModel"])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("syntax")
    model = tiny_model(request.param, seed=1)
    with open_context(
        model, tiny_facts(), folder / "run", Settings.of(**SETTINGS, syntax=str(written(folder)))
    ) as context:
        yield context, model, run_stages(context, [SYNTAX], lambda state: None)


def sets_of(context, kind, phenomenon="number"):
    records = context.records("syntax_neurons", Shard(ALL, phenomenon))
    of_key = neuron_sets(records, kind)
    return {form: of_key[form.key] for form in queried_forms(context, phenomenon)}


def test_neurons_equal_those_of_the_library_for_equivalent_facts(finished):
    context, model, _ = finished
    forms = queried_forms(context, "number")
    attr = kn.attribute(model, kn.make_prompts(model, forms))
    expected = kn.refine_by_relation(attr, attr_threshold=0.4, max_moves=0, min_prompts=2).neurons
    assert sets_of(context, "found") == expected and any(map(len, expected.values()))
    for form, neurons in sets_of(context, "random").items():
        assert neurons.layer_counts(3) == expected[form].layer_counts(3) and neurons.isdisjoint(expected[form])


@pytest.mark.parametrize(("neurons_of", "read_on"), [("syntax", "syntax"), ("syntax", "facts"), ("facts", "syntax")])
def test_records_equal_measurements_of_the_library(finished, neurons_of, read_on):
    context, model, _ = finished
    records = context.records("syntax", Shard(ALL, "number")).query("neurons_of == @neurons_of and read_on == @read_on")
    facts = compared_facts(context)
    assert len(facts) == 3
    assert len(records) == 2 * 2 * 2 * (1 if neurons_of == read_on else 3)  # forms, factors, kinds
    for form, own in sets_of(context, "found").items():
        for fact in facts:
            of_fact = context.neurons("found", fact.relation)[fact]
            neurons = own if neurons_of == "syntax" else of_fact
            met = "" if neurons_of == read_on else fact.key
            mine = records[(records["form"] == form.key) & (records["fact"] == met)]
            mine = mine[mine["neuron_set"] == "found"].set_index("factor")
            for factor in (0.0, 2.0):
                read, change = mine.loc[factor], kn.Amplify(neurons, factor=factor)
                ends = [form, wrong_form(form)] if read_on == "syntax" else [fact]
                right, *wrong = (kn.measure(model, kn.make_prompts(model, one), change) for one in ends)
                assert read["n_neurons"] == len(neurons) and read["n_prompts"] == len(right)
                for when in ("before", "after"):
                    assert read[when] == pytest.approx(right[when].mean(), rel=1e-9)
                    for other in wrong:
                        assert read[f"wrong_{when}"] == pytest.approx(other[when].mean(), rel=1e-9)
                        assert read[f"accuracy_{when}"] == (right[when] > other[when]).mean()


def change(rows):
    """Return the relative change of the mean over all prompts."""
    before, after = (np.average(rows[when], weights=rows["n_prompts"]) for when in ("before", "after"))
    return after / before - 1


def test_tables_compare_grammar_with_facts(finished):
    context, _, tables = finished
    records = context.all_records(SYNTAX)
    own = records.query("neurons_of == read_on and neuron_set == 'found' and factor == 0")
    on_facts = records.query("read_on == 'facts' and neuron_set == 'found' and factor == 0")
    ratios, others = [], []
    for phenomenon, group in own.groupby("phenomenon"):
        ratios.append(change(group))
        others.append(change(on_facts[on_facts["phenomenon"] == phenomenon]))
    table = tables["syntax"].set_index(["measure", "factor", "neuron_set"])
    assert table.loc[("change of P(right)", 0.0, "found"), "value"] == pytest.approx(np.mean(ratios))
    accuracy = table.loc["accuracy"]["value"].unstack()
    assert accuracy.loc[1.0, "found"] == accuracy.loc[1.0, "random"] == accuracy.loc[1.0].mean()
    by_phenomenon = tables["syntax_by_phenomenon"].query("factor == 0 and neuron_set == 'found'")
    by_phenomenon = by_phenomenon.query("measure == 'change of P(right)'").sort_values("phenomenon")
    assert by_phenomenon["value"].tolist() == pytest.approx(ratios)

    against = tables["syntax_against_facts"].set_index(["factor", "neurons_of", "neuron_set", "read_on"])["value"]
    assert against[0.0, "syntax", "found", "own"] == pytest.approx(np.mean(ratios))
    assert against[0.0, "syntax", "found", "other"] == pytest.approx(np.mean(others))
    effects = context.all_records(EFFECTS).query("scope == 'own' and neuron_set == 'found' and factor == 2")
    facts = {fact.key for fact in compared_facts(context)}
    expected = [change(group) for _, group in effects[effects["key"].isin(facts)].groupby("relation")]
    assert against[2.0, "facts", "found", "own"] == pytest.approx(np.mean(expected))
    cells = against.unstack("read_on")
    assert (cells["own"] - cells["other"]).to_numpy() == pytest.approx(cells["own - other"].to_numpy())
    for name in ("syntax", "syntax_by_phenomenon", "syntax_against_facts"):
        one = tables[name]
        assert hold_their_values(one)
        assert (one.query("neuron_set == 'random'")["control"] == one.query("neuron_set == 'random'")["value"]).all()


def test_table_2_of_grammar_counts_its_neurons(finished):
    context, _, tables = finished
    sizes = [len(neurons) for neurons in sets_of(context, "found").values()]
    table = tables["syntax_table2_by_relation"].query("statistic == 'neurons_per_fact' and relation == 'number'")
    assert table.set_index("neuron_set").loc["found", "value"] == np.mean(sizes)
    assert "paper" not in table


def test_without_a_queried_pair_only_the_coverage_is_a_table(tmp_path):
    rows = [row("order", f"{one} lies on a river.", f"A river lies on {one}.") for one in NAMES]
    settings = Settings.of(**SETTINGS, syntax=str(written(tmp_path, rows)))
    with open_context(tiny_model(), tiny_facts(2), tmp_path / "run", settings) as context:
        tables = run_stages(context, [SYNTAX], lambda state: None)
    assert [name for name in tables if name.startswith("syntax")] == ["syntax_coverage"]
    assert tables["syntax_coverage"]["not_one_word"].tolist() == [len(NAMES)]


@pytest.mark.parametrize("needed", [SYNTAX_PAIRS, SYNTAX_NEURONS, NEURONS, EFFECTS])
def test_a_shard_is_computed_again_when_its_inputs_change(finished, needed, tmp_path):
    context, model, _ = finished
    path = shutil.copytree(context.run.path, tmp_path / "run")
    with open_context(model, tiny_facts(), path, context.settings) as copy:
        mine = Shard(ALL, "number")
        assert copy.is_current(SYNTAX, mine)
        shard = next(one for one in needed.shards(copy) if one.relation != ALL or one == mine)
        record = copy.run.record_path(needed.name, shard)
        turned = pq.read_table(record)[::-1]
        inputs = copy.run.manifest(needed.name, shard)["inputs"]
        with copy.run.writing(needed.name, shard, inputs, needed.version) as scratch:
            pq.write_table(turned, scratch)
        assert not copy.is_current(SYNTAX, mine)


def test_the_cost_of_a_shard_is_counted_from_its_pairs(finished):
    context, _, _ = finished
    shard = Shard(ALL, "number")
    records = context.records("syntax", shard).query("neuron_set == 'found' and factor == 0").copy()
    rows = records["n_prompts"].mul(1 + (records["read_on"] == "syntax"))  # the right word and the wrong one
    clean = 2 * 14 + rows[records["read_on"] == "facts"].sum() / 2  # two forms are read on the same facts
    # Two clean passes, of scores and of states; for two kinds of neurons and two factors, half-way changed ones.
    expected = 2 * clean + 4 * rows.sum() / 2
    assert SYNTAX.cost(context, shard) == pytest.approx(expected, rel=0.2)  # a fact counts as the average one
