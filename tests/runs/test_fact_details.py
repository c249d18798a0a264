"""Details of facts and neurons: each number equals that of the library, or of a plain pass, for the fact alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.runs.context import open_context
from kn_lens.runs.directory import ALL, Shard
from kn_lens.runs.execute import run_stages
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages import readouts
from kn_lens.runs.stages.attributions import ATTRIBUTIONS, read_scores
from kn_lens.runs.stages.fact_details import NEURON_SCORES, PREDICTIONS
from kn_lens.runs.stages.readouts import ANSWER_READOUTS, READOUTS, TOP, read_out
from tests.intervals import hold_their_values, is_close, naive_interval
from tests.tiny import tiny_model
from tests.tiny_runs import CAPITAL, tiny_facts

# With half of the prompts enough, and little stored, many a found neuron's score is missing from the stored ones.
SETTINGS = Settings.of(
    attr_threshold=0.5, keep=0.5, share_threshold=0.5, min_prompts=2, max_moves=0, n_resamples=4000, quadrature="left",
    n_steps=3,
)  # fmt: skip
STAGES = (PREDICTIONS, NEURON_SCORES, READOUTS, ANSWER_READOUTS)
FAMILIES = ("BertForMaskedLM", "ElectraForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM")


def attributed(model, fact):
    return kn.attribute(model, kn.make_prompts(model, fact), quadrature="left", n_steps=3)


def test_predictions_equal_those_of_each_fact_alone(finished, model):
    context, _ = finished
    records = context.all_records(PREDICTIONS)
    assert len(records) == sum(len(fact.templates) for fact in tiny_facts())
    for fact in tiny_facts():
        rows = records.query("key == @fact.key").reset_index()
        found = context.neurons("found", fact.relation)[fact]
        effect = kn.measure(model, kn.make_prompts(model, fact), kn.Suppress(found))
        assert rows["text"].tolist() == list(kn.make_prompts(model, fact).text)
        for name in ("before", "after"):
            np.testing.assert_allclose(rows[name], effect[name], rtol=1e-9)
        for name in ("rank_before", "rank_after", "top_before", "top_after"):
            assert rows[name].tolist() == effect[name].tolist()
    assert (records["before"] != records["after"]).any()


def test_facts_without_neurons_are_predicted_as_before(model, tmp_path):
    settings = Settings.of(share_threshold=1.0, attr_threshold=1.0, max_moves=0, min_prompts=2)
    with open_context(model, tiny_facts(), tmp_path, settings) as context:
        run_stages(context, STAGES, lambda state: None)
        without = {
            fact.key
            for relation in context.relations()
            for fact, found in context.neurons("found", relation).items()
            if not found
        }
        records = context.all_records(PREDICTIONS).query("key in @without")
        assert len(records) and (records["before"] == records["after"]).all()
        assert without.isdisjoint(context.all_records(NEURON_SCORES)["key"])
        assert without.isdisjoint(context.all_records(ANSWER_READOUTS)["key"])


def test_scores_are_means_over_all_prompts_including_dropped_scores(finished, model):
    context, _ = finished
    records = context.all_records(NEURON_SCORES)
    not_stored = 0
    for fact in tiny_facts():
        rows = records.query("key == @fact.key")
        found = context.neurons("found", fact.relation)[fact]
        assert list(zip(rows["layer"], rows["index"], strict=True)) == [(one.layer, one.index) for one in found]
        attr = attributed(model, fact)
        members = kn.coarse(attr, 0.5)
        for row in rows.to_dict("records"):
            scores = attr.scores[:, row["layer"], row["index"]]
            assert row["score"] == pytest.approx(float(scores.mean()), rel=1e-9)
            assert row["share"] == float(members[:, row["layer"], row["index"]].double().mean())
            assert row["n_prompts"] == len(scores)
            stored = read_scores(context, ATTRIBUTIONS, fact.relation)
            kept = [
                float(stored.scores[number, row["layer"], row["index"]])
                for number in range(len(stored.prompts))
                if stored.prompts.fact(number) == fact
            ]
            not_stored += kept.count(0.0)
    assert not_stored


def test_intervals_equal_a_plain_bootstrap_of_prompts(model, tmp_path):
    wordings = tuple("In fact, " * i + template for i in range(3) for template in CAPITAL[:3])
    facts = [kn.Fact(fact.subject, fact.relation, fact.object, wordings) for fact in tiny_facts(3).of("P36")]
    settings = replace(SETTINGS, n_resamples=100, relations=("P36",))
    with open_context(model, kn.FactSet([*facts, *tiny_facts().of("P1376")]), tmp_path, settings) as context:
        tables = run_stages(context, [NEURON_SCORES], lambda state: None)
        records = context.all_records(NEURON_SCORES)
        draws = {
            fact.key: context.generator("neuron_scores", fact.key).integers(9, size=(100, 8)).tolist() for fact in facts
        }
    for row in records.to_dict("records"):
        fact = next(one for one in facts if one.key == row["key"])
        scores = attributed(model, fact).scores[:, row["layer"], row["index"]].numpy()
        means = [float(scores[drawn].mean()) for drawn in draws[fact.key]]
        assert is_close([row["low"], row["high"]], naive_interval(row["score"], means, [9]))
    sure = (records["low"] > 0).groupby(records["key"]).mean().mean()
    table = tables["neuron_scores"].set_index("measure")
    assert table.loc["interval above 0", "value"] == pytest.approx(sure, rel=1e-12)


def test_fewer_than_eight_prompts_give_no_interval(finished):
    context, tables = finished
    records = context.all_records(NEURON_SCORES)
    assert (records["n_prompts"] < 8).all() and records[["low", "high"]].isna().all(axis=None)
    assert "interval above 0" not in set(tables["neuron_scores"]["measure"])


def test_one_prompt_gives_no_interval(model, tmp_path):
    one = kn.FactSet([kn.Fact(fact.subject, fact.relation, fact.object, fact.templates[:1]) for fact in tiny_facts()])
    settings = Settings.of("paper", attr_threshold=0.5, n_steps=2)
    with open_context(model, one, tmp_path, settings) as context:
        tables = run_stages(context, [NEURON_SCORES], lambda state: None)
        records = context.all_records(NEURON_SCORES)
    assert len(records) and records[["low", "high"]].isna().all(axis=None) and (records["share"] == 1).all()
    assert set(tables["neuron_scores"]["measure"]) == {"mean score", "share of prompts"}


def test_tables_average_scores_fact_by_fact(finished):
    context, tables = finished
    records = context.all_records(NEURON_SCORES)
    expected = records.groupby(["relation", "key"])["share"].mean().groupby("relation").mean().mean()
    table = tables["neuron_scores"].set_index("measure")
    assert table.loc["share of prompts", "value"] == pytest.approx(expected, rel=1e-12)
    assert hold_their_values(tables["neuron_scores"])


@pytest.mark.parametrize("family", FAMILIES)
def test_read_out_is_the_head_applied_to_the_row(family):
    model = tiny_model(family)
    host = kn.host_of(model)
    tokens = torch.ones(1, 2, dtype=torch.long)
    mask, read_pos = torch.ones_like(tokens), torch.tensor([1])

    def head(row):
        """Return the logits of a full pass whose last residual stream is replaced by the row."""
        hook = (host.resid_post(host.n_layers - 1), lambda value, hook: row.expand_as(value))
        with torch.no_grad():
            return host.logits(tokens, mask, read_pos, [hook])[0]

    neurons = kn.NeuronSet([(2, 3), (0, 5), (2, 0)])
    found = list(read_out(host, neurons, k=4))
    assert [neuron for neuron, *_ in found] == list(neurons)
    for neuron, top, logits in found:
        raised = head(host.W_out(neuron.layer)[neuron.index]) - head(torch.zeros(host.d_model, dtype=host.dtype))
        best = raised.topk(4)
        torch.testing.assert_close(logits, best.values, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(raised[top], best.values, rtol=1e-6, atol=1e-9)


def test_read_outs_do_not_depend_on_the_batch_size(model, monkeypatch):
    host, neurons = kn.host_of(model), kn.NeuronSet((0, index) for index in range(5))
    whole = list(read_out(host, neurons))
    monkeypatch.setattr(readouts, "LOGITS_AT_ONCE", 2 * host.d_vocab)
    for (one, tokens, logits), (same, same_tokens, same_logits) in zip(whole, read_out(host, neurons), strict=True):
        assert one == same and tokens.equal(same_tokens)
        torch.testing.assert_close(logits, same_logits, rtol=1e-9, atol=0)


def test_every_found_neuron_is_read_out_once(finished, model):
    context, _ = finished
    records = context.records("readouts", Shard(ALL))
    sets = [found for relation in context.relations() for found in context.neurons("found", relation).values()]
    every = kn.NeuronSet(neuron for found in sets for neuron in found)
    assert list(zip(records["layer"], records["index"], strict=True)) == [(one.layer, one.index) for one in every]
    for (neuron, top, logits), row in zip(read_out(context.host, every), records.to_dict("records"), strict=True):
        assert row["n_facts"] == sum(neuron in found for found in sets)
        assert row["tokens"].tolist() == [context.host.tokenizer.decode([token]) for token in top.tolist()]
        assert row["logits"].tolist() == logits.tolist() == sorted(logits.tolist(), reverse=True)


def test_answers_are_searched_among_the_top_tokens(finished, model):
    context, tables = finished
    records = context.all_records(ANSWER_READOUTS)
    for row in records.to_dict("records"):
        fact = next(one for one in tiny_facts() if one.key == row["key"])
        neurons = context.neurons(row["neuron_set"], fact.relation)[fact]
        answer = set(kn.make_prompts(model, fact).target_ids.tolist())
        saying = [set(top.tolist()) & answer for _, top, _ in read_out(context.host, neurons)]
        assert (row["n_neurons"], row["n_saying"]) == (len(neurons), sum(map(bool, saying)))
    table = tables["answer_readouts"].set_index("neuron_set")
    assert list(table.index) == ["found", "activation", "random"]
    assert (table["control"] == table.loc["random", "value"]).all()
    assert records["n_neurons"].sum()


def test_neurons_that_promote_an_answer_are_counted(finished, model, tmp_path, monkeypatch):
    """Each fact has all neurons of the model here, so that some promote its answer in any tiny vocabulary."""
    context, _ = finished
    host = context.host
    every = kn.NeuronSet((layer, index) for layer in range(host.n_layers) for index in range(host.d_mlp))
    relation = tiny_facts()[0].relation
    facts = {fact: every for fact in tiny_facts() if fact.relation == relation}
    monkeypatch.setattr(type(context), "neurons", lambda self, kind, relation: facts)
    ANSWER_READOUTS.make(context, Shard(relation), tmp_path / "answers.parquet", lambda done, total: None)
    records = pd.read_parquet(tmp_path / "answers.parquet").query("neuron_set == 'found'").set_index("key")

    empty = host.unembed(torch.zeros(1, host.d_model, dtype=host.dtype))
    for fact in facts:
        answer = set(kn.make_prompts(model, fact).target_ids.tolist())
        tops = [
            (host.unembed(host.W_out(layer)[index, None]) - empty)[0].topk(TOP).indices.tolist()
            for layer, index in ((neuron.layer, neuron.index) for neuron in every)
        ]
        assert records.loc[fact.key, "n_saying"] == sum(not answer.isdisjoint(top) for top in tops)
    assert records["n_saying"].sum()
