"""Activation on texts: the sentences about each fact, and the activations of its neurons under them."""

import json

import numpy as np
import pytest

from kn_lens.errors import DataError
from kn_lens.hosts import host_of
from kn_lens.runs.context import open_context
from kn_lens.runs.corpora import corpus_of, place_of
from kn_lens.runs.directory import Shard
from kn_lens.runs.execute import run_stages
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.texts import BOTH, HEAD, RANDOM, TEXTS
from tests.intervals import hold_their_values
from tests.tiny import TEXTS as TINY_TEXTS
from tests.tiny import tiny_model
from tests.tiny_runs import tiny_facts

SMALL = {"attr_threshold": 0.3, "max_moves": 2, "n_resamples": 20}
SENTENCES = [
    "The capital of Ireland is Dublin. The people of Ireland speak their own language.",
    "In fact, Dublin is the capital of Ireland. Paris lies on a river.",
    "The people of Kenya pay with their own currency!\nParis is the capital of France.",
    "France has its own language. [X] is Irelands seat.",
]


def corpus_file(folder, sentences=SENTENCES):
    path = folder / "corpus.txt"
    path.write_text("\n".join(sentences), encoding="utf-8")
    return path


def bingrel(folder):
    facts = tiny_facts(2).of("P36")
    pairs = {"P36": [["Nowhere", "Nothing"], *([fact.subject, fact.object] for fact in facts)]}
    bags = [{"th_bags": [], "h_bags": ["Nowhere."]}]
    bags += [
        {
            "th_bags": [
                f"In {fact.object} the people of {fact.subject} pay.",
                f"{fact.subject}'s city, {fact.object}.",
            ],
            "h_bags": [f"The people of {fact.subject} speak."],
        }
        for fact in facts
    ]
    (folder / "query_pairs.json").write_text(json.dumps(pairs))
    final = folder / "final"
    final.mkdir()
    (final / "final_distant_allbags_P36_new.json").write_text(json.dumps(bags))
    return final


def test_plain_text_is_cut_into_sentences_about_facts(tmp_path):
    facts = tiny_facts(2).of("P36")
    corpus = corpus_of(corpus_file(tmp_path), facts, facts)
    ireland = corpus.passages[facts.find("Ireland", "P36")]
    assert ireland.both == ["The capital of Ireland is Dublin.", "In fact, Dublin is the capital of Ireland."]
    assert ireland.head == ["The people of Ireland speak their own language."]  # not "Irelands"
    assert corpus.passages[facts.find("France", "P36")].head == ["France has its own language."]
    assert len(corpus.sentences) == 8


def test_bags_belong_to_the_pair_of_their_number(tmp_path):
    facts = tiny_facts(3).of("P36")
    corpus = corpus_of(bingrel(tmp_path), facts, facts)
    assert len(corpus.passages) == 2  # the third is not in the files
    assert corpus.passages[facts.find("France", "P36")].head == ["The people of France speak."]
    assert "Nowhere." in corpus.sentences


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bags: bags.pop(), "expected a list of 3 bags"),
        (lambda bags: bags[1].pop("h_bags"), r"\[1\]: expected"),
        (lambda bags: bags[2]["th_bags"].append(7), r"\[2\]: expected"),
    ],
)
def test_files_that_are_not_bingrel_are_refused(tmp_path, damage, message):
    folder = bingrel(tmp_path)
    (path,) = folder.iterdir()
    bags = json.loads(path.read_text())
    damage(bags)
    path.write_text(json.dumps(bags))
    with pytest.raises(DataError, match=message):
        corpus_of(folder, [], [])


