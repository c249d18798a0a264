"""Readers of every format of facts; a malformed file gives one error with its location."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kn_lens.errors import ArgumentError, DataError, KNLensError
from kn_lens.facts import read_patterns
from kn_lens.facts.facts import Fact, FactSet
from kn_lens.facts.relations import WIKIDATA_LABELS
from tests.facts.cases import CAPITAL, FACTS, some_facts

fact_sets = st.lists(some_facts, min_size=1, max_size=5, unique=True).map(FactSet)
fuzz = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def content(facts):
    """Return all fields of a set, including templates and labels, which equality of facts ignores."""
    return [(fact, fact.templates, fact.relation_label) for fact in facts]


def write(path: Path, value) -> Path:
    """Write text, or rows as JSON lines, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list) and path.suffix == ".jsonl":
        value = "".join(json.dumps(row) + "\n" for row in value)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


# --- own files and tables --------------------------------------------------------------------------------------------


@fuzz
@given(fact_sets)
def test_jsonl_and_tables_read_back_equal(tmp_path, facts):
    path = tmp_path / "facts.jsonl"
    facts.to_jsonl(path)
    assert content(FactSet.from_jsonl(path)) == content(facts)
    assert content(FactSet.from_frame(facts.to_frame())) == content(facts)
    assert list(tmp_path.iterdir()) == [path], "a partial file was left behind"


@fuzz
@given(fact_sets)
def test_csv_reads_back_equal(tmp_path, facts):
    path = tmp_path / "facts.csv"
    frame = facts.to_frame()
    frame["templates"] = [json.dumps(patterns) for patterns in frame["templates"]]
    frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL)  # pandas leaves a lone carriage return bare
    assert content(FactSet.from_csv(path)) == content(facts)


def test_a_repeated_fact_is_refused_with_both_lines(tmp_path):
    row = {"subject": "Ireland", "relation": "P36", "object": "Dublin"}
    path = write(tmp_path / "facts.jsonl", [row, {**row, "uid": "b"}, row])
    with pytest.raises(DataError, match=r"occurs twice: .*facts\.jsonl:1 and .*facts\.jsonl:3"):
        FactSet.from_jsonl(path)


def test_rows_with_one_template_each_are_gathered_into_facts(tmp_path):
    path = write(
        tmp_path / "long.csv",
        "subject,relation,object,template\n"
        f"Ireland,P36,Dublin,{CAPITAL}\nFrance,P36,Paris,{CAPITAL}\nIreland,P36,Dublin,[Y] serves [X].\n",
    )
    facts = FactSet.from_csv(path)
    assert [fact.templates for fact in facts] == [(CAPITAL, "[Y] serves [X]."), (CAPITAL,)]
    path.write_text(path.read_text() + f"Ireland,P36,Dublin,{CAPITAL}\n")
    with pytest.raises(DataError, match=r"long\.csv:5: the template .* was given to this fact before"):
        FactSet.from_csv(path)


def test_relations_of_pararel_without_a_label_get_that_of_the_package(tmp_path):
    """In JSON lines and tables, where neither a column nor a cell says otherwise; a fact without a label keeps none."""
    rows = [{"subject": "Ireland", "relation": relation, "object": "Dublin"} for relation in ("P36", "P31", "seat")]
    csv = "subject,relation,object\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    for facts in (
        FactSet.from_jsonl(write(tmp_path / "facts.jsonl", rows)),
        FactSet.from_csv(write(tmp_path / "facts.csv", csv)),
        FactSet.from_frame(pd.DataFrame(rows)),
    ):
        assert [fact.relation_label for fact in facts] == ["capital", "", ""]
    own = FactSet.from_jsonl(write(tmp_path / "own.jsonl", [{**rows[0], "relation_label": "seat of government"}]))
    assert own[0].relation_label == "seat of government"
    bare = FactSet([Fact("Ireland", "P36", "Dublin")])
    bare.to_jsonl(tmp_path / "bare.jsonl")
    for read in (FactSet.from_jsonl(tmp_path / "bare.jsonl"), FactSet.from_frame(bare.to_frame())):
        assert read[0].relation_label == ""


