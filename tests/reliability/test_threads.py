"""Threads that work on different models get the results that each gets alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pandas as pd
import pytest
import torch

import kn_lens as kn
from tests.public_calls import FACTS, IRELAND, NEURONS, SOME
from tests.reliability.state import unchanged
from tests.reliability.tries import TRIED
from tests.tiny import tiny_model

PAIRS = [("BertForMaskedLM", "GPT2LMHeadModel"), ("GPT2LMHeadModel", "GPT2LMHeadModel")]
TURNS = 3


def work(model, start=lambda: None):
    """Run a few calls of each kind and return their results in a form that compares bit for bit."""
    prompts = kn.make_prompts(model, FACTS, unknown_answers="leave_out")
    start()
    attr = kn.attribute(model, prompts, tolerance=0.1, memory_budget=50_000)
    found = [attr.scores, attr.total, attr.clean]
    edit = kn.update_fact(model, IRELAND, "Paris", SOME, allow_unknown=True)
    with edit.applied(model):
        tables = [kn.predict(model, prompts)]
    tables += [kn.predict(model, prompts), kn.controlled_effects(model, prompts, NEURONS, NEURONS)]
    return found, tables


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_threads_on_different_models_do_not_interfere(names):
    models = [tiny_model(name, seed=seed) for seed, name in enumerate(names)]
    alone = [work(model) for model in models]
    barrier = Barrier(len(models))
    with ThreadPoolExecutor(len(models)) as pool, unchanged(models[0]), unchanged(models[1]):
        for _ in range(TURNS):
            together = list(pool.map(work, models, [barrier.wait] * len(models)))
            for (tensors, tables), (tensors_alone, tables_alone) in zip(together, alone, strict=True):
                assert all(map(torch.equal, tensors, tensors_alone))
                for table, table_alone in zip(tables, tables_alone, strict=True):
                    pd.testing.assert_frame_equal(table, table_alone, check_exact=True)
            TRIED["two threads", "turns"] += 1