def test_settings_identify_texts_by_their_content(tmp_path):
    path = corpus_file(tmp_path)
    before = Settings.of(texts=str(path)).texts_digest
    path.write_text("Something else.")
    assert before and Settings.of(texts=str(path)).texts_digest != before
    assert Settings.of(texts=str(bingrel(tmp_path))).texts_digest
    with pytest.raises(DataError, match=r"Did you mean 'corpus.txt'"):
        Settings.of(texts=str(tmp_path / "corpus.tx"))


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_sentences_are_of_their_kind_and_read_at_the_missing_word(architecture, tmp_path):
    model, facts = tiny_model(architecture, seed=1), tiny_facts()
    masked = architecture == "BertForMaskedLM"
    settings = Settings.of(**SMALL, text_sentences=2, texts=str(corpus_file(tmp_path, TINY_TEXTS)))
    with open_context(model, facts, tmp_path / "run", settings) as context:
        tables = run_stages(context, [TEXTS], lambda state: None)
        records = context.all_records(TEXTS)
        found = {fact: sets for one in context.relations() for fact, sets in context.neurons("found", one).items()}
    fact_of = {fact.key: fact for fact in facts}
    for row in records.to_dict("records"):
        fact = fact_of[row["key"]]
        has_head = place_of(fact.subject, row["text"]) is not None
        assert has_head == (row["texts"] != RANDOM)
        assert (row["word"] == fact.object) or row["texts"] != BOTH
        if row["texts"] == HEAD:
            assert place_of(fact.object, row["text"]) is None and row["word"] != fact.object
        assert ("[MASK]" in row["text"]) == masked
    counts = records.groupby(["key", "texts"]).size().unstack()
    assert (counts[BOTH] == counts[RANDOM]).all() and counts.max(axis=None) <= 2 and len(counts)

    # The activation is that of the model's own hook, at the mask or at the last token.
    host = host_of(model)
    for _, row in records.groupby("texts").head(2).iterrows():
        tokens = host.tokenizer(row["text"], return_tensors="pt")["input_ids"]
        at = (tokens[0] == host.tokenizer.mask_token_id).nonzero().flatten() if masked else [-1]
        _, cache = model.run_with_cache(tokens)
        posts = [
            float(cache[host.hook_post(one.layer)][0, pos, one.index])
            for one in found[fact_of[row["key"]]]
            for pos in at
        ]
        assert row["found"] == pytest.approx(np.mean(posts), rel=1e-6)

    table = tables["activation_on_texts"].set_index(["texts", "neuron_set"])
    means = records.groupby(["relation", "key", "texts"])["found"].mean().groupby(["relation", "texts"]).mean()
    assert table.loc[(BOTH, "found"), "value"] == pytest.approx(means.unstack()[BOTH].mean())
    assert table.loc[(BOTH, "found"), "paper"] == 0.485
    assert hold_their_values(table)
    assert table.loc[(HEAD, "found"), "control"] == table.loc[(HEAD, "random"), "value"]
    top = tables["texts_of_most_and_least"].groupby(["key", "end"])["found"].mean().unstack()
    assert (top["top"] >= top["bottom"]).all()


def test_files_of_bingrel_are_read(tmp_path):
    with open_context(
        tiny_model(), tiny_facts(), tmp_path / "run", Settings.of(**SMALL, texts=str(bingrel(tmp_path)))
    ) as s:
        run_stages(s, [TEXTS], lambda state: None)
        records = s.records("texts", Shard("P36"))
        assert s.records("texts", Shard("P1376")).empty  # of which the files say nothing
    assert set(records["key"]) <= {"P36/Ireland/Dublin", "P36/France/Paris"} and len(records)
    assert set(records["texts"]) == {BOTH, HEAD, RANDOM}


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_sentences_that_the_model_cannot_read_are_left_out(architecture, tmp_path):
    """One sentence contains a mask token; in the other nothing but a blank precedes the word."""
    folder = bingrel(tmp_path)
    (path,) = folder.glob("*.json")
    path.write_text(path.read_text().replace('"Nowhere."', '" Nowhere."').replace('"In ', '"[MASK] In '))
    settings = Settings.of(**SMALL, texts=str(folder))
    with open_context(tiny_model(architecture, seed=1), tiny_facts(), tmp_path / "run", settings) as context:
        run_stages(context, [TEXTS], lambda state: None)
        records = context.records("texts", Shard("P36"))
    assert len(records)
    if architecture == "BertForMaskedLM":
        assert not records["text"].str.contains("] In").any()
    else:
        assert "Nowhere" not in set(records["word"])


def test_texts_outside_the_vocabulary_give_no_table(tmp_path):
    """An accent that the vocabulary lacks follows each word."""
    path = corpus_file(tmp_path, ["Ireland, Dublin\u0301", "Ireland o\u0301", "e\u0301"])
    with open_context(tiny_model(), tiny_facts(2), tmp_path / "run", Settings.of(**SMALL, texts=str(path))) as context:
        assert "activation_on_texts" not in run_stages(context, [TEXTS], lambda state: None)


def test_texts_about_no_fact_give_no_table(tmp_path):
    path = corpus_file(tmp_path, ["Nobody is here.", "A sentence of no use."])
    with open_context(tiny_model(), tiny_facts(2), tmp_path / "run", Settings.of(**SMALL, texts=str(path))) as context:
        assert "activation_on_texts" not in run_stages(context, [TEXTS], lambda state: None)