def test_a_table_may_name_its_relations_and_a_fact_has_one_label(tmp_path):
    header = "subject,relation,relation_label,object,template\n"
    path = write(tmp_path / "long.csv", f"{header}Ireland,P36,capital,Dublin,{CAPITAL}\nPeru,P36,,Lima,{CAPITAL}\n")
    facts = FactSet.from_csv(path)
    assert [fact.relation_label for fact in facts] == ["capital", ""]
    assert facts.of("capital") == facts.of("P36") == facts  # the label of one is that of the relation
    path.write_text(path.read_text() + "Ireland,P36,seat,Dublin,[Y] serves [X].\n")
    with pytest.raises(DataError, match=r"long\.csv:4: relation_label is 'seat' and was 'capital' .* one label"):
        FactSet.from_csv(path)
    with pytest.raises(DataError, match=r"'Relation_Label' is not read; expected 'relation_label'"):
        FactSet.from_csv(
            write(tmp_path / "case.csv", "subject,relation,object,Relation_Label\nPeru,P36,Lima,capital\n")
        )


def test_templates_by_relation_replace_the_files_own(tmp_path):
    path = tmp_path / "facts.jsonl"
    FACTS.of("P36").to_jsonl(path)
    facts = FactSet.from_jsonl(path, templates={"P36": ["[X]: [Y]"], "P30": []})
    assert {fact.templates for fact in facts} == {("[X]: [Y]",)}
    with pytest.raises(DataError, match=r"facts\.jsonl:1: relation 'P36' has no templates.*Did you mean 'P63'"):
        FactSet.from_jsonl(path, templates={"P63": ["[X]: [Y]"]})
    with pytest.raises(ArgumentError, match="templates of 'P36' must be a list"):
        FactSet.from_jsonl(path, templates={"P36": "[X]: [Y]"})


