"""From facts to prompts, which masked models, causal models and encoder-decoders take in three forms.

A prompt is one fact in one template. A *masked* model sees the whole sentence with the answer masked, one mask per
answer token, and is read at the mask. A *causal* model sees the text before the answer and is read at the last token.
The encoder of an *encoder-decoder* sees the whole sentence with one placeholder for the answer, and its decoder is read
at the last token: after the placeholder where it was trained to write what that stands for (T5), after the text before
the answer where it was trained to write the whole text anew (BART).

An answer of k tokens is queried in k rows (teacher forcing): row j holds the true answer tokens before j and is read
for token j, so that by the chain rule

    P(answer) = prod_j P(answer_j | prompt, answer_<j)         (masked: the later answer tokens stay masked).

Rows of a prompt stand together and in order. Where every answer is one token, row and prompt are the same. Padding is
on the right, where it changes nothing in any family.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from kn_lens._core.checks import check_kind
from kn_lens._core.names import Side
from kn_lens.errors import ArgumentError, NoPromptError, PromptError, did_you_mean
from kn_lens.facts import OBJECT_SLOT, SUBJECT_SLOT, Fact, FactSet
from kn_lens.hosts import (
    DecoderForm,
    HookedModel,
    Host,
    Kind,
    check_beginning,
    check_tokenizer,
    exclusive,
    fingerprint,
    host_of,
)
from kn_lens.prompts.batch import MadeFor, PromptBatch, too_long
from kn_lens.prompts.tokenization import STRADDLES, Encoded, encode

NOT_LAST, SAME = "object not last", "same prompt as another template"
TOO_FEW = "fact with fewer than"
BEYOND = "token beyond the model's vocabulary"
LEAVE_OUT = "unknown_answers='leave_out'"
"""The argument that errors about answers name as a cure."""
SENTINEL = "<extra_id_0>"
"""The token of a T5 that stands for the first span that is left out of a text."""


@exclusive
def make_prompts(
    model: HookedModel | Host,
    facts: Fact | Iterable[Fact],
    *,
    tokenizer: Any = None,
    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    contrast: str | Mapping[Fact, str] | None = None,
    unknown_answers: Literal["error", "leave_out"] = "error",
    min_prompts: int = 1,
) -> PromptBatch:
    """Turn facts into prompts for a model, each fact in each of its templates.

    Sentence and answer are encoded together, with the special tokens of the checkpoint's own tokenizer. The answer's
    tokens are those over its characters. For masked models they become mask tokens, for the encoder of an
    encoder-decoder one placeholder: its tokenizer's mask token, or ``<extra_id_0>``. For causal models the prompt ends
    before them, and templates with more than punctuation after the object are left out and counted. So are templates
    that give the same prompt as another of the fact: its neurons would seem to be shared by two prompts. Words of the
    subject that are not in the vocabulary are encoded as the checkpoint reads them; such answers are refused.

    Args:
        model: the TransformerLens model that the prompts are for.
        facts: one fact or many.
        tokenizer: a fast Hugging Face tokenizer, instead of the one that came with the model. Whether it belongs to
            the model's weights cannot be checked.
        templates: for all facts, or by relation; None takes each fact's own.
        contrast: another answer for ``output="logit_diff"``, one for all facts or one for each, with as many tokens in
            its place as the true answer has.
        unknown_answers: what to do with answers that the vocabulary cannot write, with answers that share a token with
            the text beside them, and with tokens without an embedding in the model: raise an error, or leave the prompt
            out and count it in ``left_out``.
        min_prompts: leave out, and count in ``left_out``, the prompts of facts with fewer prompts. Refining leaves such
            facts out after the model has run: its ``min_prompts`` is 3. ``prompts_per_fact`` of the result names them.

    Returns:
        The prompts, in order of facts and templates, on the model's device. Cost: tens of microseconds per prompt; the
        model does not run.

    Raises:
        PromptError: the model has no fast tokenizer (or, unless causal, no mask token); a fact has no template; an
            answer is unknown; a prompt is longer than the context; a contrast answer does not fit.
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
    check_tokenizer(tokenizer)
    if tokenizer is None:
        tokenizer = host.tokenizer
        if tokenizer is None:
            raise _no_tokenizer(host)
    else:
        check_beginning(tokenizer, host.tokenizer)
    # A tokenizer that the caller chooses is taken to fit the model as well as its own.
    fingerprints = [host.tokenizer_fingerprint, fingerprint(tokenizer)]
    known = frozenset(value for value in fingerprints if value is not None)
    form = PromptForm(
        tokenizer=tokenizer,
        masked=host.kind == "masked",
        decoder=host.decoder,
        side=host.side,
        n_ctx=host.n_ctx,
        d_vocab=host.d_vocab,
        device=host.device,
        made_for=MadeFor(kind=host.kind, tokenizers=known),
    )
    if isinstance(facts, Fact):
        facts = [facts]
    fact_set = _with_templates(facts, templates)
    return build(form, fact_set, contrast, unknown_answers, min_prompts)


