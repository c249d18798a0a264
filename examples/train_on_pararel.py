"""Train a masked language model that knows some of ParaRel, and write a checkpoint that ``kn.load_model`` takes.

    python examples/train_on_pararel.py pararel/ --out pararel-model/
    kn-lens find --model pararel-model/ --facts pararel-model/facts.jsonl --subject "Cook County"

For trying kn_lens where no pretrained model is at hand, and for checks against known content: the model reads some
facts of each relation in all their templates but one, and nothing else. In most sentences the answer is masked, in
the others any word may be. ``MODEL_CARD.md`` tells what it came to know, ``facts.jsonl`` holds what it was taught.

The seed draws facts, templates, weights and the order of the text: on one machine, with one number of threads, the
same command gives the same checkpoint, unless ``--minutes`` cuts the training short.
"""

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from transformers import BertTokenizer

import kn_lens as kn
from kn_lens.world.training.corpus import N_CTX, Sentence, batches, tokenize, train_tokenizer
from kn_lens.world.training.networks import Network, build, logits_at
from kn_lens.world.training.objective import masked_batch
from kn_lens.world.training.recipes import Recipe

SMALL = Recipe(
    name="small", kind="bert", steps=0, batch_size=128, lr=2e-3, dropout=0.0, vocab_size=8000, n_heads=8, init_std=0.06,
    branch_scale=0.2, label_smoothing=0.1, prefix_share=0.0, drop_share=0.05, insert_share=0.0,
)  # fmt: skip
BASE = replace(
    SMALL, name="base", lr=1e-4, warmup=1000, dropout=0.1, init_std=0.02, n_layers=12, d_model=768, n_heads=12,
    d_mlp=3072,
)  # fmt: skip
SIZES = {recipe.name: recipe for recipe in (SMALL, BASE)}
"""``base`` has the shape of BERT-base."""


