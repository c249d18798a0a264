"""A plan counts the passes of a run exactly and makes few passes itself, however slow the model is."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.hosts import Host, host_of
from kn_lens.runs import planning
from kn_lens.runs.context import open_context
from kn_lens.runs.execute import run_stages, with_needs
from kn_lens.runs.passes import POINTS, Passes, integrated
from kn_lens.runs.planning import Rates, plan
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.erasures import ERASURES
from kn_lens.runs.stages.neurons import NEURONS
from kn_lens.runs.stages.order import STAGES
from kn_lens.runs.stages.updates import UPDATES
from tests.tiny import COUNTRIES, loaded, tiny_model

TEMPLATES = {
    "P36": ("The capital of [X] is [Y]", "In fact, [X] has its seat in [Y]", "[X]: [Y]"),
    "P1376": ("The country of [X] is [Y]", "In fact, [X] lies in [Y]", "[X] of [Y]"),
}
FEW = {
    "n_resamples": 5, "doses": [0.5, 3.0], "dose_facts": 2, "update_facts": 2, "update_others": 2, "erase_facts": 3,
    "erase_others": 3, "check_facts": 2, "text_sentences": 2, "syntax_forms": 2, "syntax_sentences": 4,
    "syntax_facts": 2, "limit": 4, "attr_threshold": 0.1, "max_share": 1.0,
}  # fmt: skip
DRAWN = {"effects": 0.1, "doses": 0.1, "methods": 0.7}
"""Stages whose passes depend on what will be found and drawn, and by what share they may differ from the plan."""


def tiny_facts():
    """Return facts with equal numbers of templates and answers of one token."""
    return kn.FactSet(
        kn.Fact(*pair, templates)
        for country, capital in COUNTRIES.items()
        for relation, templates in TEMPLATES.items()
        for pair in [(country, relation, capital) if relation == "P36" else (capital, relation, country)]
    )


@contextmanager
def watched(model, see):
    """Call ``see`` with the number of rows whenever some reach the head.

    But for tokens before the one that is read, run first, of the same row; and for what is looked up about a host.
    """
    head = host_of(model).checkpoint.get_output_embeddings()
    paused = []

    def look(module, args):
        if not paused:
            see(args[0].shape[0])

    def pausing(function):
        def call(*args):
            paused.append(function)
            try:
                return function(*args)
            finally:
                paused.pop()

        return call

    with head.register_forward_pre_hook(look), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "kv_prefix", pausing(Host.kv_prefix))
        patch.setattr(Host, "_output_forms", property(pausing(Host._output_forms.func)))
        yield


@contextmanager
def counted(model):
    """Count the rows that reach the head, without a gradient and with one."""
    counts = {False: 0, True: 0}

    def count(rows):
        counts[torch.is_grad_enabled()] += rows

    with watched(model, count):
        yield counts


class Clock:
    """A clock that each row advances."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def pass_by(self, rows):
        self.now += self.seconds * rows

    def perf_counter(self):
        return self.now


@contextmanager
def slowed(model, seconds):
    """Let each row take the given time, by the clock of the planning."""
    clock = Clock(seconds)
    with watched(model, clock.pass_by), pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "time", clock)
        yield clock


@pytest.fixture(scope="module", params=["BertForMaskedLM", "GPT2LMHeadModel"])
def passes_made(request, tmp_path_factory):
    """Return the expected and the actual passes of each stage of a run: (without gradients, with gradients)."""
    model = loaded(request.param)
    settings = Settings.of(quadrature="midpoint", n_steps=2, **FEW)
    made = {}
    with open_context(model, tiny_facts(), tmp_path_factory.mktemp("run") / "run", settings) as context:
        for stage in with_needs(STAGES):
            before = (
                sum((stage.passes(context, shard) for shard in stage.shards(context)), Passes()) if made else Passes()
            )
            with counted(model) as counts:
                for shard in stage.shards(context):
                    with context.run.writing(
                        stage.name, shard, str(context.inputs(stage, shard)), stage.version
                    ) as path:
                        stage.write(context, shard, path, lambda done, total: None)
            gradients = before.gradients + before.whole_gradients + (POINTS - 1) * before.integrals
            expected = before.whole + before.resumed + before.heads, gradients
            made[stage.name] = expected, (counts[False], counts[True])
    return made


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_stage_makes_the_counted_number_of_passes(passes_made, name):
    expected, made = passes_made[name]
    if name == "texts":  # there may be fewer sentences than are wanted
        assert made[0] <= expected[0] and made[1] == 0
    else:
        assert made == pytest.approx(expected, rel=DRAWN.get(name, 1e-9)), (expected, made)


@pytest.mark.parametrize("rule", ["left", "right", "midpoint", "trapezoid", "gauss-legendre", "clenshaw-curtis"])
def test_passes_of_an_integral_are_counted_exactly(rule):
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


