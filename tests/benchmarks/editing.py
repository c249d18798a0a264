"""What edits do to the embedded models, and what they cost: the tables of docs/editing.md.

    python -m tests.benchmarks.editing [NAME ...] [--facts-per-relation 10] [--only update dose readout erase cost]

Neurons of every fact: attribution on ten trained templates with the defaults, refined with the defaults. Updated are
facts that the model knows, ten of each relation, to the answer of another fact of the relation, on those of their
neurons that no more than a tenth of the relation's facts have.
"""

import argparse
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import kn_lens as kn
from kn_lens._original import token_embeddings
from kn_lens._rows import Rows
from tests.benchmarks.world import sampled

MODELS = ("world-bert", "world-gpt2")
DOSES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
MAX_SHARE = 0.1
INVERSE = {"P36": "P1376", "P1376": "P36"}


class Case(NamedTuple):
    """A model, its facts and their neurons, and the updates to make."""

    model: Any
    trained: kn.FactSet
    found: dict[kn.Fact, kn.NeuronSet]
    active: dict[kn.Fact, kn.NeuronSet]
    new_objects: dict[kn.Fact, str]
    own: dict[kn.Fact, kn.NeuronSet]  # the neurons found, without those of the relation
    own_active: dict[kn.Fact, kn.NeuronSet]


def prepared(name: str, per_relation: int) -> Case:
    """Find all neurons, and draw the updates."""
    model = kn.load_model(name)
    trained = sampled(kn.FactSet.world("trained"), 10, kn.host_of(model).kind == "causal")
    prompts = kn.make_prompts(model, trained)
    found = kn.refine(kn.attribute(model, prompts))
    activations = kn.attribute(model, prompts, method="activation")
    right = kn.measure(model, prompts, []).rank_before == 0
    known = right.groupby([prompts.fact(i).key for i in range(len(prompts))]).mean() >= 0.5
    generator = np.random.default_rng(0)
    new_objects: dict[kn.Fact, str] = {}
    own: dict[kn.Fact, kn.NeuronSet] = {}
    for relation in trained.relations:
        facts = trained.of(relation)
        answers = sorted({fact.object for fact in facts})
        n_taken = 0
        for i in generator.permutation(len(facts)).tolist():
            fact, new = facts[i], str(generator.choice([answer for answer in answers if answer != facts[i].object]))
            if n_taken == per_relation or not known[fact.key]:
                continue
            try:
                edit = kn.update_fact(
                    model, fact, new, found[fact], neurons_by_fact=found, max_share=MAX_SHARE, allow_unknown=True
                )
            except kn.EditError:  # all its neurons are the relation's
                continue
            new_objects[fact], own[fact], n_taken = new, edit.neurons, n_taken + 1
    return Case(
        model=model,
        trained=trained,
        found=found,
        active=kn.activation_neurons(activations, found),
        new_objects=new_objects,
        own=own,
        own_active=kn.activation_neurons(activations, own),
    )


def cells(effects: pd.DataFrame, columns: dict[str, str], index: list[str], **options: Any) -> str:
    """Return a markdown table of ``edit_table``: a row for each of ``index``, a column for each measure."""
    table = kn.edit_table(effects, **options)
    table["cell"] = [shown(row) for row in table.itertuples()]
    wide = table.pivot(index=index, columns="measure", values="cell")
    order = list(dict.fromkeys(table[index].itertuples(index=False, name=None)))
    lines = ["| " + " | ".join([*index, *columns.values()]) + " |", "|---" * (len(index) + len(columns)) + "|"]
    for key in order:
        row = wide.loc[key]
        values = [row[measure] if measure in row and isinstance(row[measure], str) else "" for measure in columns]
        lines.append("| " + " | ".join([*map(str, key), *values]) + " |")
    return "\n".join(lines)


def shown(row: Any) -> str:
    """Return a value with its interval: shares in percent, the rest as numbers."""
    if row.measure.startswith(("changed", "success", "top5", "accuracy")):
        return f"{row.value:.1%} ({100 * row.low:.1f} to {100 * row.high:.1f})"
    if row.measure == "perplexity_growth":
        return f"{row.value:+.1%} ({100 * row.low:+.1f} to {100 * row.high:+.1f})"
    if row.measure.startswith("mrr"):
        return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
    return f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})"


