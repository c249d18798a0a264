"""A plan counts the passes that a run will make, and makes hardly any itself."""

from contextlib import contextmanager

import pytest
import torch

import kn_lens as kn
from kn_lens.experiments import planning
from kn_lens.experiments.passes import Passes, integrated
from kn_lens.experiments.planning import Rates, plan
from kn_lens.experiments.reproduction import open_study
from kn_lens.experiments.running import run, with_needs
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.stages import STAGES
from kn_lens.hosts import Host, host_of
from tests.tiny import COUNTRIES, loaded

TEMPLATES = {
    "P36": ("The capital of [X] is [Y]", "In fact, [X] has its seat in [Y]", "[X]: [Y]"),
    "P1376": ("The country of [X] is [Y]", "In fact, [X] lies in [Y]", "[X] of [Y]"),
}
FEW = {
    "n_resamples": 5, "doses": [0.5, 3.0], "dose_facts": 2, "update_facts": 2, "update_others": 2, "erase_facts": 3,
    "erase_others": 3, "check_facts": 2, "text_sentences": 2, "syntax_forms": 2, "syntax_sentences": 4,
    "syntax_facts": 2, "limit": 4, "attr_threshold": 0.1, "max_share": 1.0,
}  # fmt: skip
FOUND = {"effects": 0.15, "doses": 0.15, "methods": 0.6, "syntax": 0.4}
"""Stages whose passes depend on what is found and drawn, and by what share they may differ from the plan."""


def tiny_facts():
    """Facts with as many templates each, and answers of one token."""
    return kn.FactSet(
        kn.Fact(*pair, templates)
        for country, capital in COUNTRIES.items()
        for relation, templates in TEMPLATES.items()
        for pair in [(country, relation, capital) if relation == "P36" else (capital, relation, country)]
    )


@contextmanager
def counted(model):
    """Count the rows that reach the head, without a gradient and with one.

    Not counted: tokens before the one that is read, run first, of the same row; and what is looked up about a host.
    """
    counts = {False: 0, True: 0}
    head = host_of(model).checkpoint.get_output_embeddings()
    paused = []

    def count(module, args):
        if not paused:
            counts[torch.is_grad_enabled()] += args[0].shape[0]

    def pausing(function):
        def call(*args):
            paused.append(function)
            try:
                return function(*args)
            finally:
                paused.pop()

        return call

    handle = head.register_forward_pre_hook(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "prefix", pausing(Host.prefix))
        patch.setattr(Host, "_beside", property(pausing(Host._beside.func)))
        yield counts
    handle.remove()


@pytest.mark.parametrize(
    ("architecture", "rule", "n_steps"), [("BertForMaskedLM", "midpoint", 3), ("GPT2LMHeadModel", "trapezoid", 3)]
)
def test_a_stage_makes_the_passes_that_were_counted(tmp_path, architecture, rule, n_steps):
    model = loaded(architecture)
    settings = Settings.of(quadrature=rule, n_steps=n_steps, **FEW)
    with open_study(model, tiny_facts(), tmp_path / "run", settings) as study:
        run(study, STAGES[:1], lambda state: None)
        for stage in with_needs(STAGES):
            expected = sum((stage.passes(study, shard) for shard in stage.shards(study)), Passes())
            without = expected.whole + expected.resumed + expected.heads
            with counted(model) as counts:
                run(study, [stage], lambda state: None)
            if stage.name == "texts":  # there may be fewer sentences than are wanted
                assert counts[True] == 0 and counts[False] <= without
            elif stage.name in FOUND:
                assert counts[False] == pytest.approx(without, rel=FOUND[stage.name]), stage.name
            else:
                gradients = expected.gradients + expected.whole_gradients
                assert (counts[True], counts[False]) == pytest.approx((gradients, without)), stage.name


@pytest.mark.parametrize("rule", ["left", "right", "midpoint", "trapezoid", "gauss-legendre", "clenshaw-curtis"])
def test_passes_of_an_integral_are_those_that_it_takes(rule):
    model = loaded()
    prompts = kn.make_prompts(model, tiny_facts()[:4])
    with counted(model) as counts:
        kn.attribute(model, prompts, quadrature=rule, n_steps=4)
    passes = integrated(prompts.n_rows, 3, rule, 4)
    assert counts == {True: passes.gradients + passes.whole_gradients, False: passes.whole + passes.resumed}
    assert sum(counts.values()) == passes.rows()


def test_passes_of_the_adaptive_quadrature_follow_from_its_points():
    model = loaded()
    prompts = kn.make_prompts(model, tiny_facts()[:4])
    with counted(model) as counts:
        attr = kn.attribute(model, prompts)
    points = float(attr.n_points.repeat_interleave(prompts.rows_per_prompt, 0).double().mean())
    assert sum(counts.values()) == pytest.approx(integrated(prompts.n_rows, 3).rows(points))


def test_a_plan_adds_up_what_the_stages_count_and_makes_few_passes_itself(tmp_path, monkeypatch):
    model = loaded()
    settings = Settings.of(**FEW)
    monkeypatch.setattr(planning, "ENOUGH", 0.0)  # on a model whose passes take long
    with counted(model) as counts:
        planned = plan(model, tiny_facts(), tmp_path / "run", settings, STAGES).set_index("stage")
    assert 4 <= sum(counts.values()) <= 8 * 5 + 8 * 3 * 129 and not (tmp_path / "run").exists()
    assert list(planned.index) == [stage.name for stage in with_needs(STAGES)]
    assert (planned["done"] == 0).all() and (planned.loc[planned["passes"] > 0, "seconds"] > 0).all()
    n_rows = kn.make_prompts(model, [fact for fact in tiny_facts()]).n_rows / 2  # of 4 of 8 facts a relation
    assert planned.loc["attributions", "shards"] == 2
    assert planned.loc["answers", "passes"] == pytest.approx(n_rows, rel=0.5)
    monkeypatch.setattr(planning, "SECONDS_FOR_POINTS", 0.0)
    with counted(model) as counts:
        plan(model, tiny_facts(), tmp_path / "run", settings, STAGES)
    prompt = kn.make_prompts(model, tiny_facts()).rows_per_prompt.max()
    assert sum(counts.values()) <= (4 + 2) * prompt  # one of each kind, and one of each of two relations to start from


def test_a_plan_of_what_is_done_runs_nothing(tmp_path):
    model, settings = loaded(), Settings.of(**FEW)
    with open_study(model, tiny_facts(), tmp_path / "run", settings) as study:
        run(study, STAGES[:3], lambda state: None)
    with counted(model) as counts:
        planned = plan(model, tiny_facts(), tmp_path / "run", settings, STAGES[:3])
    assert (planned["done"] == planned["shards"]).all() and (planned["seconds"] == 0).all()
    assert sum(counts.values()) == 0
    with pytest.raises(kn.DataError, match="seed"):
        plan(model, tiny_facts(), tmp_path / "run", Settings.of(**FEW, seed=3), STAGES[:3])


def test_seconds_are_passes_times_what_one_takes():
    rates = Rates(whole=1.0, resumed=0.5, gradient=2.0, head=0.1, points=7)
    passes = Passes(whole=3, resumed=4, gradients=5, whole_gradients=6, integrals=7, heads=10)
    assert rates.seconds(passes) == pytest.approx(3 + 2 + 10 + 24 + 7 * 6 * 2 + 1)
    assert (2 * passes).whole == 6 and (passes + passes) == 2 * passes
