"""Many edits in one pass: equal to each edit written to the weights, and in no more passes than one edit takes."""

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.edits.prompt_edits import score_under_edits
from kn_lens.hosts import Budget, Host, host_of, memory
from kn_lens.interventions import Ticks, score_answers
from tests.edits.update_cases import ACTIVE, FOUND, FRANCE, GERMANY, IRELAND, NEW, others_of
from tests.effects import FACTS, MODELS
from tests.reliability.state import differences, state_of
from tests.tiny import loaded, memory_for


@pytest.fixture(params=MODELS)
def model(request):
    """Return a model; check after the test that it is unchanged."""
    model = loaded(request.param)
    before = state_of(model)
    yield model
    assert not differences(before, state_of(model))


def edits_of(model):
    """Return edits that share neurons and differ in them, in their layers and in their kind."""
    edits = []
    for fact, new_object in NEW.items():
        edits.append(kn.update_fact(model, fact, new_object, FOUND[fact], allow_unknown=True))
    edits.append(kn.update_fact(model, IRELAND, "Rome", FOUND[IRELAND], lambdas=(2, 5), allow_unknown=True))
    edits.append(kn.erase_neurons(model, ACTIVE[FRANCE] | FOUND[FRANCE]))
    edits.append(kn.erase_neurons(model, kn.NeuronSet([(2, 3)])))
    return edits


def trials_of(model, prompts):
    """Return each edit with some prompts, which overlap; one prompt is scored under every edit."""
    trials = []
    for number, edit in enumerate(edits_of(model)):
        chosen = torch.arange(number, len(prompts), 2).flip(0)
        trials.append((edit, torch.cat([chosen, torch.tensor([0])])))
    return trials


@pytest.mark.parametrize("rows_per_pass", [None, 3])
def test_scores_under_edits_equal_those_of_each_edit_applied(model, rows_per_pass):
    host, prompts = host_of(model), kn.make_prompts(model, FACTS)
    memory = None if rows_per_pass is None else memory_for(rows_per_pass, model, prompts, gradient=False)
    trials = trials_of(model, prompts)
    n_rows = sum(len(prompts.rows_of(chosen)) for _, chosen in trials)
    ticks = Ticks(None, n_rows)
    together = score_under_edits(host, prompts, trials, Budget.of(host, memory), ticks)
    assert len(together) == len(trials) and ticks.done == n_rows
    for (edit, chosen), scores in zip(trials, together, strict=True):
        part = prompts.select(chosen)
        clean = score_answers(host, part, [], Budget.of(host, memory), Ticks(None, 0))
        with edit.applied(model):
            alone = score_answers(host, part, [], Budget.of(host, memory), Ticks(None, 0))
        np.testing.assert_allclose(scores.log_prob, alone.log_prob, rtol=1e-12, atol=1e-12)
        assert (scores.rank == alone.rank).all() and scores.top == alone.top
        assert np.abs(scores.log_prob - clean.log_prob).max() > 1e-4  # the edit does something


def test_with_hooks_of_the_user_edits_are_written_to_the_weights(model):
    host, prompts = host_of(model), kn.make_prompts(model, FACTS[:3])
    chosen = torch.arange(len(prompts))
    trials = [(edit, chosen) for edit in edits_of(model)[:2]]
    budget = Budget.of(host, None)
    seen = []

    def halve(mlp_out, hook):
        seen.append(mlp_out)
        return mlp_out / 2

    with model.hooks(fwd_hooks=[(host.hook_mlp_out(1), halve)]):
        together = score_under_edits(host, prompts, trials, budget, Ticks(None, 0))
        for (edit, _), scores in zip(trials, together, strict=True):
            with edit.applied(model):
                alone = score_answers(host, prompts, [], budget, Ticks(None, 0))
            np.testing.assert_allclose(scores.log_prob, alone.log_prob, rtol=1e-12, atol=1e-12)
    assert seen


def test_updates_of_more_facts_take_no_more_passes(model, monkeypatch):
    passes = []
    logits = Host.logits

    def counted(self, tokens, *args, **kwargs):
        passes.append(len(tokens))
        return logits(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Host, "logits", counted)
    monkeypatch.setitem(memory.LARGEST_PASS, "cpu", 1 << 20)  # else the rows of three facts fill a pass
    others = others_of(model)
    n_passes, n_rows = [], []
    for facts in ([IRELAND], [IRELAND, FRANCE], [IRELAND, FRANCE, GERMANY]):
        kn.update_effects(model, {fact: NEW[fact] for fact in facts}, FOUND, ACTIVE, others=others, doses=(1.0, 0.5))
        n_passes.append(len(passes))
        n_rows.append(sum(passes))
        passes.clear()
    assert n_passes[0] == n_passes[1] == n_passes[2]
    assert n_rows[0] < n_rows[1] < n_rows[2]