def _no_tokenizer(host: Host) -> PromptError:
    own_tokens = "make the prompts from your own tokens with PromptBatch.from_tokens"
    if getattr(host.model, "tokenizer", None) is None:
        return PromptError(
            f"{host.name} has no tokenizer, which prompts from text need. Pass tokenizer=, or {own_tokens}."
        )
    return PromptError(
        f"The tokenizer of the checkpoint of {host.name} cannot be read again from "
        f"{host.model.tokenizer.name_or_path!r}. Prompts need it unchanged: TransformerLens has set model.tokenizer up "
        "to prepend BOS, also where the checkpoint was trained without it. Pass "
        f"tokenizer=transformers.AutoTokenizer.from_pretrained(...), or {own_tokens}."
    )


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """The properties of a model that determine the form of its prompts.

    Attributes:
        tokenizer: encodes the texts.
        masked: whether the model is a masked one.
        decoder: how the decoder of an encoder-decoder begins; None for other kinds.
        side: the stack of an encoder-decoder whose tokens positions count; None for other kinds.
        n_ctx: longest prompt in tokens; None without a limit.
        d_vocab: number of embeddings.
        device: where the prompts are put.
        made_for: the models that the prompts are meant for; None where that is not known.
    """

    tokenizer: Any
    masked: bool
    n_ctx: int | None
    d_vocab: int
    device: torch.device
    made_for: MadeFor | None = None
    decoder: DecoderForm | None = None
    side: Side | None = None

    @property
    def reads_whole_text(self) -> bool:
        """Whether the model sees the text after the answer."""
        return self.masked or self.decoder is not None

    @cached_property
    def placeholder(self) -> str | None:
        """The token that stands in the answer's place; None where there is none."""
        kind: Kind = "masked" if self.masked else "causal" if self.decoder is None else "encoder-decoder"
        return placeholder_token(self.tokenizer, kind)

    @cached_property
    def placeholder_id(self) -> int:
        """The id of `placeholder`, which there is."""
        token_id = getattr(self.tokenizer, "mask_token_id", None)
        if token_id is None:
            token_id = _sentinel_id(self.tokenizer)
        assert token_id is not None
        return token_id


def placeholder_token(tokenizer: Any, kind: Kind) -> str | None:
    """Return the token that stands in an answer's place in the text that a model of a kind reads.

    That is the mask token of the tokenizer; for an encoder-decoder without one the first sentinel. None for a causal
    model, which reads no such text, and where the tokenizer has no such token.
    """
    if kind == "causal":
        return None
    mask_token = getattr(tokenizer, "mask_token", None)
    if mask_token is None and kind == "encoder-decoder" and _sentinel_id(tokenizer) is not None:
        return SENTINEL
    return mask_token


