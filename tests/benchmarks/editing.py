"""What edits do to the embedded models, and what they cost: the tables of docs/editing.md.

    python -m tests.benchmarks.editing [NAME ...] [--facts-per-relation 10] [--only update dose readout erase cost]
    python -m tests.benchmarks.editing NAME ... --only strength

``strength`` compares updates with and without the signs of activations over a grid of lambdas, and shows what
``choose_lambdas`` makes of it; its models may be ``tiny-gated``, a small model with gated MLPs that is trained on the
facts first, or a folder with a checkpoint of any model, which is queried less (``PRETRAINED``). Facts that the model
knows are taken, their neurons found with five points of a fixed rule.

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
from kn_lens.edits.value_rows import ValueRows
from kn_lens.hosts.unwrap import token_embeddings
from tests.benchmarks.world import sampled

MODELS = ("world-bert", "world-gpt2")
DOSES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
MAX_SHARE = 0.1
INVERSE = {"P36": "P1376", "P1376": "P36"}


class Size(NamedTuple):
    """How much ``strength`` takes: facts, their own and held-out wordings, and right answers to other facts."""

    facts: int
    own: int
    held_out: int
    others: int


SMALL, PRETRAINED = Size(24, 6, 2, 60), Size(8, 4, 2, 30)


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
                    model,
                    fact,
                    new,
                    found[fact],
                    neurons_by_fact=found,
                    max_share=MAX_SHARE,
                    signed=False,
                    allow_unknown=True,
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


def known_facts(model: Any, facts: kn.FactSet, n_facts: int, least: int = 3) -> list[kn.Fact]:
    """Return the first facts of which a model gives the answer first in at least half of three or more prompts."""
    known: list[kn.Fact] = []
    for start in range(0, len(facts), 20):
        prompts = kn.make_prompts(model, facts[start : start + 20], unknown_answers="leave_out")
        right: dict[kn.Fact, list[bool]] = {}
        for number, rank in enumerate(kn.measure(model, prompts, []).rank_before):
            right.setdefault(prompts.fact(number), []).append(rank == 0)
        known += [fact for fact, seen in right.items() if len(seen) >= least and np.mean(seen) >= 0.5]
        if len(known) >= n_facts:
            break
    return known[:n_facts]


def tiny_gated() -> Any:
    """Return a Llama of 3 layers with 256 gated neurons each, trained on all facts in six wordings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    teacher = kn.host_of(kn.load_model("world-gpt2"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=teacher.d_vocab, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    prompts = kn.make_prompts(teacher.model, sampled(kn.FactSet.world("trained"), 6, object_last=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)
    n_steps, draw = 600, torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=n_steps)
    for _ in range(n_steps):
        rows = torch.randint(prompts.n_rows, (128,), generator=draw)
        tokens, mask = prompts.tokens[rows], prompts.attention_mask[rows]
        logits = network(input_ids=tokens, attention_mask=mask).logits[torch.arange(128), prompts.read_pos[rows]]
        loss = torch.nn.functional.cross_entropy(logits, prompts.target_ids[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return kn.load_model(network.eval(), tokenizer=teacher.tokenizer)


def strength(name: str) -> str:
    """Update some facts by both forms and all strengths; choose a strength on half of them, and use it on the rest."""
    size = SMALL if name in (*MODELS, "tiny-gated") else PRETRAINED
    model = tiny_gated() if name == "tiny-gated" else kn.load_model(name)
    causal = kn.host_of(model).kind == "causal"
    trained, held_out = kn.FactSet.world("trained"), kn.FactSet.world("held_out")
    draw = np.random.default_rng(0)
    everything = sampled(trained, size.own, causal)
    known = known_facts(model, kn.FactSet(everything[i] for i in draw.permutation(len(everything))), size.facts)
    prompts = kn.make_prompts(model, known, unknown_answers="leave_out")
    found = kn.refine(kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=5))
    new = {}
    for fact in known:
        answers = sorted({other.object for other in trained.of(fact.relation)} - {fact.object})
        if found[fact]:
            new[fact] = str(draw.choice(answers))
    to_choose, to_edit = dict(list(new.items())[::2]), dict(list(new.items())[1::2])
    wordings = sampled(held_out, size.held_out, causal)
    others = right_answers(model, sampled(held_out, 1, causal), size.others)
    relations = {others.fact(number).relation for number in range(len(others))}
    edits = [kn.update_fact(model, fact, one, found[fact]) for fact, one in new.items()]
    n_negative, n_rows = sum(edit.why[0]["n_negative"] for edit in edits), sum(len(edit.neurons) for edit in edits)
    lines = [
        f"{len(new)} facts with neurons, {len(to_choose)} to choose on; {n_negative} of {n_rows} rows below 0; "
        f"{len(others)} right answers to other facts, of {len(relations)} relations"
    ]
    tables = []
    for form in ("signed", "unsigned"):
        how = {"signed": form == "signed", "others": others}
        choice = kn.choose_lambdas(model, to_choose, found, held_out=wordings, **how)
        lines += ["", f"{form}: {choice}", "", choice.table.round(3).to_string(index=False)]
        questions = {"held out": kn.reworded(wordings, to_edit)}
        for lambdas in sorted({choice.lambdas, (1.0, 2.0), (1.0, 8.0)}):
            effects = kn.update_effects(model, to_edit, found, questions=questions, lambdas=lambdas, **how)
            tables += [
                {"form": form, "lambdas": lambdas, "neuron_set": kind, **summed(part)}
                for kind, part in effects.groupby("neuron_set")
            ]
    return "\n".join([*lines, "", pd.DataFrame(tables).round(3).to_string(index=False)]) + "\n"


def right_answers(model: Any, facts: kn.FactSet, n: int) -> kn.PromptBatch:
    """Return prompts, as many as requested or all there are in a fifth of the facts, that a model answers rightly."""
    prompts = kn.make_prompts(model, kn.FactSet(facts[::5]), unknown_answers="leave_out")
    right = np.flatnonzero(kn.measure(model, prompts, []).rank_before == 0)
    return prompts.select(torch.from_numpy(np.sort(np.random.default_rng(0).permutation(right)[:n])))


def summed(effects: pd.DataFrame) -> dict[str, float]:
    """Return the means over facts that the form of an update is judged by."""
    by_question = dict(list(effects.groupby("question")))
    success = {f"success, {name}": by_question[name].new_right_after.mean() for name in ("own wording", "held out")}
    scopes = [name for name in ("same relation", "other relations") if name in by_question]
    kept = {f"right after, {name}": by_question[name].right_after.mean() for name in scopes}
    own = by_question["own wording"]
    return {**success, **kept, "disturbed": own.disturbed.mean(), "disturbing": own.disturbs.mean()}


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
        preset="official",
        questions={
            "held out": kn.reworded(held_out, case.new_objects),
            "inverse": kn.inverse_questions(held_out, case.new_objects, INVERSE),
        },
        others=kn.make_prompts(case.model, last),
    )
    sizes = effects[effects.question == "own wording"].groupby("neuron_set").n_neurons.mean().round(1).to_dict()
    questions = effects[effects.new_nll_after.notna()]
    others = effects[effects.new_nll_after.isna()]
    answers = {"changed": "changed", "success": "success", "top5": "top 5"}
    answers |= {"rank_before": "rank before", "rank": "rank", "mrr_before": "MRR before", "mrr": "MRR"}
    collateral = {"perplexity_before": "perplexity before", "perplexity_growth": "growth"}
    collateral |= {"accuracy_before": "accuracy before", "accuracy_after": "accuracy after"}
    says = effects[(effects.neuron_set == "found") & (effects.question == "own wording")].says
    return (
        f"{len(case.new_objects)} updates, neurons {sizes}\n\n"
        f"{cells(questions, answers, ['neuron_set', 'question'])}\n\n"
        f"{cells(others, collateral, ['neuron_set', 'question'])}\n\nMost frequent answers after: "
        f"{says.value_counts().head(5).to_dict()}\n"
    )


def dose_curve(case: Case) -> str:
    """Scale the updates."""
    effects = kn.update_effects(case.model, case.new_objects, case.own, case.own_active, doses=DOSES, preset="official")
    columns = {"changed": "changed", "success": "success", "mrr": "MRR"}
    everything = kn.update_effects(case.model, case.new_objects, case.found, case.active, preset="official")
    return (
        f"{cells(effects, columns, ['neuron_set', 'dose'])}\n\nWith the neurons of the relation:\n\n"
        f"{cells(everything, columns, ['neuron_set', 'dose'])}\n"
    )


def erasing(case: Case) -> str:
    """Erase every relation, and ask for all facts in three held-out wordings."""
    prompts = kn.make_prompts(case.model, sampled(kn.FactSet.world("held_out"), 3, object_last=True))
    effects = kn.erase_effects(case.model, prompts, case.found, case.active)
    growth = {"perplexity_before": "perplexity before", "perplexity_after": "after", "perplexity_growth": "growth"}
    growth |= {"accuracy_before": "accuracy before", "accuracy_after": "after"}
    found = effects[effects.neuron_set == "found"]
    return (
        f"{cells(effects, growth, ['neuron_set', 'question'])}\n\n"
        f"{cells(found, growth, ['relation', 'question'], by_relation=True)}\n"
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
            old = ValueRows.of(host, neurons).read()
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
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "strength", "cost"], default=[*PARTS, "cost"])
    args = parser.parse_args()
    if "strength" in args.only:
        for name in args.names:
            started = time.perf_counter()
            text = strength(name)
            print(f"### {name}: strength ({time.perf_counter() - started:.0f} s)\n\n{text}", flush=True)
    for name in args.names if set(args.only) - {"cost", "strength"} else ():
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
