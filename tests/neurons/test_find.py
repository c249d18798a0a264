"""``kn.find`` is the three calls that it stands for, and a text with its answer is a fact in one template."""

import pytest
import torch

import kn_lens as kn
from kn_lens._core import progress as progress_module
from kn_lens.prompts import text_fact
from tests.tiny import COUNTRIES, loaded

TEMPLATES = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] has its seat in [Y]", "[X]: [Y]")
FACTS = kn.FactSet(kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:3])
FACT = FACTS[0]
KINDS = {"masked": "BertForMaskedLM", "causal": "GPT2LMHeadModel"}
TEXT = {"masked": "The capital of France is [MASK].", "causal": "The capital of France is"}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return loaded(KINDS[kind])


@pytest.mark.parametrize("given", [FACT, [FACT], FACTS, list(FACTS)], ids=["fact", "list of one", "set", "list"])
def test_find_is_prompts_attribution_and_refining(model, given):
    found = kn.find(model, given)
    attr = kn.attribute(model, kn.make_prompts(model, given))
    assert torch.equal(found.attribution.scores, attr.scores)
    assert found.prompts.text == attr.prompts.text
    assert found.neurons_by_fact == kn.refine(attr)
    assert found.neurons == {neuron for neurons in kn.refine(attr).values() for neuron in neurons}


def test_every_option_reaches_its_call(model):
    thresholds = {"attr_threshold": 0.5, "share_threshold": 0.5, "min_prompts": 1}
    found = kn.find(model, FACTS, templates=TEMPLATES[:2], method="activation", keep=0.3, **thresholds)
    attr = kn.attribute(model, kn.make_prompts(model, FACTS, templates=TEMPLATES[:2]), method="activation", keep=0.3)
    assert found.attribution.keep == 0.3 and len(found.prompts) == 6
    assert found.neurons_by_fact == kn.refine(attr, **thresholds)
    contrasted = kn.find(model, FACTS, output="logit_diff", contrast="Rome")
    assert contrasted.attribution.output == "logit_diff"
    by_relation = kn.find(model, FACTS, by_relation=True)
    expected = kn.refine_by_relation(by_relation.attribution)
    assert by_relation.neurons_by_fact == expected.neurons
    assert by_relation.share_threshold == expected.share_threshold


def test_a_text_is_a_fact_in_one_template(model, kind):
    found = kn.find(model, TEXT[kind], " Paris")
    prompts = kn.make_prompts(model, kn.Fact("France", "P36", "Paris", ("The capital of [X] is [Y].",)))
    assert torch.equal(found.prompts.tokens, prompts.tokens)
    assert torch.equal(found.prompts.target_ids, prompts.target_ids)
    attr = kn.attribute(model, prompts)
    assert torch.equal(found.attribution.scores, attr.scores)
    coarse = kn.coarse(attr)[0].nonzero().tolist()
    assert coarse and found.neurons == set(map(tuple, coarse))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The capital of France is", " Paris"),
        ("The capital of France is ", "Paris"),
        ("The capital of France is [Y]", "Paris"),
        ("The capital of France is [Y].", " Paris"),
    ],
)
def test_the_blank_before_the_answer_may_stand_in_either(text, answer):
    prompts = kn.find(loaded(KINDS["causal"]), text, answer).prompts
    expected = kn.make_prompts(loaded(KINDS["causal"]), FACTS[1], templates=TEMPLATES[0])
    assert torch.equal(prompts.tokens, expected.tokens) and torch.equal(prompts.target_ids, expected.target_ids)


def test_a_text_stays_as_it_is_where_no_blank_is_written():
    model = loaded(KINDS["causal"])
    assert text_fact(model, "Capital:\n", "Paris").templates == ("Capital:\n[Y]",)
    assert text_fact(model, "法国的首都是", "巴黎").templates == ("法国的首都是[Y]",)
    assert text_fact(model, '"', "Paris").templates == ('"[Y]',)


