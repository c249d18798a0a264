"""Tokenization: the positions of the tokens of an answer, and of a subject, in a text.

Text and answer are encoded together, once. The answer is the run of tokens that overlap its characters, so that word
pieces, leading spaces and byte merges are those that the checkpoint saw in training, for any tokenizer. A space before
the answer belongs to the answer's first token; where the tokenizer makes the space a token of its own, that token is
the answer's first.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from kn_lens.errors import PromptError

UNKNOWN = "answer not in the vocabulary"
STRADDLES = "answer shares a token with the text beside it"

CharacterSpan = tuple[int, int]
"""The first character of a part of a text, and the one past its last."""

_TEXTS_PER_CALL = 8192  # bounds the memory of the tokenizer's own objects


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Texts as tokens, with the run of tokens that is each text's answer.

    Attributes:
        ids: tokens, zero beyond ``length``; shape [text, pos].
        length: number of tokens; shape [text].
        start: position of the answer's first token; shape [text].
        n_answer: number of the answer's tokens; shape [text].
        problem: why the answer cannot be used, ``""`` if it can; shape [text].
        mentions: the first token of each mention of the subject and the one past its last, -1 and -1 where a text has
            fewer, or where no token stands for a mention; shape [text, mention, 2].
    """

    ids: np.ndarray
    length: np.ndarray
    start: np.ndarray
    n_answer: np.ndarray
    problem: np.ndarray
    mentions: np.ndarray

    @property
    def end(self) -> np.ndarray:
        """One past the position of the answer's last token."""
        return self.start + self.n_answer

    def __getitem__(self, texts: np.ndarray) -> "Encoded":
        return Encoded(
            ids=self.ids[texts],
            length=self.length[texts],
            start=self.start[texts],
            n_answer=self.n_answer[texts],
            problem=self.problem[texts],
            mentions=self.mentions[texts],
        )


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    begin: Sequence[int],
    end: Sequence[int],
    mentions: Sequence[Sequence[CharacterSpan]] | None = None,
) -> Encoded:
    """Encode texts, with special tokens, and find the tokens of their answers, and of mentions of their subjects.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        texts: the texts.
        begin: position of the answer's first character, in each text.
        end: one past the position of its last character.
        mentions: the characters of each mention of the subject, in each text; None where they are not wanted. The
            tokens of a mention are those over its characters, also those that it shares with the text beside it.

    Raises:
        PromptError: the tokenizer does not give the characters that a token covers.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            f"The tokenizer {type(tokenizer).__name__} cannot say which characters a token covers; "
            "expected a fast one: transformers.AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    spans = _character_spans(mentions or [()] * len(texts))
    chunks = []
    for first in range(0, len(texts), _TEXTS_PER_CALL):
        chunk = slice(first, first + _TEXTS_PER_CALL)
        chunks.append(_encode_chunk(tokenizer, texts[chunk], begin[chunk], end[chunk], spans[chunk]))
    n_pos = max(chunk.ids.shape[1] for chunk in chunks)
    padded_ids = []
    for chunk in chunks:
        n_padding = n_pos - chunk.ids.shape[1]
        padded_ids.append(np.pad(chunk.ids, ((0, 0), (0, n_padding))))
    arrays = {}
    for name in ("length", "start", "n_answer", "problem", "mentions"):
        arrays[name] = np.concatenate([getattr(chunk, name) for chunk in chunks])
    return Encoded(ids=np.concatenate(padded_ids), **arrays)


def _encode_chunk(
    tokenizer: Any,
    texts: Sequence[str],
    begin: Sequence[int],
    end: Sequence[int],
    mention_spans: np.ndarray,
) -> Encoded:
    coded = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,  # a text longer than the context is an error of our own, after the cut
    )
    length = np.fromiter(map(len, coded["input_ids"]), np.int64, len(texts))
    ids = np.fromiter(chain.from_iterable(coded["input_ids"]), np.int64, length.sum())
    offsets = chain.from_iterable(chain.from_iterable(coded["offset_mapping"]))
    first, last = np.fromiter(offsets, np.int64, 2 * length.sum()).reshape(-1, 2).T
    special = np.isin(ids, tokenizer.all_special_ids)

    # One flat run of tokens from here on; text_of is the text of each token.
    text_start = np.cumsum(length) - length
    text_of = np.repeat(np.arange(len(texts)), length)
    answer_begin = np.asarray(begin)[text_of]
    answer_end = np.asarray(end)[text_of]
    in_answer = (first < answer_end) & (last > answer_begin)
    answer_text = text_of[in_answer]  # the text of each token that is in an answer
    n_answer = np.bincount(answer_text, minlength=len(texts))
    start = np.full(len(texts), len(ids))
    np.minimum.at(start, answer_text, np.flatnonzero(in_answer))
    stop = np.zeros(len(texts), np.int64)
    np.maximum.at(stop, answer_text, np.flatnonzero(in_answer) + 1)

    problem = np.where(n_answer > 0, "", UNKNOWN).astype(object)
    problem[text_of[in_answer & special]] = UNKNOWN
    # Some tokenizers drop the characters they do not know, without a token for "unknown".
    span_begin = np.maximum(first, answer_begin)[in_answer]
    span_end = np.minimum(last, answer_end)[in_answer]
    spans = np.stack([span_begin, span_end], axis=1)
    n_characters = np.asarray(end) - np.asarray(begin)
    has_gap = _covered(spans, answer_text, len(texts)) < n_characters
    n_spans = n_answer.cumsum()
    for i in np.flatnonzero(has_gap).tolist():
        answer_spans = spans[n_spans[i] - n_answer[i] : n_spans[i]].tolist()
        if _lacks_token(texts[i], begin[i], end[i], answer_spans):
            problem[i] = UNKNOWN

    answered = np.flatnonzero(n_answer)
    before = start[answered] - 1  # the token before the answer
    has_before = (before >= text_start[answered]) & ~special[before]
    characters = np.stack(
        [
            first[start[answered]],
            last[stop[answered] - 1],
            first[before],
            last[before],
            has_before,
        ],
        axis=1,
    )
    edges = zip(answered.tolist(), characters.tolist(), strict=True)
    for i, (low, high, low_before, high_before, exists) in edges:
        text = texts[i]
        text_beside = text[low : begin[i]] + text[end[i] : high]
        if text_beside.strip():  # also where one unknown token covers both the answer and its neighbour
            problem[i] = STRADDLES
        text_before = text[low_before:high_before]
        if exists and high_before == begin[i] and not text_before.strip(" "):
            start[i] -= 1
    start = np.where(n_answer > 0, start - text_start, 0)
    stop = np.where(n_answer > 0, stop - text_start, 0)
    padded = np.zeros((len(texts), length.max()), np.int64)
    padded[np.arange(padded.shape[1]) < length[:, None]] = ids
    return Encoded(
        ids=padded,
        length=length,
        start=start,
        n_answer=stop - start,
        problem=problem,
        mentions=_token_spans(mention_spans, first, last, special, text_of, text_start),
    )


def _character_spans(mentions: Sequence[Sequence[CharacterSpan]]) -> np.ndarray:
    """Return the spans of each text as one array [text, mention, 2], with -1 where a text has fewer."""
    most = max(map(len, mentions))
    spans = np.full((len(mentions), most, 2), -1)
    for number, of_text in enumerate(mentions):
        if of_text:
            spans[number, : len(of_text)] = of_text
    return spans


def _token_spans(
    spans: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    special: np.ndarray,
    text_of: np.ndarray,
    text_start: np.ndarray,
) -> np.ndarray:
    """Return the tokens over spans of characters, as `Encoded.mentions`.

    Args:
        spans: of characters, [text, mention, 2].
        first: the first character of each token.
        last: one past its last character.
        special: whether it is a special token.
        text_of: the text of each token.
        text_start: the first token of each text.
    """
    n_texts, n_mentions = spans.shape[:2]
    found = np.full((n_texts, n_mentions, 2), -1)
    for mention in range(n_mentions):
        begin, end = spans[text_of, mention].T
        is_over = (first < end) & (last > begin) & ~special
        tokens = np.flatnonzero(is_over)
        texts = text_of[is_over]
        start = np.full(n_texts, len(first))
        stop = np.full(n_texts, -1)
        np.minimum.at(start, texts, tokens)
        np.maximum.at(stop, texts, tokens + 1)
        has_tokens = stop >= 0
        found[has_tokens, mention, 0] = (start - text_start)[has_tokens]
        found[has_tokens, mention, 1] = (stop - text_start)[has_tokens]
    return found


def _covered(spans: np.ndarray, text_of: np.ndarray, n_texts: int) -> np.ndarray:
    """Return the number of characters of each text that its spans, which are in order, cover together."""
    # The tokens of the bytes of one character have the same span, so that lengths cannot just be added up.
    previous_end = np.concatenate([[0], spans[:-1, 1]])
    previous_text = np.concatenate([[-1], text_of[:-1]])
    covered_to = np.where(text_of == previous_text, previous_end, 0)
    n_new = spans[:, 1] - np.maximum(spans[:, 0], covered_to)
    return np.bincount(text_of, np.maximum(n_new, 0), n_texts)


def _lacks_token(
    text: str,
    begin: int,
    end: int,
    spans: list[list[int]],
) -> bool:
    """Return whether the spans of an answer's tokens leave out a character that must have a token."""
    uncovered = set(range(begin, end))
    for low, high in spans:
        uncovered.difference_update(range(low, high))
    return any(_needs_token(text[position]) for position in uncovered)


def _needs_token(character: str) -> bool:
    """Return whether a character must have a token: normalisation may drop spaces, accents and control characters."""
    if character.isspace():
        return False
    return unicodedata.category(character)[0] not in "MC"