def test_a_table_with_missing_cells_and_arrays_is_read():
    frame = pd.DataFrame(
        {
            "subject": ["Ireland", "France"],
            "relation": "P36",
            "object": ["Dublin", "Paris"],
            "uid": [None, 7],
            "templates": [pd.array([CAPITAL]).to_numpy(), [CAPITAL]],
        },
        dtype=object,
    )
    facts = FactSet.from_frame(frame)
    assert [fact.uid for fact in facts] == ["", "7"] and facts[0].templates == (CAPITAL,)
    frame.loc[1, "object"] = None
    with pytest.raises(DataError, match=r"row 1: no 'object'"):
        FactSet.from_frame(frame)
    with pytest.raises(DataError, match="the table: no facts there"):
        FactSet.from_frame(frame[:0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"facts\.jsonl: no facts there"),
        ("\n \n", r"facts\.jsonl: no facts there"),
        ('{"subject": "a", "relation": "r", "object": "o"}\n{"subject": "b"', r"facts\.jsonl:2: not JSON"),
        ("[1]", r"facts\.jsonl:1: expected a JSON object; got \[1\]"),
        ('{"subjct": "a", "relation": "r", "object": "o"}', r":1: no 'subject'.*Did you mean 'subjct'"),
        ('{"subject": "a", "relation": "r", "object": 353}', r":1: 'object' must be text; got 353, of type int"),
        ('{"subject": "a", "relation": "r", "object": " "}', r":1: object of a fact must be text"),
        ('{"subject": "a", "relation": "r", "object": "o", "templates": ["[X]"]}', r":1: The template '\[X\]' holds"),
        ('{"subject": "a", "relation": "r", "object": "o", "templates": "[X] [Y]"}', ":1: expected a list"),
        ('{"subject": "a", "relation": "r", "object": "o", "templates": [3]}', ":1: expected a list of texts; got 3"),
        ('{"subject": "a", "relation": "r", "object": "o", "uid": [1]}', ":1: 'uid' must be text or a whole number"),
        ('{"subject": "a", "relation": "r", "object": "o", "templates": [], "template": ""}', "keep one"),
        ("[" * 100_000, r":1: not JSON"),
        ("9" * 5_000, r":1: (not JSON|expected a JSON object)"),
    ],
)
def test_the_error_of_a_malformed_line_names_its_number(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        FactSet.from_jsonl(write(tmp_path / "facts.jsonl", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,relation,object\nIreland,P36\n", r"facts\.csv:2: expected 3 columns"),
        ("subject,relation,object\nIreland,P36,Dublin,Cork\n", r"facts\.csv:2: expected 3 columns"),
        ("subject,relation,objekt\nIreland,P36,Dublin\n", r"no 'object'.*Did you mean 'objekt'"),
        ('subject,relation,object\nIreland,P36,"Dub"lin"\n', r"facts\.csv:2: not CSV"),
        ("subject,relation,object,templates\nIreland,P36,Dublin,[X] [Y]\n", r"facts\.csv:2: not JSON"),
        ("subject,relation,object\n", "no facts there"),
    ],
)
def test_the_error_of_a_malformed_table_names_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        FactSet.from_csv(write(tmp_path / "facts.csv", text))


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path):
    FACTS.to_jsonl(tmp_path / "capitals.jsonl")
    with pytest.raises(DataError, match=r"capital\.jsonl: no such file\. Did you mean 'capitals\.jsonl'"):
        FactSet.from_jsonl(tmp_path / "capital.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        FactSet.from_jsonl(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        FactSet.from_jsonl(tmp_path / "latin.jsonl")


# --- released formats ------------------------------------------------------------------------------------------------


def test_read_world_selects_the_templates_of_a_split():
    every, trained, held_out = (FactSet.world(split) for split in ("all", "trained", "held_out"))
    assert every == trained == held_out and len(every.relations) >= 10 and len(every) >= 1200
    for whole, first, second in zip(every, trained, held_out, strict=True):
        assert set(whole.templates) == {*first.templates, *second.templates}
        assert not {*first.templates} & {*second.templates} and len(second.templates) >= 4
    assert every.find("Ireland", relation="P36").object == "Dublin"
    assert every.find("Ireland", relation="capital") == every.find("Ireland", relation="P36")
    assert all(fact.relation_label for fact in every)
    for relation, label in every.relation_labels.items():
        assert WIKIDATA_LABELS.get(relation, label) == label
    with pytest.raises(ArgumentError, match="split='test'; expected one of all, trained, held_out"):
        FactSet.world("test")  # pyright: ignore


@pytest.fixture
def pararel(tmp_path):
    patterns = [{"pattern": text} for text in (CAPITAL, "[Y] is the capital of [X].", "[X], [Y]", "[Y], [X]")]
    for relation, n_patterns in {"P36": 4, "P1376": 4, "P101": 2}.items():
        write(tmp_path / "patterns" / f"{relation}.jsonl", patterns[:n_patterns])
        rows = [{"sub_label": "Ireland", "obj_label": "Dublin", "uuid": uid} for uid in ("a", "b")]
        write(tmp_path / "facts" / f"{relation}.jsonl", rows)
    write(tmp_path / "facts" / "P31.jsonl", [{"sub_label": "Ireland", "obj_label": "island", "uuid": "c"}])
    return tmp_path


def test_pararel_is_read_in_order_of_its_relations(pararel):
    facts = FactSet.from_pararel(pararel)
    assert facts.relations == ("P36", "P1376") and len(facts) == 4
    assert [fact.uid for fact in facts] == ["a", "b", "a", "b"] and len(facts[0].templates) == 4
    assert facts.relation_labels == {"P36": "capital", "P1376": "capital of"}
    assert FactSet.from_pararel(pararel, ["P101"], min_templates=2).relations == ("P101",)
    assert FactSet.from_pararel(str(pararel), min_templates=1).relations == ("P36", "P101", "P1376")


def test_each_relation_of_pararel_has_a_label_of_its_own():
    assert set(WIKIDATA_LABELS) == set(read_patterns(Path("kn_lens")))
    assert len(set(WIKIDATA_LABELS.values())) == 34


def test_pararel_relations_that_cannot_be_read_are_refused(pararel):
    with pytest.raises(DataError, match=r"no relation 'P13766' there\. Did you mean 'P1376'"):
        FactSet.from_pararel(pararel, ["P13766"])
    with pytest.raises(DataError, match="relation P31 has 0 templates"):
        FactSet.from_pararel(pararel, ["P31"], min_templates=0)
    with pytest.raises(DataError, match="relation P101 has 2 templates, fewer than 4"):
        FactSet.from_pararel(pararel, ["P101"])
    with pytest.raises(DataError, match="min_templates=5"):
        FactSet.from_pararel(pararel, min_templates=5)
    with pytest.raises(DataError, match=r"facts: there is no patterns/ in it; expected a folder with patterns/ and"):
        FactSet.from_pararel(pararel / "facts")


BAGS = [
    [
        ["The capital of Ireland is [MASK] .", "Dublin", "P36(capital)"],
        ["[MASK] rules Ireland", "Dublin", "P36(capital)"],
    ],
    [["France, [MASK]", "Paris", "P36(capital)"]],
    [["Ireland lies in [MASK].", "Europe", "P30(continent)"]],
]


@pytest.mark.parametrize("data", [BAGS, {"P36(capital)": BAGS[:2], "P30(continent)": BAGS[2:]}])
def test_the_fact_file_of_the_released_code_is_read_flat_and_grouped(tmp_path, data):
    facts = FactSet.from_official(write(tmp_path / "data.json", data))
    assert [(fact.subject, fact.relation, fact.object, fact.uid) for fact in facts] == [
        ("", "P36", "Dublin", "0"),
        ("", "P36", "Paris", "1"),
        ("", "P30", "Europe", "2"),
    ]
    assert facts[0].templates == ("The capital of Ireland is [Y] .", "[Y] rules Ireland")
    assert facts.relation_labels == {"P36": "capital", "P30": "continent"}


@pytest.mark.parametrize(
    ("bag", "message"),
    [
        ([], r"fact 1: expected a list of \[prompt"),
        ([["[MASK]", "Paris"]], r"fact 1: expected"),
        ([["[MASK]", "Paris", "P36"], ["[MASK]!", "Rome", "P36"]], r"fact 1: .*share one answer.*'Paris', 'Rome'"),
        ([["no slot", "Paris", "P36"]], r"fact 1: The template 'no slot' holds \[Y\]"),
        ([["[MASK] [MASK]", "Paris", "P36"]], r"2 times"),
    ],
)
def test_the_error_of_a_malformed_fact_list_names_its_number(tmp_path, bag, message):
    with pytest.raises(DataError, match=message):
        FactSet.from_official(write(tmp_path / "data.json", [BAGS[0], bag]))


LAMA = {
    "uuid": "u",
    "predicate_id": "P36",
    "sub_label": "Ireland",
    "obj_label": "Dublin",
    "masked_sentences": ["In Ireland, [MASK] is the capital of Ireland."],
}


def test_lama_reads_templates_from_the_given_source(tmp_path, pararel):
    path = write(tmp_path / "lama" / "P36.jsonl", [LAMA, {**LAMA, "uuid": "v"}])
    own = FactSet.from_lama(path)
    assert own[0].templates == ("In [X], [Y] is the capital of Ireland.",) and own[1].uid == "v"
    assert own[0].relation_name == "capital (P36)"
    assert own[0].filled(own[0].templates[0]) == "In Ireland, [Y] is the capital of Ireland."
    given = FactSet.from_lama(path.parent, templates={"P36": [CAPITAL]}, relations=["P36"])
    assert given == own and given[0].templates == (CAPITAL,)
    assert len(FactSet.from_lama(path, templates=pararel / "patterns")[0].templates) == 4
    listed = write(tmp_path / "relations.jsonl", [{"relation": "P36", "template": "[X] has [Y] ."}])
    assert FactSet.from_lama(path, templates=listed)[0].templates == ("[X] has [Y] .",)
    with pytest.raises(DataError, match=r"does not name the subject 'Ireland'.*Pass templates="):
        FactSet.from_lama(write(tmp_path / "P36.jsonl", [{**LAMA, "masked_sentences": ["Eire: [MASK]"]}]))


def evidence(sentence, mention="Ireland"):
    return {"sub_surface": mention, "obj_surface": "Dublin city", "masked_sentence": sentence}


def test_the_evidences_of_t_rex_are_templates(tmp_path):
    row = {name: value for name, value in LAMA.items() if name != "masked_sentences"}
    told = [evidence("In Ireland, [MASK] is the capital."), evidence("[MASK] is Eire's seat.", "Eire")]
    path = write(tmp_path / "P36.jsonl", [{**row, "evidences": told}])
    (fact,) = FactSet.from_lama(path)
    assert fact.templates == ("In [X], [Y] is the capital.", "[Y] is [X]'s seat.")
    for bad, message in (
        (evidence("Eire: [MASK]"), r"does not name the subject 'Ireland'.*Pass templates="),
        (evidence("Ireland: [MASK] [MASK]"), r"holds \[MASK\] 2 times.*Pass templates="),
        (evidence("Ireland: Dublin"), r"holds \[MASK\] 0 times.*Pass templates="),
        ({"masked_sentence": "Ireland: [MASK]"}, "no 'sub_surface'"),
        ("Ireland: [MASK]", "expected a JSON object"),
    ):
        path = write(tmp_path / "P36.jsonl", [{**row, "evidences": [bad]}])
        with pytest.raises(DataError, match=message):
            FactSet.from_lama(path)
        # The cure that it names is one.
        assert FactSet.from_lama(path, templates={"P36": [CAPITAL]})[0].templates == (CAPITAL,)


PLAIN = {"subject": "Ireland", "relation": "P36", "object": "Dublin", "templates": [CAPITAL]}


@pytest.mark.parametrize("uid, key", [(3, "3"), (3.0, "3"), (np.int64(3), "3"), (np.float64(3), "3"), ("3.0", "3.0")])
def test_a_whole_number_gives_the_same_uid_in_every_column_type(tmp_path, uid, key):
    assert FactSet.from_frame(pd.DataFrame([{**PLAIN, "uid": uid}]))[0].uid == key
    assert FactSet.from_frame(pd.DataFrame([{**PLAIN, "uid": uid}]).astype({"uid": object}))[0].uid == key
    if not isinstance(uid, np.generic):
        assert FactSet.from_jsonl(write(tmp_path / "facts.jsonl", [{**PLAIN, "uid": uid}]))[0].uid == key


def test_uids_of_a_column_with_missing_cells_are_whole_numbers(tmp_path):
    frame = pd.DataFrame([{**PLAIN, "uid": 7}, {**PLAIN, "object": "Cork"}, {**PLAIN, "object": "Tara", "uid": 12}])
    assert frame["uid"].dtype == float
    assert [fact.uid for fact in FactSet.from_frame(frame)] == ["7", "", "12"]


@pytest.mark.parametrize("uid", [3.5, float("inf"), 2.0**53, True])
def test_numbers_that_are_not_whole_are_refused_as_uids(uid):
    with pytest.raises(DataError, match="'uid' must be text or a whole number"):
        FactSet.from_frame(pd.DataFrame([{**PLAIN, "uid": uid}]))


def test_repeated_columns_and_keys_are_refused(tmp_path):
    frame = pd.DataFrame([["Ireland", "P36", "Dublin", "Cork"]], columns=["subject", "relation", "object", "object"])
    with pytest.raises(DataError, match="2 columns are named 'object'"):
        FactSet.from_frame(frame)
    frame.columns = ["subject", "relation", "object", "note"]
    more = pd.concat([frame, frame[["note"]]], axis="columns")  # which nobody reads
    assert FactSet.from_frame(more) == FactSet.from_frame(frame)
    table = tmp_path / "facts.csv"
    table.write_text("subject,relation,object,object\nIreland,P36,Dublin,Cork\n")
    with pytest.raises(DataError, match=r"facts.csv: 2 columns are named 'object'"):
        FactSet.from_csv(table)
    lines = tmp_path / "facts.jsonl"
    lines.write_text('{"subject": "Ireland", "relation": "P36", "object": "Dublin", "object": "Cork"}\n')
    with pytest.raises(DataError, match=r"facts.jsonl:1: the key 'object' stands there twice"):
        FactSet.from_jsonl(lines)


@pytest.mark.parametrize("key", ["Templates", "templates ", "UID", " uid", "Template"])
def test_a_key_with_another_spelling_is_refused(tmp_path, key):
    row = {"subject": "Ireland", "relation": "P36", "object": "Dublin", key: "x"}
    with pytest.raises(DataError, match=f"{key!r} is not read; expected {key.strip().lower()!r}"):
        FactSet.from_jsonl(write(tmp_path / "facts.jsonl", [row]))


CASE = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English"},
        "target_true": {"str": "French"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux is named. Danielle Darrieux, a native"],
}


def test_counterfact_gives_the_true_answer_after_prompt_and_paraphrases(tmp_path):
    path = write(tmp_path / "counterfact.json", [CASE])
    (fact,) = FactSet.from_counterfact(path)
    assert fact.key == "P103/Danielle Darrieux/French#7" and fact.relation_label == "native language"
    assert fact.templates == (
        "The mother tongue of [X] is [Y].",
        "Danielle Darrieux is named. [X], a native [Y].",
    )
    assert len(FactSet.from_counterfact(path, paraphrases=False)[0].templates) == 1
    write(path, [{**CASE, "paraphrase_prompts": ["She is a native"]}])
    with pytest.raises(DataError, match=r"case 0: the paraphrase .*paraphrases=False"):
        FactSet.from_counterfact(path)
    write(path, [{**CASE, "requested_rewrite": {**CASE["requested_rewrite"], "prompt": "Hers is"}}])
    with pytest.raises(DataError, match="exactly once"):
        FactSet.from_counterfact(path)


# --- any file at all -------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
READERS = {
    "facts.jsonl": (FactSet.from_jsonl, {"subject": "a", "relation": "r", "object": "o", "templates": ["[X][Y]"]}),
    "facts.csv": (FactSet.from_csv, None),
    "data.json": (FactSet.from_official, BAGS),
    "P36.jsonl": (FactSet.from_lama, LAMA),
    "counterfact.json": (FactSet.from_counterfact, [CASE]),
}


def paths_of(value, path=()):
    """Yield the path to every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


def with_changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", READERS)
@fuzz
@given(st.binary() | json_values.map(json.dumps).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    try:
        assert len(READERS[name][0](path)) > 0
    except KNLensError as error:
        assert str(error)


@pytest.mark.parametrize("name", [name for name, (_, valid) in READERS.items() if valid])
@fuzz
@given(data=st.data())
def test_a_valid_file_with_one_value_changed_is_read_or_refused(tmp_path, name, data):
    reader, valid = READERS[name]
    place = data.draw(st.sampled_from(list(paths_of(valid))))
    path = tmp_path / name
    path.write_text(json.dumps(with_changed(valid, place, data.draw(json_values))))
    try:
        assert len(reader(path)) > 0
    except KNLensError as error:
        assert str(error)


def test_a_misspelled_source_of_templates_is_suggested(pararel):
    with pytest.raises(DataError, match=r"no such file.* Did you mean 'kn_lens'\?"):
        FactSet.from_pararel(pararel, templates="kn-lens")