def test_plan_sums_the_counts_of_its_stages(tmp_path, monkeypatch):
    model = loaded()
    settings = Settings.of(**FEW)
    monkeypatch.setattr(planning, "SECONDS", 0.5)
    planned = plan(model, tiny_facts(), tmp_path / "run", settings, STAGES).set_index("stage")
    assert not (tmp_path / "run").exists()
    assert list(planned.index) == [stage.name for stage in with_needs(STAGES)]
    assert (planned["done"] == 0).all() and (planned.loc[planned["passes"] > 0, "seconds"] > 0).all()
    n_rows = kn.make_prompts(model, tiny_facts()).n_rows / 2  # of 4 of 8 facts a relation
    assert planned.loc["attributions", "shards"] == 2
    assert planned.loc["answers", "passes"] == pytest.approx(n_rows, rel=0.2)


@pytest.mark.parametrize("seconds", [0.001, 0.5, 3.0, 200.0])
def test_planning_a_slow_model_takes_seconds_and_one_pass(tmp_path, seconds):
    model = loaded()
    with slowed(model, seconds) as clock:
        planned = plan(model, tiny_facts(), tmp_path / "run", Settings.of(**FEW), STAGES)
    (first,) = set(kn.make_prompts(model, tiny_facts()).rows_per_prompt.tolist())  # rows of the first pass
    # Here half a pass takes as long as a whole one, once for each kind, which the estimate does not expect.
    assert clock.now <= planning.SECONDS + 3 * seconds * first
    if seconds > 10 * planning.SECONDS:  # a pass through the head is estimated to take a tenth
        assert clock.now == pytest.approx(seconds * first)
    answers = planned.set_index("stage").loc["answers"]
    assert answers["seconds"] == pytest.approx(seconds * answers["passes"], rel=0.01)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_plan_estimates_the_time_of_the_adaptive_quadrature(tmp_path, architecture):
    """If every row takes the same time, the estimate is proportional to the number of rows.

    Over several models: the points of one depend on its vocabulary, whose training breaks ties at random.
    """
    settings, seconds = Settings.of(**FEW), 0.001
    planned_passes = planned_seconds = n_made = 0.0
    for seed in range(4):
        model, run = tiny_model(architecture, seed=seed), tmp_path / f"run{seed}"
        with slowed(model, seconds):
            planned = plan(model, tiny_facts(), run, settings, STAGES[:2]).set_index("stage").loc["attributions"]
        with open_context(model, tiny_facts(), run, settings) as context, counted(model) as counts:
            run_stages(context, STAGES[:2], lambda state: None)
        planned_passes += planned["passes"]
        planned_seconds += planned["seconds"]
        n_made += sum(counts.values())
    assert planned_passes == pytest.approx(n_made, rel=0.15)
    assert planned_seconds == pytest.approx(seconds * n_made, rel=0.15)


def test_plan_of_a_finished_run_makes_no_pass(tmp_path):
    model, settings = loaded(), Settings.of(**FEW)
    with open_context(model, tiny_facts(), tmp_path / "run", settings) as context:
        run_stages(context, STAGES[:3], lambda state: None)
    with counted(model) as counts:
        planned = plan(model, tiny_facts(), tmp_path / "run", settings, STAGES[:3])
    assert (planned["done"] == planned["shards"]).all() and (planned["seconds"] == 0).all()
    assert sum(counts.values()) == 0
    with pytest.raises(kn.DataError, match="seed"):
        plan(model, tiny_facts(), tmp_path / "run", Settings.of(**FEW, seed=3), STAGES[:3])


def test_seconds_are_passes_times_the_time_of_a_pass():
    rates = Rates(whole=1.0, resumed=0.5, gradient=2.0, head=0.1, integral=9.0, points=7)
    passes = Passes(whole=3, resumed=4, gradients=5, whole_gradients=6, integrals=7, heads=10)
    assert rates.seconds(passes) == pytest.approx(3 + 2 + 10 + 24 + 63 + 1)
    assert (2 * passes).whole == 6 and (passes + passes) == 2 * passes


def test_stages_are_timed_without_the_model_and_its_tokenizer(tmp_path):
    """Workers hold the model; the process that gives them the shards of a run that was begun has neither."""
    facts, settings = tiny_facts(), Settings.of(**FEW)
    with open_context(loaded(), facts, tmp_path / "run", settings) as context:
        run_stages(context, with_needs([NEURONS]), lambda state: None)
        without = replace(context, host=replace(context.host, model=None))
        assert without.host.tokenizer is None
        for stage in (UPDATES, ERASURES):
            costs = [stage.cost(without, shard) for shard in stage.shards(without)]
            assert costs == [stage.cost(context, shard) for shard in stage.shards(context)] and min(costs) > 0
