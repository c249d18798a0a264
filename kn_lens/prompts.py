"""From facts to the tokens that ask a model for them; the only place that knows masked from causal models.

A prompt is one fact in one template. A *masked* model sees the whole sentence with the answer masked, one mask per
answer token, and is read at the mask. A *causal* model sees what comes before the answer and is read at the last token.

An answer of k tokens is asked for by k rows (teacher forcing): row j holds the true answer tokens before j and is read
for token j, so that by the chain rule

    P(answer) = prod_j P(answer_j | prompt, answer_<j)         (masked: the later answer tokens stay masked).

Rows of a prompt stand together and in order; where every answer is one token, row and prompt are the same. Padding is
on the right, where it changes nothing in any family.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from einops import repeat
from jaxtyping import Int
from torch import Tensor

from kn_lens._batches import MadeFor, PromptBatch, too_long
from kn_lens._budget import Budget
from kn_lens._encoding import STRADDLES, Encoded, encode
from kn_lens._exclusive import exclusive
from kn_lens._loading import fingerprint
from kn_lens.errors import ArgumentError, NoPromptError, PromptError, did_you_mean
from kn_lens.fact_files import OBJECT_SLOT, SUBJECT_SLOT
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import host_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PromptBatch", "make_prompts", "predict"]

NOT_LAST, SAME = "object not last", "same prompt as another template"
BEYOND = "token beyond the model's vocabulary"


@exclusive
def make_prompts(
    model: Any,
    facts: Fact | Iterable[Fact],
    *,
    tokenizer: Any = None,
    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    contrast: str | Mapping[Fact, str] | None = None,
    unknown_answers: Literal["error", "leave_out"] = "error",
    min_prompts: int = 1,
) -> PromptBatch:
    """Turn facts into prompts for a model, each fact in each of its templates.

    Sentence and answer are encoded together, with the special tokens of the checkpoint's own tokenizer, and the
    answer's tokens are those over its characters. For masked models they become mask tokens. For causal models the
    prompt ends before them; templates with more than punctuation after the object are left out and counted, as are
    those that ask the same as another, whose neurons would seem to be shared. Words of the subject that the vocabulary
    lacks are asked as the checkpoint reads them; the answer's never are.

    Args:
        model: the TransformerLens model that the prompts are for.
        facts: one fact or many.
        tokenizer: a fast Hugging Face tokenizer, instead of the one that came with the model; that it belongs to the
            model's weights is then yours to know.
        templates: for all facts, or by relation; None takes each fact's own.
        contrast: another answer for ``output="logit_diff"``, one for all facts or one for each, with as many tokens in
            its place as the true answer has.
        unknown_answers: what to do with answers that the vocabulary cannot write, or that share a token with the text
            beside them, and with tokens that the model has no embedding of: raise, or leave out and count in
            ``left_out``.
        min_prompts: leave out, and count in ``left_out``, the prompts of facts with fewer. Refining leaves such facts
            out, after the model has run: its ``min_prompts`` is 3. ``prompts_per_fact`` of the result names them.

    Returns:
        The prompts, in order of facts and templates, on the model's device. Cost: tens of microseconds a prompt; the
        model does not run.

    Raises:
        PromptError: the model has no fast tokenizer (or, masked, no mask token); a fact has no template; an answer is
            unknown; a prompt is longer than the context; a contrast answer does not fit.
        NoPromptError: no prompt is left.
        ArgumentError: templates without their slots, or for other relations.
        DataError: a fact is given twice.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-bert")
    >>> fact = kn.FactSet.world().find("Ireland", relation="P36")
    >>> kn.make_prompts(model, fact).text[0]
    'The country Ireland has the capital [MASK].'
    """
    host = host_of(model)
    chosen = host.tokenizer if tokenizer is None else tokenizer
    if chosen is None:
        raise PromptError(
            f"{host.name} has no tokenizer, which prompts from text need. Pass tokenizer=, or make the prompts from "
            "your own tokens with PromptBatch.from_tokens."
        )
    # A tokenizer that is chosen in the place of the model's own is said to fit it.
    fingerprints = (host.tokenizer_fingerprint, fingerprint(chosen))
    made_for = MadeFor(kind=host.kind, tokenizers=frozenset(one for one in fingerprints if one is not None))
    return _build(
        _Form(chosen, host.kind == "masked", host.n_ctx, host.d_vocab, host.device, made_for),
        _with_templates([facts] if isinstance(facts, Fact) else facts, templates),
        contrast,
        unknown_answers,
        min_prompts,
    )


@exclusive
def predict(
    model: Any, prompts: PromptBatch, k: int = 5, *, tokenizer: Any = None, memory_budget: float | None = None
) -> "pd.DataFrame":
    """Return what a model answers to each prompt: its ``k`` most probable tokens.

    Answers of several tokens have a ranking for each token, given the true tokens before it.

    Args:
        model: the TransformerLens model.
        prompts: what to ask it.
        k: how many tokens to list.
        tokenizer: to show tokens as text, instead of the model's own; without either they are shown as ids.
        memory_budget: bytes that passes may take; see ``attribute``.

    Returns:
        A table with the columns ``prompt`` (number), ``text``, ``answer_token`` (number within the answer), ``rank``
        (zero-based), ``token`` (as text, with its leading space where the tokenizer keeps it), ``token_id`` and
        ``probability``. Cost: one forward pass a row.

    Raises:
        ArgumentError: ``k`` out of range, a budget of no memory, or prompts that are not this model's.
        PromptError: a prompt is longer than the context.
    """
    import pandas as pd

    host = host_of(model)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= host.d_vocab:
        raise ArgumentError(f"k is {k!r}; expected a whole number from 1 to {host.d_vocab}.")
    budget = Budget.of(host, memory_budget)
    prompts.check_for(host)

    def run(rows: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        n_pos = int(lengths[rows].max())
        with torch.no_grad():
            logits = host.whole_logits(
                prompts.tokens[rows, :n_pos], prompts.attention_mask[rows, :n_pos], prompts.read_pos[rows]
            )
        # Half precision would round probabilities to three digits.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        top = logits.softmax(-1).topk(k)
        return top.values.double().cpu(), top.indices.cpu()

    best = torch.empty(prompts.n_rows, k, dtype=torch.float64)
    ids = torch.empty(prompts.n_rows, k, dtype=torch.int64)
    lengths = prompts.attention_mask.sum(-1)
    for rows, (values, indices) in budget.work_through(torch.ones_like(lengths), lengths, budget.rows_per_pass, run):
        best[rows.cpu()], ids[rows.cpu()] = values, indices
    tokenizer = host.tokenizer if tokenizer is None else tokenizer
    shown = {i: str(i) if tokenizer is None else tokenizer.decode([i]) for i in ids.unique().tolist()}
    prompt = prompts.prompt_index.cpu()
    first = torch.searchsorted(prompt, prompt)  # the first row of each row's prompt
    token_ids = ids.flatten().tolist()
    return pd.DataFrame(
        {
            "prompt": repeat(prompt, "row -> (row k)", k=k).numpy(),
            "text": [prompts.text[i] for i in prompt.tolist() for _ in range(k)],
            "answer_token": repeat(torch.arange(len(prompt)) - first, "row -> (row k)", k=k).numpy(),
            "rank": repeat(torch.arange(k), "k -> (row k)", row=len(prompt)).numpy(),
            "token": [shown[i] for i in token_ids],
            "token_id": token_ids,
            "probability": best.flatten().numpy(),
        }
    )


class _Form(NamedTuple):
    """What the form of a prompt depends on."""

    tokenizer: Any
    masked: bool
    n_ctx: int | None
    d_vocab: int
    device: torch.device
    made_for: MadeFor | None = None


class _Asked(NamedTuple):
    """One fact in one template: the text on both sides of the answer."""

    fact: int
    template: str
    before: str
    after: str


def _build(
    form: _Form,
    facts: FactSet,
    contrast: str | Mapping[Fact, str] | None,
    unknown_answers: str,
    min_prompts: int = 1,
) -> PromptBatch:
    if unknown_answers not in ("error", "leave_out"):
        raise ArgumentError(f"unknown_answers is {unknown_answers!r}; expected 'error' or 'leave_out'.")
    if isinstance(min_prompts, bool) or not isinstance(min_prompts, int) or min_prompts < 1:
        raise ArgumentError(f"min_prompts={min_prompts!r}; expected a whole number from 1.")
    if form.masked and getattr(form.tokenizer, "mask_token_id", None) is None:
        raise PromptError(
            f"A masked language model is asked with a mask token, and {type(form.tokenizer).__name__} has none. "
            "Pass the tokenizer of the checkpoint with tokenizer=."
        )
    if not facts:
        raise PromptError("There are no facts to ask for; expected at least one.")
    asked, left_out = _asked(form, facts)
    if not asked:
        raise _none_left(left_out)
    encoded = _encoded(form, asked, [facts[one.fact].object for one in asked])
    problem = np.where((encoded.ids >= form.d_vocab).any(-1), BEYOND, encoded.problem)
    if unknown_answers == "error" and (problem != "").any():
        raise _bad_prompt(form, facts, asked, encoded, problem)
    n_prompts = np.bincount([one.fact for one in asked], problem == "", minlength=len(facts))
    few = n_prompts[[one.fact for one in asked]] < min_prompts
    problem = np.where((problem == "") & few, f"fact with fewer than {min_prompts} prompts", problem)
    left_out.update(problem[problem != ""])
    kept = np.flatnonzero(problem == "")
    if not len(kept):
        raise _none_left(left_out)
    asked, encoded = [asked[i] for i in kept], encoded[kept]
    _check_room(form, asked, encoded)
    return _tensors(form, facts, asked, encoded, _contrast_ids(form, facts, asked, encoded, contrast), dict(left_out))


def _asked(form: _Form, facts: FactSet) -> tuple[list[_Asked], Counter[str]]:
    asked, left_out = {}, Counter()
    usable: dict[str, bool] = {}
    for number, fact in enumerate(facts):
        if not fact.templates:
            raise PromptError(
                f"The fact {fact.key} has no templates. Pass templates= to make_prompts, or to the reader of the facts."
            )
        for template in fact.templates:
            if template not in usable:
                usable[template] = form.masked or _object_is_last(template)
            if usable[template]:
                # Split before the subject is put in: a subject may read "[Y]".
                before, after = (half.replace(SUBJECT_SLOT, fact.subject) for half in template.split(OBJECT_SLOT))
                one = _Asked(number, template, before, after if form.masked else "")
                left_out[SAME] += asked.setdefault((number, one.before, one.after), one) is not one
            else:
                left_out[NOT_LAST] += 1
    return list(asked.values()), +left_out  # without zeros


def _object_is_last(template: str) -> bool:
    rest = template.partition(OBJECT_SLOT)[2]
    return SUBJECT_SLOT not in rest and all(unicodedata.category(character)[0] in "PZC" for character in rest)


def _encoded(form: _Form, asked: Sequence[_Asked], answers: Sequence[str]) -> Encoded:
    pairs = list(zip(asked, answers, strict=True))
    return encode(
        form.tokenizer,
        [one.before + answer + one.after for one, answer in pairs],
        [len(one.before) for one in asked],
        [len(one.before) + len(answer) for one, answer in pairs],
    )


def _check_room(form: _Form, asked: Sequence[_Asked], encoded: Encoded) -> None:
    # The longest row of a causal prompt lacks only the answer's last token.
    lengths = encoded.length if form.masked else encoded.end - 1
    if form.n_ctx is not None and lengths.max() > form.n_ctx:
        i = int(lengths.argmax())
        raise too_long(asked[i].before + OBJECT_SLOT + asked[i].after, int(lengths[i]), form.n_ctx)
    if form.masked:
        in_answer = _within(encoded.ids.shape[1], encoded.start, encoded.end)
        masks = ((encoded.ids == form.tokenizer.mask_token_id) & ~in_answer).any(-1)
        if masks.any():
            one = asked[int(masks.argmax())]
            raise PromptError(
                f"The prompt {one.before + OBJECT_SLOT + one.after!r} holds the mask token besides the answer's place; "
                "expected the slot alone."
            )
    elif not encoded.start.all():
        one = asked[int((encoded.start == 0).argmax())]
        raise PromptError(
            f"The template {one.template!r} has nothing before the answer, and the tokenizer adds no token there: "
            "there is no position to read the answer from."
        )


def _tensors(
    form: _Form,
    facts: FactSet,
    asked: Sequence[_Asked],
    encoded: Encoded,
    contrast_ids: np.ndarray | None,
    left_out: dict[str, int],
) -> PromptBatch:
    prompt_index = np.repeat(np.arange(len(asked)), encoded.n_answer)
    token_no = np.arange(len(prompt_index)) - (np.cumsum(encoded.n_answer) - encoded.n_answer)[prompt_index]
    answer_pos = encoded.start[prompt_index] + token_no  # where the row's answer token stands in the full text
    lengths = encoded.length[prompt_index] if form.masked else answer_pos
    tokens = encoded.ids[prompt_index, : lengths.max()]
    target_ids = encoded.ids[prompt_index, answer_pos]
    # Any id will do that the model has, which one added to a tokenizer may not be: the attention mask hides it.
    known = (form.tokenizer.pad_token_id, form.tokenizer.eos_token_id)
    pad_id = next((i for i in known if i is not None and i < form.d_vocab), 0)
    mask = _within(tokens.shape[1], np.zeros_like(lengths), lengths)
    tokens = np.where(mask, tokens, pad_id)
    if form.masked:
        unseen = _within(tokens.shape[1], answer_pos, encoded.end[prompt_index])
        tokens = np.where(unseen, form.tokenizer.mask_token_id, tokens)

    def tensor(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(form.device)

    return PromptBatch(
        tokens=tensor(tokens),
        attention_mask=tensor(mask),
        read_pos=tensor(answer_pos if form.masked else answer_pos - 1),
        target_ids=tensor(target_ids),
        prompt_index=tensor(prompt_index),
        contrast_ids=None if contrast_ids is None else tensor(contrast_ids),
        text=tuple(
            f"{one.before}{' '.join([form.tokenizer.mask_token] * n)}{one.after}"
            if form.masked
            else one.before.rstrip(" ")
            for one, n in zip(asked, encoded.n_answer.tolist(), strict=True)
        ),
        fact_index=tensor([one.fact for one in asked]),
        template=tuple(one.template for one in asked),
        facts=facts.facts,
        left_out=left_out,
        made_for=form.made_for,
    )


def _contrast_ids(
    form: _Form,
    facts: FactSet,
    asked: Sequence[_Asked],
    encoded: Encoded,
    contrast: str | Mapping[Fact, str] | None,
) -> np.ndarray | None:
    """Return the contrast answers' tokens, row by row."""
    if contrast is None:
        return None
    if not isinstance(contrast, str):
        for fact in facts:
            if fact not in contrast:
                raise PromptError(f"contrast gives no answer for the fact {fact.key}; expected one for each fact.")
    others = [contrast if isinstance(contrast, str) else contrast[facts[one.fact]] for one in asked]
    for one, other in zip(asked, others, strict=True):
        if not isinstance(other, str) or not other.strip() or other == facts[one.fact].object:
            raise PromptError(
                f"The contrast answer of {facts[one.fact].key} is {other!r}; expected another answer than the true one."
            )
    found = _encoded(form, asked, others)
    for i in np.flatnonzero((found.problem != "") | (found.n_answer != encoded.n_answer))[:1]:
        fact = facts[asked[i].fact]
        why = found.problem[i] or (
            f"it has {found.n_answer[i]} tokens, and {fact.object!r} has {encoded.n_answer[i]}: they must be as many"
        )
        raise PromptError(f"The contrast answer {others[i]!r} does not fit {fact.key} in {asked[i].template!r}: {why}.")
    return found.ids[_within(found.ids.shape[1], found.start, found.end)]