def updates(case: Case) -> str:
    """Update every fact of the case, ask it in all ways, and ask for one wording of all other facts."""
    held_out = kn.FactSet.world("held_out")
    last = sampled(held_out, 1, object_last=True)
    effects = kn.update_effects(
        case.model,
        case.new_objects,
        case.own,
        case.own_active,
        questions={
            "held out": kn.reworded(held_out, case.new_objects),
            "inverse": kn.inverse_questions(held_out, case.new_objects, INVERSE),
        },
        others=kn.make_prompts(case.model, last),
    )
    sizes = effects[effects.asked == "own wording"].groupby("neurons").n_neurons.mean().round(1).to_dict()
    questions = effects[effects.new_nll_after.notna()]
    others = effects[effects.new_nll_after.isna()]
    answers = {"changed": "changed", "success": "success", "top5": "top 5"}
    answers |= {"rank_before": "rank before", "rank": "rank", "mrr_before": "MRR before", "mrr": "MRR"}
    collateral = {"perplexity_before": "perplexity before", "perplexity_growth": "growth"}
    collateral |= {"accuracy_before": "accuracy before", "accuracy_after": "accuracy after"}
    says = effects[(effects.neurons == "found") & (effects.asked == "own wording")].says
    return (
        f"{len(case.new_objects)} updates, neurons {sizes}\n\n{cells(questions, answers, ['neurons', 'asked'])}\n\n"
        f"{cells(others, collateral, ['neurons', 'asked'])}\n\nMost frequent answers after: "
        f"{says.value_counts().head(5).to_dict()}\n"
    )


def dose_curve(case: Case) -> str:
    """Scale the updates."""
    effects = kn.update_effects(case.model, case.new_objects, case.own, case.own_active, doses=DOSES)
    columns = {"changed": "changed", "success": "success", "mrr": "MRR"}
    everything = kn.update_effects(case.model, case.new_objects, case.found, case.active)
    return (
        f"{cells(effects, columns, ['neurons', 'dose'])}\n\nWith the neurons of the relation:\n\n"
        f"{cells(everything, columns, ['neurons', 'dose'])}\n"
    )


def erasing(case: Case) -> str:
    """Erase every relation, and ask for all facts in three held-out wordings."""
    prompts = kn.make_prompts(case.model, sampled(kn.FactSet.world("held_out"), 3, object_last=True))
    effects = kn.erase_effects(case.model, prompts, case.found, case.active)
    growth = {"perplexity_before": "perplexity before", "perplexity_after": "after", "perplexity_growth": "growth"}
    growth |= {"accuracy_before": "accuracy before", "accuracy_after": "after"}
    found = effects[effects.neurons == "found"]
    return (
        f"{cells(effects, growth, ['neurons', 'asked'])}\n\n"
        f"{cells(found, growth, ['relation', 'asked'], by_relation=True)}\n"
    )