def test_several_texts_are_wordings_of_one_fact(model, kind):
    texts = [text.replace("[X]", "Peru") for text in TEMPLATES[:3]]
    found = kn.find(model, texts, "Lima")
    attr = kn.attribute(model, kn.make_prompts(model, kn.Fact("Peru", "P36", "Lima", TEMPLATES[:3])))
    (neurons,) = kn.refine(attr).values()
    assert found.neurons == neurons and len(found.prompts) == 3
    two = kn.find(model, texts[:2], "Lima")
    (neurons,) = kn.refine(two.attribution, min_prompts=2).values()
    assert two.neurons == neurons and two.min_prompts == 2


def test_an_answer_of_several_tokens_is_one_prompt(model, kind):
    text = TEXT[kind]
    found = kn.find(model, text, " Paris Dublin")
    assert len(found.prompts) == 1 and found.prompts.n_rows >= 2
    assert bool(found.attribution.converged.all())


def test_texts_with_the_same_answer_are_different_facts():
    model = loaded(KINDS["causal"])
    facts = [text_fact(model, text, " Paris") for text in ("The capital of France is", "The people of France in")]
    assert len({fact.key for fact in facts}) == 2
    assert len(kn.find(model, facts, min_prompts=1).neurons_by_fact) == 2


def test_the_table_of_neurons_counts_prompts_and_averages_scores(model):
    found = kn.find(model, FACTS, min_prompts=2, share_threshold=0.5)
    frame = found.to_frame()
    attr, coarse = found.attribution, kn.coarse(found.attribution)
    rows = []
    for fact, neurons in found.neurons_by_fact.items():
        prompts = [i for i in range(len(attr)) if attr.prompts.fact(i) == fact]
        for layer, index in neurons:
            n_shared = sum(bool(coarse[i, layer, index]) for i in prompts)
            score = sum(float(attr.scores[i, layer, index]) for i in prompts) / len(prompts)
            rows.append([fact.object, f"L{layer}N{index}", layer, index, n_shared, len(prompts), pytest.approx(score)])
    assert rows and frame.drop(columns=["relation", "subject"]).values.tolist() == rows
    sparse = kn.find(model, FACTS, min_prompts=2, share_threshold=0.5, keep=0.2).to_frame()
    assert sparse.drop(columns="score").equals(frame.drop(columns="score"))


def test_the_summary_has_the_error_bar_of_each_fact(model):
    found = kn.find(model, FACTS)
    attr = found.attribution
    for row in found.summary().to_dict("records"):
        fact = next(fact for fact in FACTS if fact.key == row["key"])
        own = attr[fact]
        assert row["neurons"] == found.neurons_by_fact[fact] and row["n_prompts"] == len(own)
        assert row["largest_gap"] == pytest.approx(float(own.completeness_gap.abs().max()))
        assert row["mean_output"] == pytest.approx(float(own.clean.mean()))
        assert (row["n_pairs"], row["n_unconverged"]) == (own.n_points.numel(), len(own.unconverged))
    activations = kn.find(model, FACTS, method="activation").summary()
    assert activations.largest_gap.isna().all()


def test_one_fact_has_a_name_and_several_do_not(model):
    assert kn.find(model, FACT).fact == FACT
    with pytest.raises(kn.ArgumentError, match=r"3 facts; expected one fact.*neurons_by_fact"):
        _ = kn.find(model, FACTS).fact


def test_the_text_says_what_the_neurons_are(model, kind):
    one = repr(kn.find(model, TEXT[kind], " Paris"))
    assert "1 prompt: " in one and "from 20% of the largest score: the coarse set, as there is one prompt" in one
    fact = repr(kn.find(model, FACT, share_threshold=0.5))
    assert "1 fact, " in fact and "that 50% of its prompts share; completeness gap at most" in fact
    several = repr(kn.find(model, FACTS))
    assert "3 facts, " in several and "neurons a fact that 70% of the prompts share" in several
    assert repr(kn.find(model, FACT, method="activation")).endswith("; activation)")
    assert all("\n" not in text and len(text) < 300 for text in (one, fact, several))


def test_facts_with_too_few_prompts_are_left_out_before_the_model_runs(model):
    few = kn.Fact("Peru", "P36", "Lima", TEMPLATES[:2])
    found = kn.find(model, [*FACTS, few])
    assert few not in found.neurons_by_fact and found.prompts.left_out["fact with fewer than 3 prompts"] == 2
    with pytest.raises(kn.NoPromptError, match=r"fact with fewer than 3 prompts: 2.*min_prompts=1"):
        kn.find(model, few)


