"""Stage ``texts``: the activation of a fact's neurons on sentences about it; Table 3, and sentences of most and least.

Sentences with head and tail are read at the tail. Sentences with the head only, and random sentences, are read at a
random word. A masked model reads the sentence with this word masked; a causal model reads the text before it, in which
the head must be. The sentences come from the setting ``texts``. Without it they are the sentences of all facts of the
data, so that those with head and tail include the fact's own prompts, and the table says less than one of texts that no
neuron was found on.

Records, one row for each sentence:

    relation, key
    texts                        ``head and tail``, ``head only`` or ``random``
    text                         as the model reads it
    word                         the word that it does not read
    found, activation, random    mean activation of the fact's neurons of this kind

Facts without sentences of both of the first two kinds have no records, as in the released code.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens._core.bootstrap import bootstrap_table, fact_mean, with_control
from kn_lens.attribution import attribute_in_parts
from kn_lens.errors import NoPromptError
from kn_lens.facts import Fact
from kn_lens.prompts import PromptBatch, placeholder_token
from kn_lens.runs.context import RunContext
from kn_lens.runs.corpora import corpus_of, place_of, places_of
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.neurons import NEURONS

if TYPE_CHECKING:
    import pandas as pd

BOTH, HEAD, RANDOM = "head and tail", "head only", "random"
KINDS = ("found", "activation", "random")
PAPER = {BOTH: 0.485, HEAD: 0.019, RANDOM: -0.018}
"""Dai et al. (2022), Table 3: bert-base-cased on BingRel."""
EXAMPLES = 3
"""Number of sentences of highest, and of lowest, activation that the table of examples has for a fact."""

TEXTS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("texts", pa.string()),
        ("text", pa.string()),
        ("word", pa.string()),
        ("found", pa.float64()),
        ("activation", pa.float64()),
        ("random", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Cloze:
    """A sentence with one word to predict.

    Attributes:
        fact: the fact that the sentence was chosen for.
        texts: kind of sentence: ``BOTH``, ``HEAD`` or ``RANDOM``.
        word: the word to predict.
        template: the text that the model reads, with ``[Y]`` in the place of the word.
    """

    fact: Fact
    texts: str
    word: str
    template: str


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    sets = {kind: context.neurons(kind, shard.relation) for kind in KINDS}
    clozes = []
    for fact, fact_clozes in _clozes(context, context.queried_facts(shard.relation)):
        if sets["found"][fact]:
            clozes += fact_clozes
    prompts = _cloze_prompts(context, clozes)
    if prompts is None:
        write_rows(path, [], TEXTS_SCHEMA)
        return
    rows: list[dict[str, Any]] = [{} for _ in range(len(prompts))]
    parts = attribute_in_parts(
        context.host,
        prompts,
        method="activation",
        memory_budget=context.memory_budget,
        progress=progress,
    )
    for prompt_ids, activations in parts:
        for position, prompt in enumerate(prompt_ids.tolist()):
            cloze = clozes[int(prompts.fact(prompt).uid)]
            row = {
                "relation": cloze.fact.relation,
                "key": cloze.fact.key,
                "texts": cloze.texts,
                "text": prompts.text[prompt],
                "word": cloze.word,
            }
            for kind in KINDS:
                values = activations[position : position + 1].scores_of(sets[kind][cloze.fact])
                row[kind] = float(values.double().mean())
            rows[prompt] = row
    write_rows(path, rows, TEXTS_SCHEMA)


def _cloze_prompts(context: RunContext, clozes: Sequence[Cloze]) -> PromptBatch | None:
    """Return the prompts of the clozes whose words can be answers; None where there are none.

    The ``uid`` of a prompt's fact is the number of its cloze.
    """
    if not clozes:
        return None
    facts = []
    for number, cloze in enumerate(clozes):
        facts.append(Fact("", cloze.texts, cloze.word, (cloze.template,), uid=str(number)))
    try:
        return context.make_prompts(facts)
    except NoPromptError:  # the vocabulary can write none of the words
        return None


def _clozes(context: RunContext, facts: Sequence[Fact]) -> Iterator[tuple[Fact, list[Cloze]]]:
    """Yield the clozes of each fact that has sentences with head and tail, and with the head only."""
    settings, whole = context.settings, context.host.reads_whole_text
    corpus = corpus_of(settings.texts, facts, context.source)
    is_readable = _ReadableSentence(context)
    for fact in facts:
        passages = corpus.passages.get(fact)
        if passages is None or not (passages.both and passages.head):
            continue
        generator = context.generator("texts", fact.key)
        clozes: dict[str, list[Cloze]] = {BOTH: [], HEAD: [], RANDOM: []}
        for texts, sentences in (
            (BOTH, passages.both),
            (HEAD, passages.head),
            (RANDOM, corpus.sentences),
        ):
            wanted = len(clozes[BOTH]) if texts == RANDOM else settings.text_sentences
            for index in generator.permutation(len(sentences)):
                if len(clozes[texts]) == wanted:
                    break
                sentence = sentences[index]
                span = _word_span(fact, texts, sentence, whole, generator)
                if span is None or not is_readable(sentence):
                    continue
                start, end = span
                text_after = sentence[end:] if whole else ""
                cloze = Cloze(fact, texts, sentence[start:end], f"{sentence[:start]}[Y]{text_after}")
                clozes[texts].append(cloze)
        if clozes[BOTH] and clozes[HEAD]:
            yield fact, [*clozes[BOTH], *clozes[HEAD], *clozes[RANDOM]]


def _word_span(
    fact: Fact, texts: str, sentence: str, whole: bool, generator: np.random.Generator
) -> tuple[int, int] | None:
    """Return start and end of the word to predict; None where the sentence has none, or is not of this kind."""
    head = place_of(fact.subject, sentence)
    if (head is None) == (texts != RANDOM):
        return None
    if whole:
        first = 0
    elif head is not None:
        first = head[1]
    else:
        n_blanks = len(sentence) - len(sentence.lstrip())  # a causal model needs more than blanks to read
        first = n_blanks + 1
    if texts == BOTH:
        spans = places_of(fact.object, sentence)
    else:
        spans = [match.span() for match in re.finditer(r"\w+", sentence)]
    candidates = []
    for start, end in spans:
        overlaps_head = head is not None and start < head[1] and head[0] < end
        if start >= first and not overlaps_head:
            candidates.append((start, end))
    if not candidates:
        return None
    return candidates[0] if texts == BOTH else candidates[generator.integers(len(candidates))]


class _ReadableSentence:
    """Predicate of sentences that the model can read.

    They have no template slot and no token that stands for an answer, and fit in the context.
    """

    def __init__(self, context: RunContext) -> None:
        self.tokenizer = context.host.tokenizer
        self.max_tokens = context.host.n_ctx or math.inf
        self.reserved = ["[X]", "[Y]"]
        placeholder = placeholder_token(self.tokenizer, context.host.kind)
        if placeholder is not None:
            self.reserved.append(placeholder)

    def __call__(self, sentence: str) -> bool:
        if any(text in sentence for text in self.reserved):
            return False
        return len(self.tokenizer(sentence, verbose=False)["input_ids"]) <= self.max_tokens


def examples(records: "pd.DataFrame", key: str, n: int = EXAMPLES) -> "pd.DataFrame":
    """Return the sentences under which the neurons of a fact are most active, and least active.

    Args:
        records: records of this stage.
        key: key of the fact.
        n: number of sentences of each end.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"relation": "P36", "key": "k", "texts": RANDOM, "found": [0.1, 0.9, 0.3]})
    >>> examples(records.assign(text=list("abc"), word="w"), "k", n=1)[["end", "text"]].values.tolist()
    [['top', 'b'], ['bottom', 'a']]
    """
    import pandas as pd

    sentences = records.query("key == @key").sort_values("found", ascending=False, kind="stable")
    top = sentences.head(n).assign(end="top")
    bottom = sentences.tail(n).iloc[::-1].assign(end="bottom")
    columns = ["relation", "key", "end", "found", "texts", "text", "word"]
    return pd.concat([top, bottom], ignore_index=True).reindex(columns=columns)


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return mean activations (over a fact's sentences, then facts, then relations), and examples of a fact each."""
    import pandas as pd

    settings = context.settings
    records = context.all_records(TEXTS)
    if records.empty:
        return {}
    labels = ["relation", "key", "texts"]
    sentences = records.melt(labels, list(KINDS), var_name="neuron_set", value_name="mean")
    by_set = sentences.groupby([*labels, "neuron_set"], sort=False, as_index=False)
    means = by_set.agg({"mean": "mean"})
    tables = {}
    for name, by_relation in (("activation_on_texts", False), ("activation_on_texts_by_relation", True)):
        table = bootstrap_table(
            means,
            ["texts", "neuron_set"],
            fact_mean("mean"),
            by_relation=by_relation,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
        paper = []
        for texts, kind in zip(table["texts"], table["neuron_set"], strict=True):
            in_paper = kind == "found" and not by_relation
            paper.append(PAPER[texts] if in_paper else np.nan)
        tables[name] = with_control(table).assign(paper=paper)
    parts = []
    for relation, group in records.groupby("relation", sort=False):
        keys = group["key"].unique()
        generator = context.generator("examples", str(relation))
        parts.append(examples(records, keys[generator.integers(len(keys))]))
    tables["texts_of_most_and_least"] = pd.concat(parts, ignore_index=True)
    return tables


def _passes(context: RunContext, shard: Shard) -> Passes:
    """Count the passes at most: with the full number of sentences of each kind for every fact with neurons."""
    n_facts = len(context.queried_facts(shard.relation)) * context.share_with_neurons(shard.relation)
    return Passes(whole=3 * context.settings.text_sentences * n_facts)


TEXTS = Stage(
    name="texts",
    title="Activation on texts",
    make=_make,
    tables=_tables,
    shown={"activation_on_texts": TableDisplay("Table 3: mean activation of a fact's neurons on texts")},
    needs=(NEURONS,),
    settings=("seed", "texts_digest", "text_sentences"),
    across=True,
    passes=_passes,
)
"""Activation on sentences; records of each sentence, tables ``activation_on_texts`` and ``texts_of_most_and_least``."""