def _within(n_pos: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return whether each position of each row lies in [start, end); shape [row, pos]."""
    position = np.arange(n_pos)
    return (position >= start[:, None]) & (position < end[:, None])


def _with_templates(
    facts: Iterable[Fact], templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None
) -> FactSet:
    if templates is None:
        return facts if isinstance(facts, FactSet) else FactSet(facts)
    chosen = []
    for fact in facts:
        own = templates
        if isinstance(templates, Mapping):
            if fact.relation not in templates:
                near = did_you_mean(fact.relation, templates)
                raise ArgumentError(f"templates has none for relation {fact.relation!r} of {fact.key}.{near}")
            own = templates[fact.relation]
        chosen.append(replace(fact, templates=(own,) if isinstance(own, str) else tuple(own)))
    return FactSet(chosen)


def _none_left(left_out: Counter[str]) -> NoPromptError:
    counts, n = ", ".join(f"{reason}: {number}" for reason, number in left_out.items()), left_out.total()
    return NoPromptError(
        f"No prompt is left of {n} pair{'s' * (n != 1)} of fact and template ({counts}). "
        "Causal models need templates that end with [Y]; answers must be writable in the model's vocabulary."
    )


def _bad_prompt(
    form: _Form, facts: FactSet, asked: Sequence[_Asked], encoded: Encoded, problem: np.ndarray
) -> PromptError:
    """Return the error for the first prompt that cannot be put to the model."""
    bad = np.flatnonzero(problem)
    first = int(bad[0])
    fact, template = facts[asked[first].fact], asked[first].template
    n_facts = len({asked[i].fact for i in bad})
    more = f" ({n_facts} facts have such answers)" if n_facts > 1 else ""
    cure = "Correct it, or leave such prompts out and counted with unknown_answers='leave_out'."
    if problem[first] == BEYOND:
        return PromptError(
            f"The tokenizer made the id {encoded.ids[first].max()} for {fact.key} in {template!r}, but the model has "
            f"{form.d_vocab} tokens. Pass the tokenizer of the checkpoint with tokenizer=; where the checkpoint has "
            "fewer embeddings than its own tokenizer has tokens, leave such prompts out and counted with "
            "unknown_answers='leave_out'."
        )
    if problem[first] == STRADDLES:
        return PromptError(
            f"The answer {fact.object!r} of {fact.key} shares a token with the text beside it in {template!r}, so it "
            f"cannot be masked alone{more}. {cure}"
        )
    vocabulary = (token.lstrip("Ġ▁") for token in form.tokenizer.get_vocab())
    near = did_you_mean(fact.object, (token for token in vocabulary if token[:1] == fact.object[:1]))
    return PromptError(
        f"The answer {fact.object!r} of {fact.key} is not in the vocabulary: its tokens would be unknown, special or "
        f"missing{more}.{near} {cure}"
    )