def test_the_figure_fills_the_marks_of_the_found_neurons(model):
    found = kn.find(model, FACTS, share_threshold=0.5)
    figure = found.plot(FACT, top=6)
    trace = figure.data[0]
    names = list(figure.layout.yaxis.ticktext)
    assert names == found.attribution.top(6, FACT)["neuron"].tolist()
    is_found = [name in found.neurons_by_fact[FACT] for name in names]
    assert any(is_found) and [symbol == "circle" for symbol in trace.marker.symbol] == is_found
    assert figure.layout.meta["description"].endswith(
        f"Found: {', '.join(name for name, is_one in zip(names, is_found, strict=True) if is_one)}."
    )


def test_the_html_has_the_figure_or_a_short_table(model, monkeypatch):
    found = kn.find(model, FACTS, share_threshold=0.5, min_prompts=1)
    table = found._repr_html_()
    assert "Findings(3 facts" in table and len(table) < 4000 and table.count("<tr>") <= 11
    first = found.to_frame().iloc[0]
    assert f"<td>{first.neuron}</td><td>{first.n_shared} of {first.n_prompts}</td>" in table
    monkeypatch.setattr("plotly.graph_objects.Figure._repr_mimebundle_", lambda self: {"text/html": "<div>drawn</div>"})
    assert found._repr_html_().endswith("<div>drawn</div>") and "Findings(3 facts" in found._repr_html_()


