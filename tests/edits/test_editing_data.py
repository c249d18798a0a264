"""CounterFact and KnowEdit as updates with questions and other facts, and what is refused of them."""

import json

import pytest

import kn_lens as kn
from tests.tiny import loaded

REWRITE = {
    "prompt": "The mother tongue of {} is",
    "relation_id": "P103",
    "target_new": {"str": "English"},
    "target_true": {"str": "French"},
    "subject": "Danielle Darrieux",
}
CASE = {
    "case_id": 7,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["A film. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Jean Gabin is", "Louis Jouvet spoke"],
    "attribute_prompts": ["Ian Fleming spoke"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}
SECOND = {
    **CASE,
    "case_id": 8,
    "requested_rewrite": {**REWRITE, "subject": "Jules Verne"},
    "paraphrase_prompts": ["He wrote in"],
    "neighborhood_prompts": ["Louis Jouvet spoke"],
}
RECORD = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "ground_truth": [["Munich", "München"]],
    "rephrase_prompt": "Leo Arons died in",
    "portability": {
        "Subject_Aliasing": [{"prompt": "The inventor of the lamp died in", "ground_truth": [["Berlin"]]}],
        "Logical_Generalization": [{"prompt": "Is Leo Arons alive?", "ground_truth": [["no"]]}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Leo Arons was born in", "ground_truth": [["Berlin"]]},
            {"prompt": ["Leo Arons was a"], "ground_truth": ["physicist"]},
        ]
    },
}


def written(path, entries):
    path.write_text(json.dumps(entries))
    return path


def test_counterfact_has_updates_held_out_wordings_and_neighbours(tmp_path):
    path = written(tmp_path / "counterfact.json", [CASE, SECOND])
    data = kn.EditingData.from_counterfact(path)
    first, second = kn.FactSet.from_counterfact(path, paraphrases=False)
    assert data.updates == {first: "English", second: "English"}
    assert [fact.templates for fact in data.updates] == [first.templates, second.templates]
    (group,) = data.questions.values()
    assert list(data.questions) == ["held-out wording"] and all(
        question.answer == "English" for question in group.values()
    )
    assert group[first].query.templates == (
        "A film. [X], a native [Y].",
        "[X] spoke the language [Y].",
    )
    assert group[second].query.subject == "" and group[second].query.templates == ("He wrote in [Y].",)
    assert [fact.templates for fact in data.others] == [
        ("The mother tongue of Jean Gabin is [Y].",),
        ("Louis Jouvet spoke [Y].",),
    ]
    assert {(fact.relation, fact.object) for fact in data.others} == {("P103", "French")}
    assert data.others_of[second] == (data.others[1],)
    assert repr(data) == "EditingData(2 updates, 2 questions: held-out wording, 2 other facts)"


def test_knowedit_has_updates_rephrased_prompts_aliases_and_locality(tmp_path):
    data = kn.EditingData.from_knowedit(written(tmp_path / "knowedit.json", [RECORD]))
    ((fact, new_object),) = data.updates.items()
    assert (fact.subject, fact.object, new_object) == ("Leo Arons", "Munich", "Berlin")
    assert fact.templates == ("The place of death of [X] is [Y].",)
    assert data.questions["held-out wording"][fact].query.templates == ("[X] died in [Y].",)
    alias = data.questions["Subject_Aliasing"][fact]
    assert alias.query.filled(alias.query.templates[0]) == "The inventor of the lamp died in [Y]."
    assert (alias.query.object, alias.answer, set(data.questions)) == (
        "Munich",
        "Berlin",
        {"held-out wording", "Subject_Aliasing"},
    )
    assert [(other.relation, other.object, other.templates) for other in data.others] == [
        ("Relation_Specificity", "Berlin", ("Leo Arons was born in [Y].",)),
        ("Relation_Specificity", "physicist", ("Leo Arons was a [Y].",)),
    ]
    bare = {name: RECORD[name] for name in ("subject", "prompt", "target_new", "ground_truth")}
    data = kn.EditingData.from_knowedit(written(tmp_path / "knowedit.json", [bare]))
    assert repr(data) == "EditingData(1 update, 0 questions: none, 0 other facts)"