def _sentinel_id(tokenizer: Any) -> int | None:
    """Return the id of the first sentinel; None where the tokenizer has none."""
    for token in (SENTINEL, f"▁{SENTINEL}"):  # the latter in the vocabulary of an mT5
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id is not None and token_id != tokenizer.unk_token_id:
            return token_id
    return None


class _Query(NamedTuple):
    """One fact in one template.

    Attributes:
        fact: number of the fact.
        template: as given.
        before: text before the answer.
        after: text after the answer; empty for causal models.
        subject_before: the first character of each mention of the subject in ``before``.
        subject_after: those in ``after``.
    """

    fact: int
    template: str
    before: str
    after: str
    subject_before: tuple[int, ...]
    subject_after: tuple[int, ...]

    @property
    def with_slot(self) -> str:
        """The prompt with the slot of the answer, for messages."""
        return self.before + OBJECT_SLOT + self.after


def build(
    form: PromptForm,
    facts: FactSet,
    contrast: str | Mapping[Fact, str] | None,
    unknown_answers: str,
    min_prompts: int = 1,
) -> PromptBatch:
    """Return the prompts of facts in a form; see ``make_prompts`` for the other arguments and the errors."""
    if unknown_answers not in ("error", "leave_out"):
        raise ArgumentError(f"unknown_answers is {unknown_answers!r}; expected 'error' or 'leave_out'.")
    if isinstance(min_prompts, bool) or not isinstance(min_prompts, int) or min_prompts < 1:
        raise ArgumentError(f"min_prompts={min_prompts!r}; expected a whole number from 1.")
    if form.reads_whole_text and form.placeholder is None:
        tokens = "a mask token" if form.masked else f"a mask token or {SENTINEL}"
        kind = "A masked language model" if form.masked else "An encoder-decoder"
        raise PromptError(
            f"{kind} is queried with {tokens}, and {type(form.tokenizer).__name__} has none. "
            "Pass the tokenizer of the checkpoint with tokenizer=."
        )
    if not facts:
        raise PromptError("There are no facts to ask for; expected at least one.")
    queries, left_out = _queries(form, facts)
    if not queries:
        raise _none_left(left_out)
    answers = [facts[query.fact].object for query in queries]
    # The encoder of an encoder-decoder reads the subject: positions of the decoder name no token of it.
    subjects = None if form.side == "decoder" else [facts[query.fact].subject for query in queries]
    encoded = _encode_answers(form, queries, answers, subjects)
    has_no_embedding = (encoded.ids >= form.d_vocab).any(-1)
    problem = np.where(has_no_embedding, BEYOND, encoded.problem)
    if unknown_answers == "error" and (problem != "").any():
        raise _unusable_answer(form, facts, queries, encoded, problem)
    fact_of_query = [query.fact for query in queries]
    n_prompts = np.bincount(fact_of_query, problem == "", minlength=len(facts))
    too_few = n_prompts[fact_of_query] < min_prompts
    problem = np.where(
        (problem == "") & too_few,
        f"{TOO_FEW} {min_prompts} prompts",
        problem,
    )
    left_out.update(problem[problem != ""])
    kept = np.flatnonzero(problem == "")
    if not len(kept):
        raise _none_left(left_out)
    queries, encoded = [queries[i] for i in kept], encoded[kept]
    _check_lengths_and_slots(form, queries, encoded)
    contrast_ids = _contrast_ids(form, facts, queries, encoded, contrast)
    return _batch(form, facts, queries, encoded, contrast_ids, dict(left_out))


