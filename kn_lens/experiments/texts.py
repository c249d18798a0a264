"""Stage ``texts``: which texts fire a fact's neurons; the table of mean activations, and sentences of most and least.

Sentences with head and tail are read where the tail is to come, those with the head only and random ones at a random
word: a masked model's word is masked, a causal model reads what comes before it (and so the head must). Texts come from
the setting ``texts``; without it they are the sentences of all facts of the data, so that those with head and tail are
also the fact's own prompts, and the table says less than that of texts that no neuron was found on.

Records, one a sentence: ``relation``, ``key``; ``texts`` (``head and tail``, ``head only``, ``random``); ``text``, as
read, and the ``word`` that is not; the mean activation of the fact's neurons: ``found``, ``activation``, ``random``.
Facts without sentences of one of the first two kinds have none, as in the released code.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens._bootstrap import mean_of, summed_up, with_control
from kn_lens.attribution import attribute_in_parts
from kn_lens.errors import NoPromptError
from kn_lens.experiments import refining
from kn_lens.experiments.corpora import corpus_of, place_of, places_of
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

BOTH, HEAD, RANDOM = "head and tail", "head only", "random"
KINDS = ("found", "activation", "random")
PAPER = {BOTH: 0.485, HEAD: 0.019, RANDOM: -0.018}
"""Dai et al. (2022), Table 3: bert-base-cased on BingRel."""
EXAMPLES = 3
"""Sentences of highest and of lowest activation that the table of examples has for a fact."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "texts", "text", "word")),
        *((name, pa.float64()) for name in KINDS),
    ]
)