def readout(case: Case) -> str:
    """Ask the head what the embedding of each answer says, and update towards other directions."""
    host = kn.host_of(case.model)
    prompts = kn.make_prompts(case.model, case.trained)
    single = prompts.select((prompts.rows_per_prompt == 1).nonzero().squeeze(1))
    resid = _final_resid(host, single)
    answers = single.target_ids.unique()
    mean = torch.stack([resid[single.target_ids == answer].mean(0) for answer in answers])
    centre, length = mean.mean(0), resid.norm(dim=-1).mean()
    embedding = token_embeddings(host, answers).float()

    def unit(rows: torch.Tensor) -> torch.Tensor:
        return rows / rows.norm(dim=-1, keepdim=True)

    at = centre.expand(len(answers), -1).clone().requires_grad_()
    logits = host.unembed(at)
    own = logits.gather(1, answers[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad((own - logits.mean(1)).sum(), at)
    directions = {"embedding e(t)": embedding, "mean stream of t": mean - centre, "gradient of t's logit": gradient}
    lines = ["| direction | cosine with the mean stream of t | read off by the head: median rank of t | t on top |"]
    lines += ["|---|---|---|---|"]
    for name, rows in directions.items():
        with torch.no_grad():
            read_off = host.unembed(length * unit(rows))
        rank = (read_off > read_off.gather(1, answers[:, None])).sum(1).double()
        cosine = (unit(rows) * unit(mean - centre)).sum(-1).mean()
        lines.append(
            f"| {name} | {cosine:.3f} | {rank.median():.0f} of {host.d_vocab} | {(rank == 0).double().mean():.1%} |"
        )
    direct = embedding @ host.W_E.T.float()  # tied: what a head without a transform reads
    on_top = (direct.argmax(-1) == answers).double().mean()
    lines += ["", f"e(t) times the unembedding alone: t on top {on_top:.1%}"]
    lines += ["", "| direction | changed | success |", "|---|---|---|"]
    place = {int(answer): i for i, answer in enumerate(answers)}
    for name, rows in directions.items():
        changed, success = [], []
        for fact, new in case.new_objects.items():
            now, then = (kn.make_prompts(case.model, one) for one in (fact, replace(fact, object=new)))
            tokens = {int(batch.target_ids[0]) for batch in (now, then)}
            if now.n_rows != len(now) or then.n_rows != len(then) or not tokens <= place.keys():
                continue
            neurons = case.own[fact]
            old = Rows.of(host, neurons).read()
            away, to = (unit(rows[place[int(batch.target_ids[0])]]) for batch in (now, then))
            new_rows = old + old.norm(dim=-1, keepdim=True) * (8 * to - away)
            with kn.WeightEdit.of(case.model, neurons, new_rows).applied(case.model):
                changed.append(float((kn.measure(case.model, now, []).rank_before != 0).mean()))
                success.append(float((kn.measure(case.model, then, []).rank_before == 0).mean()))
        lines.append(f"| {name} ({len(success)} updates) | {np.mean(changed):.1%} | {np.mean(success):.1%} |")
    return "\n".join(lines) + "\n"


def _final_resid(host: Any, prompts: kn.PromptBatch) -> torch.Tensor:
    """Return what the head reads, before its norm or transform, for each prompt."""
    parts = []
    for chosen in torch.arange(len(prompts)).split(256):
        part = prompts.select(chosen)

        def keep(resid: torch.Tensor, hook: object = None, part: kn.PromptBatch = part) -> None:
            parts.append(resid[torch.arange(len(part)), part.read_pos])

        with torch.no_grad():
            host.logits(part.tokens, part.attention_mask, part.read_pos, [(host.resid_post(host.n_layers - 1), keep)])
    return torch.cat(parts)


def cost() -> str:
    """Time applying and undoing 1,000 rows beside a forward pass of one prompt, at the size of BERT-base."""
    from transformers import BertConfig, BertForMaskedLM

    model = kn.load_model(BertForMaskedLM(BertConfig()).eval())
    host = kn.host_of(model)
    draw = np.random.default_rng(0)
    places = draw.choice(host.n_layers * host.d_mlp, 1000, replace=False)
    neurons = kn.NeuronSet(divmod(int(place), host.d_mlp) for place in places)
    edit = kn.erase_neurons(model, neurons)
    tokens = torch.from_numpy(draw.integers(1000, 20000, (1, 12)))
    seconds: dict[str, list[float]] = {"apply": [], "undo": [], "forward": []}

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    steps = {"apply": lambda: edit.apply_(model), "undo": lambda: edit.undo_(model), "forward": forward}
    for _ in range(15):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    listed = ", ".join(f"{name} {1000 * float(np.median(taken[3:])):.0f} ms" for name, taken in seconds.items())
    return f"{len(neurons)} rows, one prompt of 12 tokens, {torch.get_num_threads()} thread(s), medians: {listed}\n"


PARTS = {"update": updates, "dose": dose_curve, "readout": readout, "erase": erasing}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--facts-per-relation", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "cost"], default=[*PARTS, "cost"])
    args = parser.parse_args()
    for name in args.names if set(args.only) - {"cost"} else ():
        case = prepared(name, args.facts_per_relation)
        for part in args.only:
            if part in PARTS:
                started = time.perf_counter()
                text = PARTS[part](case)
                print(f"### {name}: {part} ({time.perf_counter() - started:.0f} s)\n\n{text}", flush=True)
    if "cost" in args.only:
        print(cost(), flush=True)


if __name__ == "__main__":
    main()