def _queries(form: PromptForm, facts: FactSet) -> tuple[list[_Query], Counter[str]]:
    """Return the queries of all facts, and how many (fact, template) pairs have none, by reason."""
    queries: dict[tuple[int, str, str], _Query] = {}
    left_out: Counter[str] = Counter()
    usable: dict[str, bool] = {}
    for number, fact in enumerate(facts):
        if not fact.templates:
            raise PromptError(
                f"The fact {fact.key} has no templates. Pass templates= to make_prompts, or to the reader of the facts."
            )
        for template in fact.templates:
            if template not in usable:
                usable[template] = form.reads_whole_text or object_is_last(template)
            if not usable[template]:
                left_out[NOT_LAST] += 1
                continue
            # Split before the subject is filled in: a subject may read "[Y]".
            before, after = template.split(OBJECT_SLOT)
            before, subject_before = _filled_in(before, fact.subject)
            after, subject_after = _filled_in(after if form.reads_whole_text else "", fact.subject)
            if (number, before, after) in queries:
                left_out[SAME] += 1
                continue
            queries[number, before, after] = _Query(
                fact=number,
                template=template,
                before=before,
                after=after,
                subject_before=subject_before,
                subject_after=subject_after,
            )
    return list(queries.values()), left_out


def _filled_in(text: str, subject: str) -> tuple[str, tuple[int, ...]]:
    """Return a part of a template with the subject in its slot, and the first character of each mention of it.

    A template may write the subject out beside its slot: such words are mentions too.

    >>> _filled_in("In Eire, [X] is called ", "Eire")
    ('In Eire, Eire is called ', (3, 9))
    """
    slot = text.find(SUBJECT_SLOT)
    filled = text.replace(SUBJECT_SLOT, subject)
    starts = set() if slot < 0 else {slot}
    if subject and filled.count(subject) > len(starts):
        for mention in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", filled):
            if slot < 0 or abs(mention.start() - slot) >= len(subject):
                starts.add(mention.start())
    return filled, tuple(sorted(starts))


def object_is_last(template: str) -> bool:
    """Return whether nothing but punctuation, spaces and control characters follow the object."""
    rest = template.partition(OBJECT_SLOT)[2]
    if SUBJECT_SLOT in rest:
        return False
    return all(unicodedata.category(character)[0] in "PZC" for character in rest)


def _encode_answers(
    form: PromptForm,
    queries: Sequence[_Query],
    answers: Sequence[str],
    subjects: Sequence[str] | None = None,
) -> Encoded:
    """Encode each query with an answer in its slot.

    Args:
        form: the form of the prompts.
        queries: the queries.
        answers: one for each.
        subjects: the subject of each, where its tokens are wanted.
    """
    texts, begin, end = [], [], []
    for query, answer in zip(queries, answers, strict=True):
        texts.append(query.before + answer + query.after)
        begin.append(len(query.before))
        end.append(len(query.before) + len(answer))
    mentions = None
    if subjects is not None:
        mentions = []
        for query, subject, answer_end in zip(queries, subjects, end, strict=True):
            starts = [*query.subject_before, *(answer_end + start for start in query.subject_after)]
            mentions.append([(start, start + len(subject)) for start in starts if subject])
    return encode(form.tokenizer, texts, begin, end, mentions)


def _check_lengths_and_slots(
    form: PromptForm,
    queries: Sequence[_Query],
    encoded: Encoded,
) -> None:
    """Raise for a prompt that is longer than the context, or has no position, or two, to read the answer from."""
    if form.decoder is not None:
        of_encoder = encoded.length - encoded.n_answer + 1
        of_decoder = encoded.end if form.decoder.writes == "text" else encoded.n_answer + 1
        lengths = np.maximum(of_encoder, of_decoder)
    else:
        # The longest row of a causal prompt lacks only the answer's last token.
        lengths = encoded.length if form.masked else encoded.end - 1
    if form.n_ctx is not None and lengths.max() > form.n_ctx:
        longest = int(lengths.argmax())
        text = queries[longest].with_slot
        raise too_long(text, int(lengths[longest]), form.n_ctx)
    if form.reads_whole_text:
        in_answer = _between(encoded.ids.shape[1], encoded.start, encoded.end)
        has_mask = ((encoded.ids == form.placeholder_id) & ~in_answer).any(-1)
        if has_mask.any():
            text = queries[int(has_mask.argmax())].with_slot
            name = "the mask token" if form.masked else form.placeholder
            raise PromptError(f"The prompt {text!r} holds {name} besides the answer's place; expected the slot alone.")
    elif not encoded.start.all():
        query = queries[int((encoded.start == 0).argmax())]
        raise PromptError(
            f"The template {query.template!r} has nothing before the answer, "
            "and the tokenizer adds no token there: "
            "there is no position to read the answer from."
        )