def draw(facts: Sequence[kn.Fact], n: int, rng: np.random.Generator) -> kn.FactSet:
    """Draw up to ``n`` facts of each relation, one for each subject: no model can give two answers at once."""
    chosen: list[kn.Fact] = []
    by_relation: dict[str, dict[str, kn.Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, {}).setdefault(fact.subject, fact)
    for group in by_relation.values():
        one_each = list(group.values())
        chosen += [one_each[i] for i in sorted(rng.permutation(len(one_each))[:n])]
    return kn.FactSet(chosen)


def hold_out(facts: kn.FactSet, n: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Return the templates, ``n`` of each relation marked as held out."""
    rows = []
    for relation in facts.relations:
        templates = facts.of(relation)[0].templates
        if len(templates) <= n:
            raise kn.ArgumentError(f"--held-out {n}: {relation} has {len(templates)} templates, and some must be read.")
        out = set(rng.permutation(len(templates))[:n].tolist())
        for i, template in enumerate(templates):
            rows.append({"relation": relation, "pattern": template, "split": "held_out" if i in out else "trained"})
    return rows


def make_tokenizer(facts: kn.FactSet, vocab_size: int) -> BertTokenizer:
    """Make a WordPiece tokenizer of frequent pieces, in which every word of an answer is one token."""
    texts = [fact.subject for fact in facts] + sorted({template for fact in facts for template in fact.templates})
    answers = sorted({fact.object for fact in facts})
    pieces = train_tokenizer("bert", texts + answers, vocab_size)
    tokens = sorted(pieces.get_vocab(), key=pieces.get_vocab().__getitem__)
    split = pieces.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    whole = sorted({word for answer in answers for word, _ in split(answer)} - set(tokens))
    vocab = {token: i for i, token in enumerate(tokens + whole)}
    return BertTokenizer(vocab=vocab, do_lower_case=False, strip_accents=False, model_max_length=N_CTX)


def train(
    network: Network, tokenizer: BertTokenizer, sentences: Sequence[Sentence], recipe: Recipe, minutes: float,
    rng: np.random.Generator,
) -> tuple[int, float]:  # fmt: skip
    """Train in place until the steps or the minutes are over; returns how many of both it took.

    The learning rate falls along a cosine to zero, over what ends first.
    """
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    stream = batches(
        sentences, [1.0] * len(sentences), batch_size=recipe.batch_size, steps=recipe.steps, prefixes=(),
        prefix_share=recipe.prefix_share, drop_share=recipe.drop_share, insert_share=recipe.insert_share, rng=rng,
    )  # fmt: skip
    began, spent, step = time.perf_counter(), 0.0, 0
    recent: deque[tuple[float, float]] = deque(maxlen=50)
    for step, chosen in enumerate(stream, start=1):
        warm = min(1.0, step / recipe.warmup)
        done = max((step - 1) / recipe.steps, spent / minutes)
        optimizer.param_groups[0]["lr"] = recipe.lr * warm * (1 + math.cos(math.pi * done)) / 2
        batch = masked_batch(chosen, tokenizer, rng)
        inputs = batch.tokens, batch.attention_mask, batch.rows, batch.positions, batch.targets, batch.is_object
        tokens, attention_mask, rows, positions, targets, is_object = (tensor.to(network.device) for tensor in inputs)
        logits = logits_at(network, tokens, attention_mask, rows, positions)
        loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=recipe.label_smoothing)
        weighted = torch.where(is_object, 1.0, recipe.context_weight) * loss
        optimizer.zero_grad(set_to_none=True)
        (weighted.sum() / is_object.sum().clamp(min=1)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        right = (logits.argmax(-1) == targets)[is_object]
        recent.append((loss[is_object].mean().item(), right.float().mean().item()))
        spent = (time.perf_counter() - began) / 60
        last = step == recipe.steps or spent >= minutes
        if last or step % 50 == 0:
            means = np.nanmean(recent, axis=0)
            shown = f"loss {means[0]:.3f}, accuracy {means[1]:.1%}"
            sys.stderr.write(f"step {step}/{recipe.steps}, {spent:.1f} min: {shown} on masked answers\n")
        if last:
            break
    return step, spent


def ask(model: Any, facts: kn.FactSet) -> pd.DataFrame:
    """Ask for facts in all their templates: one row a prompt, ``relation``, ``template`` and ``right``."""
    prompts = kn.make_prompts(model, facts)
    best = kn.predict(model, prompts, k=1)
    right = (best["token_id"] == prompts.target_ids.cpu().numpy()).groupby(best["prompt"]).all()
    relation = [prompts.facts[i].relation for i in prompts.fact_index.tolist()]
    return pd.DataFrame({"relation": relation, "template": prompts.template, "right": right.to_numpy()})


def model_card(about: str, taught: pd.DataFrame, unread: pd.DataFrame, held_out: set[tuple[str, str]]) -> str:
    """Return what the model was taught and came to know."""
    is_out = np.array([pair in held_out for pair in zip(taught["relation"], taught["template"], strict=True)])
    columns = taught[~is_out], taught[is_out], unread
    rows = []
    for relation in ("all", *taught["relation"].unique()):
        shares = []
        for answers in columns:
            if relation != "all":
                answers = answers[answers["relation"] == relation]
            shares.append(f"{answers['right'].mean():.1%} of {len(answers):,}" if len(answers) else "")
        rows.append(f"| {relation} | {' | '.join(shares)} |\n")
    return (
        f"# A model that knows some of ParaRel\n\n{about}\n\n"
        "A prompt is right if every token of the answer is the most probable one. Facts never read (at most as many,\n"
        "drawn like the others) show what can be guessed from the answers that a relation has.\n\n"
        "| relation | facts read, templates read | facts read, templates held out | facts never read |\n"
        "|---|---|---|---|\n" + "".join(rows)
    )


def run(options: argparse.Namespace) -> None:
    """Draw, train, write the checkpoint, ask it, and write its card."""
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    source = kn.FactSet.from_pararel(options.pararel, relations=options.relations)
    facts = draw(source, options.facts, rng)
    templates = hold_out(facts, options.held_out, rng)
    recipe = SIZES[options.size]
    steps = math.ceil(options.times * len(facts) / recipe.batch_size)
    recipe = replace(recipe, steps=steps, warmup=min(recipe.warmup, math.ceil(steps / 10)))
    tokenizer = make_tokenizer(source, recipe.vocab_size)
    read_templates = [template for template in templates if template["split"] == "trained"]
    sentences = tokenize(tokenizer, facts.to_frame().to_dict("records"), read_templates)
    longest = max(len(sentence.tokens) for sentence in sentences) + 2
    if longest > N_CTX:
        raise kn.DataError(f"A sentence has {longest} tokens, and the model reads {N_CTX}: shorten or drop its fact.")
    network = build(recipe, tokenizer).to(options.device).train()
    sys.stderr.write(f"{len(facts):,} facts, {len(sentences):,} sentences, {len(tokenizer):,} tokens\n")
    steps, minutes = train(network, tokenizer, sentences, recipe, options.minutes, rng)
    network.eval().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts.to_jsonl(options.out / "facts.jsonl")

    model = kn.load_model(options.out, device=options.device)
    taught = ask(model, facts)
    known = {(fact.relation, fact.subject) for fact in facts}
    rest = draw([fact for fact in source if (fact.relation, fact.subject) not in known], options.facts, rng)
    unread = ask(model, rest) if rest else taught.head(0)
    about = (
        f"A masked language model trained from scratch on {len(facts):,} facts of {len(facts.relations)} relations of "
        f"ParaRel, and on nothing else.\n{recipe.n_layers} layers of width {recipe.d_model} with {recipe.d_mlp} "
        f"neurons; facts drawn with seed {options.seed}; templates held out of each relation: {options.held_out}.\n"
        f"{steps:,} steps of {recipe.batch_size} sentences in {minutes:.1f} minutes: each fact was read "
        f"{steps * recipe.batch_size / len(facts):.0f} times."
    )
    held_out = {(row["relation"], row["pattern"]) for row in templates if row["split"] == "held_out"}
    (options.out / "MODEL_CARD.md").write_text(model_card(about, taught, unread, held_out), encoding="utf-8")
    sys.stdout.write(f"{options.out}: right in {taught['right'].mean():.1%} of the prompts for the facts it read\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; what is wrong with it, or with the data, ends it with exit code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pararel", type=Path, help="folder that holds ParaRel's patterns/ and facts/")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint: new or empty")
    parser.add_argument("--size", choices=SIZES, default="small", help="default: %(default)s")
    parser.add_argument("--facts", type=int, default=100, help="of each relation at most (default: %(default)s)")
    parser.add_argument("--relations", nargs="+", metavar="P36", help="only these (default: all with 4 templates)")
    parser.add_argument("--held-out", type=int, default=1, help="templates not read, of each (default: %(default)s)")
    parser.add_argument("--times", type=float, default=100, help="that each fact is read (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most (default: no limit)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.facts < 1 or options.times <= 0 or options.minutes <= 0 or options.held_out < 0:
        parser.error("--facts, --times and --minutes must be above 0, --held-out 0 or more.")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out} is there already; name a new or empty directory.")
    try:
        torch.empty(0, device=options.device)
    except (AssertionError, RuntimeError) as error:  # how torch says so depends on how it was built
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    try:
        run(options)
    except kn.KNLensError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
