"""Stage ``syntax_pairs``: which minimal pairs the model can be queried for, and why the others cannot.

A causal model reads only the text before the word. It is queried for pairs whose right word follows from that text, and
sentences that begin alike are one prompt for it. The two words of a pair must have equally many tokens, since their
probabilities are compared.

Records, one row for each pair:

    phenomenon, good, bad
    right, wrong    the words; empty where the sentences do not differ in exactly one word
    template        the text that the model reads, with ``[Y]`` in the place of the word
    why             why the pair is not queried: a key of ``REASONS``; empty where it is queried
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens.errors import NoPromptError
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.prompts import placeholder_token
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import ALL, Shard
from kn_lens.runs.minimal_pairs import Pair, form_of, read_pairs, wrong_form
from kn_lens.runs.stage import Progress, Stage, write_rows

if TYPE_CHECKING:
    import pandas as pd

REASONS = {
    "not_one_word": "the sentences do not differ in exactly one word",
    "told_behind": "the text that decides between the words stands after them",
    "too_long": "the sentence is longer than the context, or contains the mask token",
    "same_prompt": "another pair has the same prompt",
    "not_writable": "a word is not in the vocabulary, or has more tokens than the other",
    "too_few": "its form has fewer prompts than a neuron must be shared by",
    "not_drawn": "its form already has the full number of sentences, or the phenomenon that of forms",
}
"""Why a pair is not queried, in the order of the checks."""

SYNTAX_PAIRS_SCHEMA = pa.schema(
    [
        ("phenomenon", pa.string()),
        ("good", pa.string()),
        ("bad", pa.string()),
        ("right", pa.string()),
        ("wrong", pa.string()),
        ("template", pa.string()),
        ("why", pa.string()),
    ]
)

Words = tuple[str, str]
"""The right word and the wrong word: a form of the phenomenon."""
Cell = tuple[str, str, str]
"""The right word, the wrong word, and the template."""


def phenomenon_pairs(context: RunContext) -> Mapping[str, Sequence[Pair]]:
    """Return all pairs of each phenomenon."""
    return _read_phenomena(context.settings.syntax, context.settings.syntax_digest)


def phenomenon_shards(context: RunContext) -> list[Shard]:
    """Return a shard for each phenomenon."""
    return [Shard(ALL, phenomenon) for phenomenon in phenomenon_pairs(context)]


def queried_forms(context: RunContext, phenomenon: str) -> list[Fact]:
    """Return the forms of a phenomenon that the model is queried for, with the sentences of its queries."""
    records = context.records(SYNTAX_PAIRS.name, Shard(ALL, phenomenon))
    templates: dict[Words, list[str]] = {}
    for right, wrong, template, why in records[["right", "wrong", "template", "why"]].to_numpy():
        if not why:
            templates.setdefault((right, wrong), []).append(template)
    return _forms(phenomenon, templates)


def _forms(phenomenon: str, templates: Mapping[Words, Sequence[str]]) -> list[Fact]:
    forms = []
    for (right, wrong), sentences in templates.items():
        forms.append(form_of(phenomenon, right, wrong, sentences))
    return forms


@lru_cache(maxsize=1)
def _read_phenomena(path: str | None, digest: str) -> Mapping[str, Sequence[Pair]]:
    """Read the pairs with this digest; cached, since every stage needs them repeatedly."""
    pairs: dict[str, list[Pair]] = {}
    for pair in read_pairs(path):
        pairs.setdefault(pair.phenomenon, []).append(pair)
    return pairs


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings, phenomenon = context.settings, shard.part
    pairs = phenomenon_pairs(context)[phenomenon]
    cells, why = _check_sentences(context.host, pairs)

    templates: dict[Words, list[str]] = {}
    for words, pair_ids in _remaining_forms(cells, why).items():
        templates[words] = [cells[pair_id][2] for pair_id in pair_ids]
    writable = _writable_cells(context, _forms(phenomenon, templates))
    for pair_id, cell in enumerate(cells):
        if not why[pair_id] and cell not in writable:
            why[pair_id] = "not_writable"

    for pair_ids in _remaining_forms(cells, why).values():
        if len(pair_ids) < settings.min_prompts:
            for pair_id in pair_ids:
                why[pair_id] = "too_few"

    largest_first = sorted(_remaining_forms(cells, why).items(), key=lambda form: -len(form[1]))
    for rank, (words, pair_ids) in enumerate(largest_first):
        generator = context.generator("syntax", phenomenon, *words)
        order = generator.permutation(len(pair_ids)).tolist()
        n_queried = settings.syntax_sentences if rank < settings.syntax_forms else 0
        for index in order[n_queried:]:
            why[pair_ids[index]] = "not_drawn"

    rows: list[dict[str, Any]] = []
    for pair, (right, wrong, template), reason in zip(pairs, cells, why, strict=True):
        rows.append(
            {
                "phenomenon": pair.phenomenon,
                "good": pair.good,
                "bad": pair.bad,
                "right": right,
                "wrong": wrong,
                "template": template,
                "why": reason,
            }
        )
    write_rows(path, rows, SYNTAX_PAIRS_SCHEMA)


def _remaining_forms(cells: Sequence[Cell], why: Sequence[str]) -> dict[Words, list[int]]:
    """Return the numbers of the pairs of each form that no check has excluded yet."""
    forms: dict[Words, list[int]] = {}
    for pair_id, (right, wrong, _) in enumerate(cells):
        if not why[pair_id]:
            forms.setdefault((right, wrong), []).append(pair_id)
    return forms


def _check_sentences(host: Host, pairs: Sequence[Pair]) -> tuple[list[Cell], list[str]]:
    """Return the words and the template of each pair, and the reason that its sentences give against a query."""
    whole, max_tokens = host.reads_whole_text, host.n_ctx or np.inf
    cells: list[Cell] = []
    why: list[str] = []
    earlier: set[Cell] = set()
    for pair in pairs:
        before, right, wrong, after = pair.parts or ("", "", "", "")
        template = f"{before}[Y]{after if whole else ''}"
        cell = right, wrong, template
        if pair.parts is None:
            reason = "not_one_word"
        elif not whole and not pair.told_before():
            reason = "told_behind"
        elif _is_too_long(host, cell, max_tokens):
            reason = "too_long"
        elif cell in earlier:
            reason = "same_prompt"
        else:
            reason = ""
        cells.append(cell)
        why.append(reason)
        earlier.add(cell)
    return cells, why


def _is_too_long(host: Host, cell: Cell, max_tokens: float) -> bool:
    """Return whether a sentence with either word exceeds the context, or contains the placeholder of an answer."""
    right, wrong, template = cell
    placeholder = placeholder_token(host.tokenizer, host.kind)
    if placeholder is not None and placeholder in template.replace("[Y]", right):
        return True
    for word in (right, wrong):
        tokens = host.tokenizer(template.replace("[Y]", word), verbose=False)["input_ids"]
        if len(tokens) > max_tokens:
            return True
    return False


def _writable_cells(context: RunContext, forms: Sequence[Fact]) -> set[Cell]:
    """Return the cells whose words can both be answers, with equally many tokens."""
    if not forms:
        return set()
    wrong_forms = [wrong_form(form) for form in forms]
    try:
        n_right_tokens = _answer_lengths(context, forms, forms)
        n_wrong_tokens = _answer_lengths(context, forms, wrong_forms)
    except NoPromptError:
        return set()
    writable = set()
    for cell, n_tokens in n_right_tokens.items():
        if n_wrong_tokens.get(cell) == n_tokens:
            writable.add(cell)
    return writable


def _answer_lengths(context: RunContext, forms: Sequence[Fact], queries: Sequence[Fact]) -> dict[Cell, int]:
    """Return the number of answer tokens in each prompt of the queries, by the cell of the corresponding form."""
    prompts = context.make_prompts(queries)
    n_tokens: dict[Cell, int] = {}
    rows = zip(prompts.fact_index.tolist(), prompts.template, prompts.rows_per_prompt.tolist(), strict=True)
    for index, template, n_rows in rows:
        form = forms[index]
        n_tokens[form.object, form.uid, template] = n_rows
    return n_tokens


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the coverage of the pairs: the numbers of pairs and forms queried, and of pairs excluded by each check."""
    import pandas as pd

    rows = []
    for shard in phenomenon_shards(context):
        records = context.records(SYNTAX_PAIRS.name, shard)
        one_word = records[records["right"] != ""]
        queried = records[records["why"] == ""]
        reasons = Counter(records["why"])
        row = {
            "phenomenon": shard.part,
            "n_pairs": len(records),
            "n_forms": len(one_word.groupby(["right", "wrong"])),
            "n_queried_forms": len(queried.groupby(["right", "wrong"])),
            "n_queried_pairs": len(queried),
        }
        for reason in REASONS:
            row[reason] = reasons[reason]
        rows.append(row)
    return {"syntax_coverage": pd.DataFrame(rows)}


SYNTAX_PAIRS = Stage(
    name="syntax_pairs",
    title="Which minimal pairs can be queried",
    make=_make,
    tables=_tables,
    settings=("seed", "min_prompts", "syntax_digest", "syntax_forms", "syntax_sentences"),
    shards=phenomenon_shards,
)
"""Which minimal pairs the model can be queried for; records of each pair, table ``syntax_coverage``."""
