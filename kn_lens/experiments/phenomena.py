"""Stage ``syntax_pairs``: which minimal pairs a model is asked, and why it is not asked the others.

A causal model sees only what stands before the word: it is asked pairs that are told by that, and sentences that begin
alike are one to it. The two words of a pair must have as many tokens, since their probabilities are compared.

Records, one a pair: ``phenomenon``, ``good``, ``bad``; ``right`` and ``wrong``, the words; ``template``, with ``[Y]``
in the word's place; ``why`` it is not asked (``REASONS``), empty where it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kn_lens.errors import NoPromptError
from kn_lens.experiments.minimal_pairs import Pair, form_of, read_pairs, wrong_form
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import ALL, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.hosts import Host

if TYPE_CHECKING:
    import pandas as pd

REASONS = {
    "not_one_word": "the sentences do not differ in exactly one word",
    "told_behind": "what tells which word is right stands behind it",
    "too_long": "the sentence is longer than the context, or holds the mask token",
    "same_prompt": "the prompt is that of another pair",
    "not_writable": "a word is not in the vocabulary, or has more tokens than the other",
    "too_few": "its form has fewer prompts than a neuron must be shared by",
    "not_drawn": "its form has other sentences, or the phenomenon other forms, up to the number that is asked",
}
"""Why a pair is not asked, in the order in which it is looked at."""

SCHEMA = pa.schema([(name, pa.string()) for name in ("phenomenon", "good", "bad", "right", "wrong", "template", "why")])

Cell = tuple[str, str, str]
"""The right word, the wrong one, and the template."""


def pairs_of(study: Study) -> Mapping[str, Sequence[Pair]]:
    """Return the pairs of each phenomenon, all of them."""
    return _by_phenomenon(study.settings.syntax, study.settings.syntax_digest)


def shards_of(study: Study) -> list[Shard]:
    """Return a shard for each phenomenon."""
    return [Shard(ALL, phenomenon) for phenomenon in pairs_of(study)]


def asked_forms(study: Study, phenomenon: str) -> list[Fact]:
    """Return the forms of a phenomenon that the model is asked, with the sentences that it is asked."""
    records = study.records(STAGE.name, Shard(ALL, phenomenon))
    templates: dict[tuple[str, str], list[str]] = {}
    for right, wrong, template, why in records[["right", "wrong", "template", "why"]].to_numpy():
        if not why:
            templates.setdefault((right, wrong), []).append(template)
    return [form_of(phenomenon, *words, mine) for words, mine in templates.items()]


@lru_cache(maxsize=1)
def _by_phenomenon(path: str | None, digest: str) -> Mapping[str, Sequence[Pair]]:
    """Read the pairs that have this digest: every stage asks for them again and again."""
    pairs: dict[str, list[Pair]] = {}
    for pair in read_pairs(path):
        pairs.setdefault(pair.phenomenon, []).append(pair)
    return pairs


def _make(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    settings, pairs = study.settings, pairs_of(study)[shard.part]
    cells, why = _cells(study.host, pairs)

    def forms() -> dict[tuple[str, str], list[int]]:
        """Return the numbers of the pairs that nothing stands against, by their words."""
        left: dict[tuple[str, str], list[int]] = {}
        for number, (right, wrong, _) in enumerate(cells):
            if not why[number]:
                left.setdefault((right, wrong), []).append(number)
        return left

    writable = _writable(study, shard.part, {words: [cells[i][2] for i in mine] for words, mine in forms().items()})
    for mine in forms().values():
        for number in mine:
            why[number] = "" if cells[number] in writable else "not_writable"
    for mine in forms().values():
        if len(mine) < settings.min_prompts:
            why.update(dict.fromkeys(mine, "too_few"))
    for place, (words, mine) in enumerate(sorted(forms().items(), key=lambda form: -len(form[1]))):
        drawn = study.generator("syntax", shard.part, *words).permutation(len(mine)).tolist()
        n_asked = settings.syntax_sentences if place < settings.syntax_forms else 0
        why.update({mine[i]: "not_drawn" for i in drawn[n_asked:]})
    columns = {
        "phenomenon": [pair.phenomenon for pair in pairs],
        "good": [pair.good for pair in pairs],
        "bad": [pair.bad for pair in pairs],
        **{name: [cell[place] for cell in cells] for place, name in enumerate(("right", "wrong", "template"))},
        "why": [why[number] for number in range(len(pairs))],
    }
    write_records(path, columns, SCHEMA)


def _cells(host: Host, pairs: Sequence[Pair]) -> tuple[list[Cell], dict[int, str]]:
    """Return what each pair asks of the model, and what stands against it in its sentence."""
    masked, limit = host.kind == "masked", host.n_ctx or np.inf
    cells: list[Cell] = []
    why: dict[int, str] = {}
    seen: set[Cell] = set()
    for number, pair in enumerate(pairs):
        before, right, wrong, behind = pair.parts or ("", "", "", "")
        cells.append((right, wrong, f"{before}[Y]{behind if masked else ''}"))
        texts = [cells[-1][2].replace("[Y]", word) for word in (right, wrong)]
        if pair.parts is None:
            why[number] = "not_one_word"
        elif not masked and not pair.told_before():
            why[number] = "told_behind"
        elif max(len(host.tokenizer(text, verbose=False)["input_ids"]) for text in texts) > limit or (
            masked and host.tokenizer.mask_token in texts[0]
        ):
            why[number] = "too_long"
        else:
            why[number] = "same_prompt" if cells[-1] in seen else ""
        seen.add(cells[-1])
    return cells, why


def _writable(study: Study, phenomenon: str, templates: Mapping[tuple[str, str], Sequence[str]]) -> set[Cell]:
    """Return the cells whose words can both be answers, of as many tokens."""
    forms = [form_of(phenomenon, *words, mine) for words, mine in templates.items()]
    if not forms:
        return set()
    n_tokens: list[dict[Cell, int]] = []
    for turned in (forms, [wrong_form(form) for form in forms]):
        try:
            prompts = study.ask(turned)
        except NoPromptError:
            return set()
        rows = zip(prompts.fact_index.tolist(), prompts.template, prompts.rows_per_prompt.tolist(), strict=True)
        n_tokens.append({(forms[i].object, forms[i].uid, template): n for i, template, n in rows})
    right, wrong = n_tokens
    return {cell for cell, n in right.items() if n == wrong.get(cell)}


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return the coverage of the pairs: how many are asked, in how many forms, and why the others are not."""
    import pandas as pd

    rows = []
    for shard in shards_of(study):
        records = study.records(STAGE.name, shard)
        one_word, asked = records[records["right"] != ""], records[records["why"] == ""]
        counts = Counter(records["why"])
        rows.append(
            {
                "phenomenon": shard.part,
                "pairs": len(records),
                "forms": len(one_word.groupby(["right", "wrong"])),
                "forms_asked": len(asked.groupby(["right", "wrong"])),
                "pairs_asked": len(asked),
                **{reason: counts[reason] for reason in REASONS},
            }
        )
    return {"syntax_coverage": pd.DataFrame(rows)}


STAGE = Stage(
    name="syntax_pairs",
    title="Which minimal pairs can be asked",
    make=_make,
    tables=_tables,
    settings=("seed", "min_prompts", "syntax_digest", "syntax_forms", "syntax_sentences"),
    shards=shards_of,
)