def test_some_updates_keep_their_questions_and_other_facts(tmp_path):
    data = kn.EditingData.from_counterfact(written(tmp_path / "counterfact.json", [CASE, SECOND]))
    second = list(data.updates)[1]
    some = data.select([second])
    assert list(some.updates) == [second] == list(some.questions["held-out wording"])
    assert list(some.others) == list(data.others_of[second])
    assert len(data.sample(1, seed=0).updates) == 1 and data.sample(2, seed=0).updates == data.updates
    with pytest.raises(kn.ArgumentError, match="expected 0 to 2"):
        data.sample(3, seed=0)
    with pytest.raises(kn.ArgumentError, match="no update of P36/Ireland/Dublin"):
        data.select([kn.Fact("Ireland", "P36", "Dublin")])


@pytest.mark.usefixtures("float64_throughout")
def test_editors_are_compared_on_them(tmp_path):
    """The groups of questions and of other facts are those of the data."""
    rewrite = {"prompt": "The capital of {} is", "relation_id": "P36", "subject": "Ireland"}
    rewrite |= {"target_true": {"str": "Dublin"}, "target_new": {"str": "Rome"}}
    case = {"case_id": 0, "requested_rewrite": rewrite, "paraphrase_prompts": ["See Ireland"]}
    path = written(tmp_path / "counterfact.json", [{**case, "neighborhood_prompts": ["The capital of Peru is"]}])
    data, model = kn.EditingData.from_counterfact(path), loaded("GPT2LMHeadModel")
    editor = kn.KN(neurons=dict.fromkeys(data.updates, kn.NeuronSet([(0, 1), (1, 3)])))
    others = kn.make_prompts(model, data.others)
    table = kn.compare_edits(model, data.updates, [editor], questions=data.questions, others=others, controls=False)
    assert table["question"].tolist() == ["own wording", "held-out wording", "same relation", "same answer"]


REFUSED = {
    "no list": ({}, "expected a list of at least one of cases"),
    "no rewrite": ([{"case_id": 1}], "case 0, requested_rewrite: got NoneType"),
    "no place": ([{**CASE, "requested_rewrite": {**REWRITE, "prompt": "Hers is"}}], "exactly once"),
    "the same answer": (
        [{**CASE, "requested_rewrite": {**REWRITE, "target_new": {"str": "French"}}}],
        "is the old one",
    ),
    "a case twice": ([CASE, CASE], "case 1: P103/Danielle Darrieux/French#7 was in an earlier entry"),
    "no text": ([{**CASE, "paraphrase_prompts": [3]}], "'paraphrase_prompts' holds a value of type int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_that_is_none_is_refused_with_its_place(name, tmp_path):
    entries, message = REFUSED[name]
    with pytest.raises(kn.DataError, match=message):
        kn.EditingData.from_counterfact(written(tmp_path / "counterfact.json", entries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ground_truth": None},
            "record 0, ground_truth: got a value of type NoneType; expected the text of an answer",
        ),
        ({"prompt": "He died in"}, "does not name the subject 'Leo Arons'"),
        ({"locality": {"Forgetfulness": [{"prompt": "He is"}]}}, "Forgetfulness: got a value of type NoneType"),
        ({"locality": []}, None),
        ({"portability": ["x"]}, "portability: got list"),
    ],
)
def test_a_record_that_is_none_is_refused_with_its_place(change, message, tmp_path):
    path = written(tmp_path / "knowedit.json", [{**RECORD, **change}])
    if message is None:
        assert not kn.EditingData.from_knowedit(path).others
        return
    with pytest.raises(kn.DataError, match=message):
        kn.EditingData.from_knowedit(path)


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Ali", "Ali is a citizen of Mali and", "[X] is a citizen of Mali and [Y]."),
        ("Ali", "Ali, and Ali's wife, and an Alibi of", "Ali, and [X]'s wife, and an Alibi of [Y]."),
        ("日本", "中日本の首都は", "中[X]の首都は [Y]."),  # without blanks between words
        ("Who?", "(Who?) sang in", "([X]) sang in [Y]."),
    ],
)
def test_a_subject_is_a_word_rather_than_a_part_of_one(tmp_path, subject, prompt, template):
    record = {"subject": subject, "prompt": prompt, "target_new": "b", "ground_truth": "a"}
    data = kn.EditingData.from_knowedit(written(tmp_path / "data.json", [record]))
    assert [fact.templates for fact in data.updates] == [(template,)]