def _batch(
    form: PromptForm,
    facts: FactSet,
    queries: Sequence[_Query],
    encoded: Encoded,
    contrast_ids: np.ndarray | None,
    left_out: dict[str, int],
) -> PromptBatch:
    """Return the queries as rows of tokens, one for each answer token."""
    prompt_index = np.repeat(np.arange(len(queries)), encoded.n_answer)
    first_row = np.cumsum(encoded.n_answer) - encoded.n_answer
    token_number = np.arange(len(prompt_index)) - first_row[prompt_index]
    answer_pos = encoded.start[prompt_index] + token_number  # of the row's answer token, in the full text
    target_ids = encoded.ids[prompt_index, answer_pos]
    # The attention mask hides padding, so any id of the model's will do; one added to a tokenizer may not be.
    pad_id = 0
    for known_id in (form.tokenizer.eos_token_id, form.tokenizer.pad_token_id):
        if known_id is not None and known_id < form.d_vocab:
            pad_id = known_id
    if form.decoder is not None:
        ids, lengths = _decoder_rows(form, form.decoder, encoded[prompt_index], token_number)
        read_pos = lengths - 1
    else:
        lengths = encoded.length[prompt_index] if form.masked else answer_pos
        ids = encoded.ids[prompt_index, : lengths.max()]
        read_pos = answer_pos if form.masked else answer_pos - 1
    tokens, mask = _padded(ids, lengths, pad_id)
    if form.masked:
        unseen = _between(tokens.shape[1], answer_pos, encoded.end[prompt_index])
        tokens = np.where(unseen, form.tokenizer.mask_token_id, tokens)
    mentions = None if form.side == "decoder" else encoded.mentions[prompt_index]
    encoder_tokens = encoder_mask = encoder_pos = None
    if form.decoder is not None:
        rows = encoded[prompt_index]
        encoder_ids, encoder_lengths = _encoder_rows(form, rows)
        encoder_tokens, encoder_mask = _padded(encoder_ids, encoder_lengths, pad_id)
        if form.side == "encoder":
            encoder_pos, mentions = rows.start, _mentions_beside_placeholder(rows)

    def tensor(values: Any) -> torch.Tensor:
        array = np.ascontiguousarray(values, dtype=np.int64)
        return torch.from_numpy(array).to(form.device)

    def optional(values: Any) -> torch.Tensor | None:
        return None if values is None else tensor(values)

    return PromptBatch(
        tokens=tensor(tokens),
        attention_mask=tensor(mask),
        read_pos=tensor(read_pos),
        target_ids=tensor(target_ids),
        prompt_index=tensor(prompt_index),
        contrast_ids=optional(contrast_ids),
        text=_texts(form, queries, encoded),
        fact_index=tensor([query.fact for query in queries]),
        template=tuple(query.template for query in queries),
        facts=facts.facts,
        left_out=left_out,
        made_for=form.made_for,
        encoder_tokens=optional(encoder_tokens),
        encoder_attention_mask=optional(encoder_mask),
        subject=optional(mentions),
        encoder_pos=optional(encoder_pos),
    )


