"""Stage ``editors``, which runs on request: its records are those of ``compare_edits``, and the report draws them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.edits import NamedEditors
from kn_lens.reports import figures, write_report
from kn_lens.runs.reader import RunRecords
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.editors import others_together
from tests.tiny import loaded

N_FACTS = 8
TEXTS = ("Dublin is the capital of Ireland.", "Tea is from China.", "Paris is the capital of France.")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editors")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    model, world = kn.load_model("world-gpt2"), kn.FactSet.world("held_out")
    facts = [replace(fact, templates=fact.templates[:4]) for fact in list(world.of("P36"))[:N_FACTS]]
    facts += [replace(fact, templates=fact.templates[:4]) for fact in list(world.of("P30"))[:4]]
    options = {
        "relations": ["P36"],
        "editors": ["KN", "ROME"],
        "rome_layer": 0,
        "editor_facts": 2,
        "editor_wordings": 3,
        "editor_others": 3,
        "texts": str(folder / "texts.txt"),
        "n_resamples": 30,
        "min_prompts": 1,
    }
    tables = kn.reproduce(model, kn.FactSet(facts), folder / "run", stages=["editors"], **options)
    return model, facts, folder / "run", tables


def test_records_are_those_of_the_call(made):
    model, facts, path, _ = made
    records = RunRecords.read(path).records("editors")
    assert set(records["editor"]) == {"KN", "ROME"} and records["key"].nunique() == 2
    assert set(records["neuron_set"]) == {"found", "activation", "random"}
    own = records.loc[(records["question"] == "own wording") & (records["neuron_set"] == "found")]
    moments = kn.second_moments(model, TEXTS, layers=[0])
    fact = next(fact for fact in facts if fact.key == own["key"].iloc[0])
    (new_object,) = set(own.loc[own["key"] == fact.key, "new_object"])
    assert new_object in {other.object for other in facts if other.relation == "P36"} - {fact.object}
    usable = kn.make_prompts(model, fact).template
    seen, unseen = usable[: min(3, len(usable) - 1)], usable[min(3, len(usable) - 1) :]
    edited = replace(fact, templates=tuple(seen))
    asked = {edited: kn.Question(replace(fact, templates=tuple(unseen)), new_object)}
    expected = kn.compare_edits(
        model,
        {edited: new_object},
        [kn.KN(min_prompts=1), kn.ROME(moments=moments, layer=0)],
        questions={"held-out wording": asked},
        refused="unchanged",
    )
    columns = ["editor", "neuron_set", "question", "n_neurons", "norm", "n_prompts", "nll_after", "new_nll_after"]
    found = records.loc[records["key"].eq(fact.key) & records["question"].isin(["own wording", "held-out wording"])]
    found, expected = (rows.loc[rows["neuron_set"] != "random", columns] for rows in (found, expected))
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), expected.reset_index(drop=True), check_dtype=False, rtol=1e-4
    )


def test_tables_count_kept_facts_over_all_others(made):
    _, _, path, tables = made
    records = RunRecords.read(path).records("editors")
    table = tables["editors"].set_index(["editor", "question", "measure", "neuron_set"])
    for editor in ("KN", "ROME"):
        rows = records.loc[records["editor"].eq(editor) & records["neuron_set"].eq("found")]
        own = rows.loc[rows["question"] == "own wording"]
        success = np.average(own["new_right_after"], weights=own["n_prompts"])
        assert table.loc[(editor, "own wording", "success", "found"), "value"] == pytest.approx(success)
        others = rows.loc[rows["question"].isin(["same relation", "other relations"])]
        right = (others["right_before"] * others["n_prompts"]).sum()
        kept = 1 - (others["lost"] * others["n_prompts"]).sum() / right
        row = table.loc[(editor, "other facts", "kept", "found")]
        assert row["value"] == pytest.approx(kept) and row["n"] == 2
        assert row["control"] == table.loc[(editor, "other facts", "kept", "random"), "value"]
    assert len(others_together(records)) == 2 * 2 * 3
    assert tables["editors_refused"]["n_facts"].tolist() == [2, 2]


def test_the_report_draws_each_editor_beside_its_controls(made):
    _, _, path, tables = made
    figure = figures.editors(tables["editors"])
    assert len(figure.data) == 9 and len(figure.layout.annotations) == 3
    assert "ROME" in figure.layout.meta["description"] and "at random neurons" in figure.layout.meta["description"]
    write_report(path)
    page = (path / "report.html").read_text(encoding="utf-8")
    assert 'id="figure-editors"' in page and "Edits that editors refused" in page
    with pytest.raises(kn.ArgumentError, match="no row of success"):
        figures.editors(tables["editors"].query("measure == 'top5'"))


def test_models_have_the_editors_of_their_kind():
    def no_moments(layers):
        raise AssertionError

    host = kn.host_of(loaded("BertForMaskedLM"))
    assert [editor.name for editor in NamedEditors().editors(host, no_moments)] == [
        "KN",
        "KN (EasyEdit)",
        "KN (EleutherAI)",
    ]
    with pytest.raises(kn.UnsupportedModelError, match=r"FT: .* is a masked model"):
        NamedEditors(names=["KN", "FT"]).editors(host, no_moments)
    causal = kn.host_of(loaded("GPT2LMHeadModel"))
    assert NamedEditors().names_for(causal)[-4:] == ["ROME", "MEMIT", "AlphaEdit", "FT"]
    with pytest.raises(kn.ArgumentError, match="has no layer 7"):
        NamedEditors(names=["ROME"], rome_layer=7).editors(causal, no_moments)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"editors": ["ROM"]}, "Did you mean 'ROME'"),
        ({"editors": ["KN", "KN"]}, "each once"),
        ({"memit_layers": [1, 1]}, "different layers"),
        ({"rome_layer": -1}, "a whole number from 0"),
    ],
)
def test_settings_that_name_no_editors_or_layers_are_refused(setting, message):
    with pytest.raises(kn.ArgumentError, match=message):
        Settings.of(**setting)