WRONG = {
    "a text without an answer": (
        lambda model: kn.find(model, "The capital of France is"),
        r"without an answer; expected kn_lens.find\(model, 'The capital of France is",
    ),
    "a list of texts without an answer": (
        lambda model: kn.find(model, ["The capital of France is", "France:"]),
        "Got 2 texts without an answer",
    ),
    "an answer for each text": (
        lambda model: kn.find(model, ["The capital of France is", "France:"], ["Paris", "Paris"]),
        "Got a list as answer; expected one answer",
    ),
    "an empty answer": (lambda model: kn.find(model, "The capital of France is", " "), "is empty; expected the text"),
    "an answer beside facts": (
        lambda model: kn.find(model, FACT, "Dublin"),
        "Got answer='Dublin' beside facts, which have their own",
    ),
    "templates beside a text": (
        lambda model: kn.find(model, "The capital of France is", " Paris", templates="[X]: [Y]"),
        "Got templates= beside a text, which is its own template",
    ),
    "prompts": (
        lambda model: kn.find(model, kn.make_prompts(model, FACT)),
        r"Got a PromptBatch as facts; expected facts, or, of prompts: kn_lens.refine",
    ),
    "a number": (lambda model: kn.find(model, 3), "Got an int; expected several Facts"),
    "no text": (lambda model: kn.find(model, "", " Paris"), "empty|mask token"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_with_the_right_call(name, model):
    call, message = WRONG[name]
    with pytest.raises(kn.ArgumentError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_text_of_another_kind_of_model_is_told_with_the_right_call():
    causal, masked = (loaded(KINDS[kind]) for kind in ("causal", "masked"))
    for text in ("The capital of France is [MASK].", "The capital of France is <mask>"):
        with pytest.raises(kn.ArgumentError, match=r"causal.*find\(model, 'The capital of France is', ' Paris'\)"):
            kn.find(causal, text, "Paris")
    for text in ("The capital of France is", "The capital of France is <mask>."):
        with pytest.raises(kn.ArgumentError, match=r"find\(model, 'The capital of France is \[MASK\].', 'Paris'\)"):
            kn.find(masked, text, " Paris")
    with pytest.raises(kn.ArgumentError, match=r"holds \[MASK\] 2 times; expected it once"):
        kn.find(masked, "[MASK] is in [MASK].", "Paris")
    with pytest.raises(kn.ArgumentError, match=r"would read 'isParis'; expected a blank.*, ' Paris'\)"):
        kn.find(causal, "The capital of France is", "Paris")
    with pytest.raises(kn.NoPromptError, match="object not last: 1"):
        kn.find(causal, "[Y] is the capital of France", "Paris")


def test_progress_is_a_function_or_a_bar(model, monkeypatch):
    counts = []
    kn.find(model, FACT, progress=lambda done, total: counts.append((done, total)))
    n_prompts = len(kn.make_prompts(model, FACT))
    assert counts[-1] == (3 * n_prompts, 3 * n_prompts)
    drawn = []

    class Console(progress_module.Console):
        def __init__(self, **options):
            super().__init__(**options, force_terminal=True, file=_Written(drawn))

    monkeypatch.setattr(progress_module, "Console", Console)
    kn.find(model, FACT, progress=True)
    assert "Attributing" in "".join(drawn) and "prompt-layers/s" in "".join(drawn)
    drawn.clear()
    kn.find(model, FACT, progress=False)
    assert not drawn


class _Written:
    """A stream that keeps what is written."""

    def __init__(self, texts):
        self.texts = texts

    def write(self, text):
        self.texts.append(text)
        return len(text)

    def flush(self):
        """There is nothing to flush."""


def test_the_subject_of_a_text_is_named(model, kind):
    text = TEXT[kind]
    found = kn.find(model, text, " Paris", subject="France", position="subject_last")
    prompts = kn.make_prompts(model, text_fact(model, text, " Paris", subject="France")).at("subject_last")
    assert found.prompts.fact(0).subject == "France" and torch.equal(found.prompts.post_pos, prompts.post_pos)
    read = kn.find(model, text, " Paris", subject="France")
    assert torch.equal(read.attribution.scores, kn.find(model, text, " Paris").attribution.scores)
    for given, message in (
        ({"position": "subject_last"}, r"subject='France', position='subject_last'\)"),
        ({"subject": "Peru"}, "does not name the subject 'Peru'"),
        ({"subject": 3}, "as subject; expected the words"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.find(model, text, " Paris", **given)
    with pytest.raises(kn.ArgumentError, match="beside facts, which have their own"):
        kn.find(model, FACTS, subject="France")


@pytest.mark.parametrize(
    ("text", "subject", "template"),
    [
        ("Romes are many, but Rome is in", "Rome", "Romes are many, but [X] is in[Y]"),
        ("法国的首都是", "法国", "[X]的首都是[Y]"),
        ("In Peru, Peru's capital is", " Peru ", "In [X], Peru's capital is[Y]"),
        ("The capital of [X] is", "Peru", "The capital of [X] is[Y]"),
        ("Zoë, naïve (C++) is", "(C++)", "Zoë, naïve [X] is[Y]"),
    ],
)
def test_the_first_mention_of_the_subject_is_its_slot(text, subject, template):
    fact = text_fact(loaded(KINDS["causal"]), text, "-", subject=subject)
    assert fact.templates == (template,) and fact.subject == subject.strip()
    assert fact.filled(template).replace("[Y]", "") == text.replace("[X]", fact.subject)


def test_one_position_is_asked_for_before_the_model_runs(model):
    with pytest.raises(kn.ArgumentError, match="neurons are found at one position"):
        kn.find(model, FACTS, positions="all")
    with pytest.raises(kn.ArgumentError, match="Did you mean 'subject_last'"):
        kn.find(model, FACTS, position="subject")
    with pytest.raises(kn.ArgumentError, match=r"parts are of one position: prompts.at\('subject_last'\)"):
        kn.attribute_in_parts(model, kn.make_prompts(model, FACTS), positions="all")


def test_neurons_are_found_at_the_position_that_is_named(model, kind):
    found = kn.find(model, FACTS, position="subject_last")
    prompts = kn.make_prompts(model, FACTS).at("subject_last")
    assert torch.equal(found.prompts.post_pos, prompts.post_pos)
    assert found.neurons_by_fact == kn.refine(kn.attribute(model, prompts)) != kn.find(model, FACTS).neurons_by_fact


def test_versions_of_a_fact_are_told_apart_by_their_language(model):
    """Peru has one name, and one capital, in both languages."""
    versions = [kn.Fact("Peru", "P36", "Lima", TEMPLATES, "PE", language=language) for language in ("en", "de")]
    found = kn.find(model, versions)
    assert found.summary()["language"].tolist() == ["en", "de"]
    sizes = found.to_frame().groupby("language").size()
    assert sizes.to_dict() == {fact.language: len(neurons) for fact, neurons in found.neurons_by_fact.items()}
