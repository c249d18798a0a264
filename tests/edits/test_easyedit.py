"""Requests of EasyEdit: the fields that its code reads, and facts that come back from them."""

import json

import pytest

import kn_lens as kn

CAPITAL = ("[X] has the capital [Y].", "The capital of [X] is [Y].", "[Y] is the capital of [X].")


@pytest.fixture(scope="module")
def facts():
    return kn.FactSet(
        [
            kn.Fact("Ireland", "P36", "Dublin", CAPITAL, relation_label="capital"),
            kn.Fact("Kenya", "P36", "Nairobi", CAPITAL, uid="7"),
            kn.Fact("Kenya", "P30", "Africa", ("[X] is in [Y]",)),
        ]
    )


def as_easyedit_reads(request):
    """Return what EasyEdit's ``compute_edit_quality`` and the editors of ROME, MEMIT and KN take from a request.

    Restated from their code: the editors put a blank before the target, ROME puts ``{}`` in the place of the subject,
    and prompts of a group pair up with the answers in order.
    """
    assert request["subject"] in request["prompt"]
    pattern = request["prompt"].replace(request["subject"], "{}")
    texts = [pattern.format(request["subject"]) + " " + request["target_new"]]
    if "rephrase_prompt" in request:
        assert isinstance(request["rephrase_prompt"], str)  # a list would pair with the letters of the target
        texts.append(request["rephrase_prompt"] + " " + request["target_new"])
    for group in request["locality"].values():
        assert len(group["prompt"]) == len(group["ground_truth"])
        texts += [f"{prompt} {answer}" for prompt, answer in zip(group["prompt"], group["ground_truth"], strict=True)]
    assert any(request["portability"]) is False
    return request["ground_truth"], texts


def test_requests_have_the_prompts_that_easyedit_completes(facts):
    (request,) = kn.easyedit_requests({facts[0]: "Tokyo"}, facts)
    answer, texts = as_easyedit_reads(request)
    assert answer == "Dublin"
    assert texts == [
        "Ireland has the capital Tokyo",
        "The capital of Ireland is Tokyo",
        "Kenya has the capital Nairobi",
        "Kenya is in Africa",
    ]
    assert list(request["locality"]) == ["same relation", "other relations"]


def test_facts_and_updates_come_back_from_a_file(facts, tmp_path):
    """Also the other facts, as facts of their subjects; a request of each fact writes the same file again."""
    path = tmp_path / "requests.json"
    new_objects = {facts[0]: "Tokyo", facts[1]: "Lima", facts[2]: "Asia"}
    requests = kn.easyedit_requests(new_objects, facts)
    path.write_text(json.dumps(requests), encoding="utf-8")
    read, others = kn.read_easyedit(path)
    assert read == new_objects and list(read) == list(facts)
    assert [fact.templates for fact in read] == [CAPITAL[:2], CAPITAL[:2], ("[X] is in [Y].",)]
    assert [fact.relation_label for fact in read] == ["capital", "", ""]
    assert others[facts[0]] == {"same relation": (facts[1],), "other relations": (facts[2],)}
    assert kn.easyedit_requests(read, others) == requests


def test_requests_of_easyedit_s_own_readme_are_read():
    """One request as ``_prepare_requests`` makes it: no relation, and locality prompts that mark no subject."""
    request = {
        "prompt": "Ray Charles, the",
        "target_new": "violin",
        "ground_truth": "piano",
        "portability": {},
        "locality": {"neighborhood": {"prompt": "Joseph Fischhof, the", "ground_truth": "piano"}},
        "subject": "Ray Charles",
        "rephrase_prompt": "He likes Ray Charles. {} plays the",
    }
    ((fact, new_object),) = kn.read_easyedit([request]).new_objects.items()
    assert (fact.subject, fact.object, new_object) == ("Ray Charles", "piano", "violin")
    assert fact.templates == ("[X], the [Y].", "He likes Ray Charles. [X] plays the [Y].")
    assert fact.relation == fact.templates[0]
    (other,) = kn.read_easyedit([request]).others[fact]["neighborhood"]
    assert (other.subject, other.object, other.templates) == ("", "piano", ("Joseph Fischhof, the [Y].",))


def test_what_was_read_can_be_asked_and_updated():
    """Facts of requests make prompts and edits like any others."""
    model = kn.load_model("world-gpt2")
    world = kn.FactSet.world().find("Ireland", "P36")
    ((fact, new_object),) = kn.read_easyedit(kn.easyedit_requests({world: "Tokyo"})).new_objects.items()
    assert fact == world and len(kn.make_prompts(model, fact)) == 2
    edit = kn.update_fact(model, fact, new_object, kn.NeuronSet(["L3N105"]))
    assert edit.why[0]["new_object"] == "Tokyo"


REQUEST = {"prompt": "Ireland has the capital", "subject": "Ireland", "ground_truth": "Dublin", "target_new": "Tokyo"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ground_truth": None}, "request 0: 'ground_truth' must be text; got None"),
        ({"subject": "Kenya"}, "does not name the subject 'Kenya'"),
        ({"subject": ""}, "'subject' is empty"),
        ({"rephrase_prompt": "The country's capital is"}, "read with rephrase=False"),
        ({"locality": {"near": {"prompt": ["a", "b"], "ground_truth": ["c"]}}}, "2 of 'prompt', 1 of 'ground_truth'"),
        ({"locality": {"near": "a"}}, "'near': got str; expected a JSON object"),
        ({"prompt": "[Y] Ireland has"}, "holds \\[Y\\]"),
    ],
)
def test_what_is_wrong_in_a_request_is_named_with_its_place(change, message):
    with pytest.raises(kn.DataError, match=message):
        kn.read_easyedit([REQUEST | change])


def test_other_arguments_are_refused_with_the_call(facts, tmp_path):
    with pytest.raises(kn.DataError, match="in an earlier request"):
        kn.read_easyedit([REQUEST, REQUEST])
    with pytest.raises(kn.DataError, match="a list of at least one request"):
        kn.read_easyedit([])
    with pytest.raises(kn.DataError, match="no such file"):
        kn.read_easyedit(tmp_path / "none.json")
    with pytest.raises(kn.ArgumentError, match="a list of requests"):
        kn.read_easyedit(REQUEST)
    with pytest.raises(kn.ArgumentError, match=r"\{fact: 'Tokyo'\}"):
        kn.easyedit_requests(facts)
    with pytest.raises(kn.ArgumentError, match="new object of P36/Ireland/Dublin is None"):
        kn.easyedit_requests({facts[0]: None})
    with pytest.raises(kn.ArgumentError, match="no template that ends with"):
        kn.easyedit_requests({kn.Fact("Ireland", "P36", "Dublin", CAPITAL[2:]): "Tokyo"})
    with pytest.raises(kn.ArgumentError, match="has no subject"):
        kn.easyedit_requests({kn.Fact("", "P36", "Dublin", ("It is [Y].",)): "Tokyo"})