def _padded(ids: np.ndarray, lengths: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens with padding beyond the length of each row, and whether each position holds a token."""
    mask = _between(ids.shape[1], np.zeros_like(lengths), lengths)
    return np.where(mask, ids, pad_id), mask


def _encoder_rows(form: PromptForm, rows: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the texts with one placeholder for all tokens of the answer, and their lengths."""
    lengths = rows.length - rows.n_answer + 1
    position = np.arange(lengths.max())
    n_skipped = np.where(position > rows.start[:, None], rows.n_answer[:, None] - 1, 0)
    source = np.minimum(position + n_skipped, rows.ids.shape[1] - 1)  # beyond the length it does not matter
    ids = np.take_along_axis(rows.ids, source, axis=1)
    return np.where(position == rows.start[:, None], form.placeholder_id, ids), lengths


def _mentions_beside_placeholder(rows: Encoded) -> np.ndarray:
    """Return the mentions of the subject, where one placeholder stands for all tokens of the answer."""
    n_fewer = (rows.n_answer - 1)[:, None, None]
    return np.where(rows.mentions > rows.start[:, None, None], rows.mentions - n_fewer, rows.mentions)


def _decoder_rows(
    form: PromptForm, decoder: DecoderForm, rows: Encoded, token_number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that the decoder has written before each row's answer token, and their number.

    Args:
        form: the form of the prompts.
        decoder: how the decoder begins.
        rows: the texts, one for each row.
        token_number: the number of the row's answer token within the answer.
    """
    every = np.arange(len(token_number))
    start_ids = rows.ids[every, rows.length - 1] if decoder.start_id is None else np.full_like(every, decoder.start_id)
    if decoder.writes == "text":
        lengths = 1 + rows.start + token_number
        written = rows.ids[:, : lengths.max() - 1]
        return np.concatenate([start_ids[:, None], written], axis=1), lengths
    lengths = 2 + token_number
    n_answer_pos = lengths.max() - 2
    source = np.minimum(rows.start[:, None] + np.arange(n_answer_pos), rows.ids.shape[1] - 1)
    answers = np.take_along_axis(rows.ids, source, axis=1)
    sentinels = np.full_like(start_ids, form.placeholder_id)
    return np.concatenate([start_ids[:, None], sentinels[:, None], answers], axis=1), lengths


def _texts(
    form: PromptForm,
    queries: Sequence[_Query],
    encoded: Encoded,
) -> tuple[str, ...]:
    """Return each prompt as text: with a placeholder in the answer's place, or what precedes the answer."""
    texts = []
    for query, n_tokens in zip(queries, encoded.n_answer.tolist(), strict=True):
        if form.masked:
            masks = " ".join([form.tokenizer.mask_token] * n_tokens)
            texts.append(f"{query.before}{masks}{query.after}")
        elif form.decoder is not None:
            texts.append(f"{query.before}{form.placeholder}{query.after}")
        else:
            texts.append(query.before.rstrip(" "))
    return tuple(texts)


def _contrast_ids(
    form: PromptForm,
    facts: FactSet,
    queries: Sequence[_Query],
    encoded: Encoded,
    contrast: str | Mapping[Fact, str] | None,
) -> np.ndarray | None:
    """Return the tokens of the contrast answers, row by row.

    Raises:
        PromptError: a fact has no contrast answer, or one that does not fit in the place of the true answer.
    """
    if contrast is None:
        return None
    if not isinstance(contrast, str):
        check_kind(contrast, Mapping, "an answer, or answers by fact: {fact: 'Rome'}", "contrast")
        for fact in facts:
            if fact not in contrast:
                raise PromptError(f"contrast gives no answer for the fact {fact.key}; expected one for each fact.")
    answers = []
    for query in queries:
        fact = facts[query.fact]
        answer = contrast if isinstance(contrast, str) else contrast[fact]
        if not isinstance(answer, str) or not answer.strip() or answer == fact.object:
            raise PromptError(
                f"The contrast answer of {fact.key} is {answer!r}; expected another answer than the true one."
            )
        answers.append(answer)
    contrasts = _encode_answers(form, queries, answers)
    is_unfit = (contrasts.problem != "") | (contrasts.n_answer != encoded.n_answer)
    if is_unfit.any():
        first = int(is_unfit.argmax())
        fact = facts[queries[first].fact]
        reason = contrasts.problem[first] or (
            f"it has {contrasts.n_answer[first]} tokens, "
            f"and {fact.object!r} has {encoded.n_answer[first]}: they must be as many"
        )
        template = queries[first].template
        raise PromptError(f"The contrast answer {answers[first]!r} does not fit {fact.key} in {template!r}: {reason}.")
    in_answer = _between(contrasts.ids.shape[1], contrasts.start, contrasts.end)
    return contrasts.ids[in_answer]


def _between(n_pos: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return whether each position of each row lies in [start, end); shape [row, pos]."""
    position = np.arange(n_pos)
    return (position >= start[:, None]) & (position < end[:, None])


def _with_templates(
    facts: Iterable[Fact],
    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None,
) -> FactSet:
    """Return the facts with other templates."""
    facts = facts if isinstance(facts, FactSet) else FactSet(facts)
    if templates is None:
        return facts
    reworded = []
    for fact in facts:
        fact_templates = templates
        if isinstance(templates, Mapping):
            if fact.relation not in templates:
                near = did_you_mean(fact.relation, templates)
                raise ArgumentError(f"templates has none for relation {fact.relation!r} of {fact.key}.{near}")
            fact_templates = templates[fact.relation]
        if isinstance(fact_templates, str):
            fact_templates = (fact_templates,)
        check_kind(fact_templates, Iterable, "a text or several: ['The capital of [X] is [Y].']", "templates")
        reworded.append(replace(fact, templates=tuple(fact_templates)))
    return FactSet(reworded)


def _none_left(left_out: Counter[str]) -> NoPromptError:
    """Return the error for facts without any prompt."""
    counts = ", ".join(f"{reason}: {number}" for reason, number in left_out.items())
    n_pairs = left_out.total()
    cure = "Causal models need templates that end with [Y]; answers must be writable in the model's vocabulary."
    if any(reason.startswith(TOO_FEW) for reason in left_out):
        cure += " Give the facts more templates, or accept those with few: min_prompts=1."
    return NoPromptError(
        f"No prompt is left of {n_pairs} pair{'s' * (n_pairs != 1)} of fact and template ({counts}). {cure}"
    )


def _unusable_answer(
    form: PromptForm,
    facts: FactSet,
    queries: Sequence[_Query],
    encoded: Encoded,
    problem: np.ndarray,
) -> PromptError:
    """Return the error for the first prompt whose answer cannot be queried."""
    unusable: list[int] = np.flatnonzero(problem).tolist()
    first = unusable[0]
    fact = facts[queries[first].fact]
    template = queries[first].template
    n_facts = len({queries[number].fact for number in unusable})
    more = f" ({n_facts} facts have such answers)" if n_facts > 1 else ""
    remedy = f"Correct it, or leave such prompts out and counted with {LEAVE_OUT}."
    if problem[first] == BEYOND:
        return PromptError(
            f"The tokenizer made the id {encoded.ids[first].max()} for {fact.key} in {template!r}, "
            f"but the model has {form.d_vocab} tokens. "
            "Pass the tokenizer of the checkpoint with tokenizer=; "
            "where the checkpoint has fewer embeddings than its own tokenizer has tokens, "
            f"leave such prompts out and counted with {LEAVE_OUT}."
        )
    if problem[first] == STRADDLES:
        return PromptError(
            f"The answer {fact.object!r} of {fact.key} shares a token with the text beside it "
            f"in {template!r}, so it cannot be masked alone{more}. {remedy}"
        )
    similar = []
    for token in form.tokenizer.get_vocab():
        word = token.lstrip("Ġ▁")
        if word[:1] == fact.object[:1]:
            similar.append(word)
    near = did_you_mean(fact.object, similar)
    return PromptError(
        f"The answer {fact.object!r} of {fact.key} is not in the vocabulary: "
        f"its tokens would be unknown, special or missing{more}.{near} {remedy}"
    )