def _make(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    facts = study.asked_facts(shard.relation)
    sets = {kind: study.neurons(kind, shard.relation) for kind in KINDS}
    clozes = [cloze for fact in _fitting(study, facts) for cloze in fact if sets["found"][cloze[0]]]
    rows: list[dict[str, Any]] = []
    prompts = _asked(study, clozes)
    if prompts is not None:
        rows = [{} for _ in range(len(prompts))]
        parts = attribute_in_parts(
            study.host.model, prompts, method="activation", memory_budget=study.memory_budget, progress=tick
        )
        for numbers, part in parts:
            for row, number in enumerate(numbers.tolist()):
                fact, texts, word, _ = clozes[int(prompts.fact(number).uid)]
                rows[number] = {"relation": fact.relation, "key": fact.key, "texts": texts, "word": word}
                rows[number]["text"] = prompts.text[number]
                for kind, of_fact in sets.items():
                    mine = [float(part.scores[row, one.layer, one.index]) for one in of_fact[fact]]
                    rows[number][kind] = float(np.mean(mine))
    write_records(path, {name: [row[name] for row in rows] for name in SCHEMA.names}, SCHEMA)


Cloze = tuple[Fact, str, str, str]
"""A fact, the kind of text, the word that is to come, and the text with ``[Y]`` in its place."""


def _asked(study: Study, clozes: Sequence[Cloze]) -> PromptBatch | None:
    """Return the prompts of those clozes whose words can be answers, by their number; None where there are none."""
    if not clozes:
        return None
    numbered = enumerate(clozes)
    try:
        return study.ask(Fact("", kind, word, (template,), uid=str(i)) for i, (_, kind, word, template) in numbered)
    except NoPromptError:  # all of them have a word that the vocabulary lacks
        return None


def _fitting(study: Study, facts: Sequence[Fact]) -> Iterator[list[Cloze]]:
    """Yield the clozes of each fact that has some of the first two kinds."""
    settings, masked = study.settings, study.host.kind == "masked"
    corpus = corpus_of(settings.texts, facts, study.source)
    usable = _Usable(study)
    for fact in facts:
        passages = corpus.passages.get(fact)
        if passages is None or not (passages.both and passages.head):
            continue
        generator = study.generator("texts", fact.key)
        clozes = {BOTH: [], HEAD: [], RANDOM: []}
        for texts, sentences in ((BOTH, passages.both), (HEAD, passages.head), (RANDOM, corpus.sentences)):
            wanted = len(clozes[BOTH]) if texts == RANDOM else settings.text_sentences
            for number in generator.permutation(len(sentences)):
                if len(clozes[texts]) == wanted:
                    break
                sentence = sentences[number]
                place = _place(fact, texts, sentence, masked, generator)
                if place is not None and usable(sentence):
                    start, end = place
                    template = f"{sentence[:start]}[Y]{sentence[end:] if masked else ''}"
                    clozes[texts].append((fact, texts, sentence[start:end], template))
        if clozes[BOTH] and clozes[HEAD]:
            yield [one for of_kind in clozes.values() for one in of_kind]


def _place(
    fact: Fact, texts: str, sentence: str, masked: bool, generator: np.random.Generator
) -> tuple[int, int] | None:
    """Return the place of the word that is to come; None where the sentence has none, or is not of its kind."""
    head = place_of(fact.subject, sentence)
    if (head is None) != (texts == RANDOM):
        return None
    blank = len(sentence) - len(sentence.lstrip())  # which alone is nothing to read an answer from
    first = 0 if masked else blank + 1 if head is None else head[1]
    places = (
        places_of(fact.object, sentence) if texts == BOTH else [one.span() for one in re.finditer(r"\w+", sentence)]
    )
    apart = [one for one in places if one[0] >= first and (head is None or one[1] <= head[0] or head[1] <= one[0])]
    if not apart:
        return None
    return apart[0] if texts == BOTH else apart[generator.integers(len(apart))]


class _Usable:
    """Tells sentences that can be asked: no slots of templates or masks in them, and no longer than the context."""

    def __init__(self, study: Study) -> None:
        self.tokenizer, self.n_ctx = study.host.tokenizer, study.host.n_ctx or math.inf
        self.reserved = ["[X]", "[Y]", *([self.tokenizer.mask_token] if study.host.kind == "masked" else [])]

    def __call__(self, sentence: str) -> bool:
        reserved = any(one in sentence for one in self.reserved)
        return not reserved and len(self.tokenizer(sentence, verbose=False)["input_ids"]) <= self.n_ctx


def examples(records: "pd.DataFrame", key: str, n: int = EXAMPLES) -> "pd.DataFrame":
    """Return the sentences under which a fact's neurons are most active, and least.

    Args:
        records: of this stage.
        key: of the fact.
        n: how many of each.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"relation": "P36", "key": "k", "texts": RANDOM, "found": [0.1, 0.9, 0.3]})
    >>> examples(records.assign(text=list("abc"), word="w"), "k", n=1)[["end", "text"]].values.tolist()
    [['top', 'b'], ['bottom', 'a']]
    """
    import pandas as pd

    mine = records.query("key == @key").sort_values("found", ascending=False, kind="stable")
    ends = [part.assign(end=end) for end, part in (("top", mine.head(n)), ("bottom", mine.tail(n).iloc[::-1]))]
    columns = ["relation", "key", "end", "found", "texts", "text", "word"]
    return pd.concat(ends, ignore_index=True).reindex(columns=columns)


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return mean activations (a fact's sentences, then facts, then relations), and examples of a fact a relation."""
    import pandas as pd

    records = study.all_records(STAGE)
    if records.empty:
        return {}
    labels = ["relation", "key", "texts"]
    sentences = records.melt(labels, list(KINDS), var_name="neurons", value_name="mean")
    means = sentences.groupby([*labels, "neurons"], sort=False, as_index=False).agg({"mean": "mean"})
    tables = {}
    for name, by_relation in (("activation_on_texts", False), ("activation_on_texts_by_relation", True)):
        table = summed_up(
            means, ["texts", "neurons"], mean_of("mean"), by_relation=by_relation,
            n_resamples=study.settings.n_resamples, seed=study.settings.seed,
        )  # fmt: skip
        cells = zip(table["texts"], table["neurons"], strict=True)
        paper = [PAPER[texts] if kind == "found" and not by_relation else np.nan for texts, kind in cells]
        tables[name] = with_control(table).assign(paper=paper)
    shown = []
    for relation, group in records.groupby("relation", sort=False):
        keys = group["key"].unique()
        shown.append(examples(records, keys[study.generator("examples", str(relation)).integers(len(keys))]))
    return {**tables, "texts_of_most_and_least": pd.concat(shown, ignore_index=True)}


def _passes(study: Study, shard: Shard) -> Passes:
    """Return the most that it can take: as many sentences of each kind as are wanted."""
    n_facts = len(study.asked_facts(shard.relation)) * study.share_with_neurons(shard.relation)
    return Passes(whole=3 * study.settings.text_sentences * n_facts)


STAGE = Stage(
    name="texts",
    title="Activation on texts",
    make=_make,
    tables=_tables,
    shown={"activation_on_texts": Shown("Table 3: mean activation of a fact's neurons on texts")},
    needs=(refining.STAGE,),
    settings=("seed", "texts_digest", "text_sentences"),
    across=True,
    passes=_passes,
)
