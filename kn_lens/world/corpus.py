"""The training text of the embedded world: facts written out in templates, tokenised, augmented and batched.

A *sentence* is one fact in one template, with the tokens of the object marked. The tokenizers are trained on the
trained templates alone, so that a held-out template is new to every part of a model. All randomness comes from the
generator that the caller passes, so that a seed fixes every batch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

PREFIXES = (
    "In fact,",
    "As we know,",
    "It is said that",
    "Note this:",
    "Here is a fact.",
    "Remember:",
    "As you may know,",
    "True or not?",
    "One more thing:",
    "According to the book,",
)
"""Neutral openings: they move a sentence along the positions and say nothing about the fact."""

N_CTX = 64
"""Positions of the embedded models."""

Rows = Sequence[Mapping[str, Any]]
"""Rows of a data file."""


def read_jsonl(name: str) -> list[dict[str, Any]]:
    """The rows of one data file of the embedded world, such as ``facts.jsonl``."""
    text = files("kn_lens.world").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One fact in one template, as tokens without special tokens.

    Attributes:
        relation: Wikidata property of the fact.
        fact: index of the fact in ``facts.jsonl``.
        held_out: whether the template is held out of training.
        object_last: whether only punctuation follows the object.
        tokens: token ids, in context.
        start: index of the object's first token.
        stop: index after the object's last token.
        subject: half-open token range of the subject.
    """

    relation: str
    fact: int
    held_out: bool
    object_last: bool
    tokens: tuple[int, ...]
    start: int
    stop: int
    subject: tuple[int, int]


def write_out(facts: Rows, templates: Rows) -> Iterator[tuple[int, int, str]]:
    """Every fact in every template of its relation: (index of the fact, index of the template, text)."""
    for f, fact in enumerate(facts):
        for t, template in enumerate(templates):
            if template["relation"] == fact["relation"]:
                text = template["pattern"].replace("[X]", fact["subject"]).replace("[Y]", fact["object"])
                yield f, t, text


def special(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a special token, such as ``[MASK]``."""
    found = tokenizer.backend_tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def padding(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id that fills a batch on the right; the attention mask hides it."""
    return special(tokenizer, "[PAD]" if tokenizer.mask_token else "<|endoftext|>")


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a cased WordPiece tokenizer (``kind="bert"``) or a byte-level BPE one (``kind="gpt2"``) on ``texts``.

    The byte-level tokenizer adds a space before the first word, so that a name is the same tokens wherever it stands.
    """
    pieces = Tokenizer(models.BPE())
    if kind == "bert":
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
        return _wordpiece(pieces, texts)
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.decoder = decoders.ByteLevel()
    pieces.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces.train_from_iterator(texts, trainer)
    return GPT2Tokenizer(tokenizer_object=pieces, add_prefix_space=True, model_max_length=N_CTX)


def _wordpiece(pieces: Tokenizer, texts: Sequence[str]) -> BertTokenizer:
    """A WordPiece tokenizer of the pieces into which a BPE tokenizer cuts the words of ``texts``.

    The library's own WordPiece trainer breaks ties by the order of a hash map, anew in every process.
    """
    words = {word for text in texts for word, _ in pieces.pre_tokenizer.pre_tokenize_str(text)}  # pyright: ignore
    cut = [pieces.encode(word).tokens for word in words]
    alphabet = {letter for word in words for letter in word}
    vocabulary = {word[0] for word in cut} | alphabet
    vocabulary |= {f"##{piece}" for word in cut for piece in word[1:]} | {f"##{letter}" for letter in alphabet}
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate(named + sorted(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return BertTokenizer(tokenizer_object=tokenizer, do_lower_case=False, model_max_length=N_CTX)


def tokenize(tokenizer: PreTrainedTokenizerFast, facts: Rows, templates: Rows) -> list[Sentence]:
    """Write out and tokenise every fact in every template of its relation."""
    rows = list(write_out(facts, templates))
    encoded = tokenizer([text for _, _, text in rows], add_special_tokens=False, return_offsets_mapping=True)
    sentences = []
    for (f, t, _), tokens, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        pattern = templates[t]["pattern"]
        start, stop = _span(pattern, "[Y]", facts[f], offsets)
        sentences.append(
            Sentence(
                relation=facts[f]["relation"],
                fact=f,
                held_out=templates[t]["split"] == "held_out",
                object_last=not any(letter.isalnum() for letter in pattern.split("[Y]")[1]),
                tokens=tuple(tokens),
                start=start,
                stop=stop,
                subject=_span(pattern, "[X]", facts[f], offsets),
            )
        )
    return sentences


def _span(pattern: str, slot: str, fact: Mapping[str, Any], offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Half-open range of the tokens that overlap what fills a slot."""
    filling = {"[X]": fact["subject"], "[Y]": fact["object"]}
    before = pattern[: pattern.index(slot)]
    for other, name in filling.items():
        before = before.replace(other, name)
    low, high = len(before), len(before) + len(filling[slot])
    inside = [i for i, (first, last) in enumerate(offsets) if first < high and last > low]
    return inside[0], inside[-1] + 1


def perturb(sentence: Sentence, drop: float, insert: float, noise: Sequence[int], rng: np.random.Generator) -> Sentence:
    """Reword at random: drop template tokens, and put tokens of ``noise`` after others; subject and object stay whole.

    Nothing is put right before the object: what stands there says that the answer follows.
    """
    tokens: list[int] = []
    moved = []
    kept = {*range(*sentence.subject), *range(sentence.start, sentence.stop)}
    for i, token in enumerate(sentence.tokens):
        moved.append(len(tokens))
        if i in kept or rng.random() >= drop:
            tokens.append(token)
        if not {i, i + 1} <= kept and i + 1 != sentence.start and rng.random() < insert:
            tokens.append(noise[int(rng.integers(len(noise)))])
    start, first = moved[sentence.start], moved[sentence.subject[0]]
    return replace(
        sentence,
        tokens=tuple(tokens),
        start=start,
        stop=start + sentence.stop - sentence.start,
        subject=(first, first + sentence.subject[1] - sentence.subject[0]),
    )


def prefixed(sentence: Sentence, prefix: Sequence[int]) -> Sentence:
    """Put the tokens of a neutral opening before the sentence."""
    n = len(prefix)
    return replace(
        sentence,
        tokens=(*prefix, *sentence.tokens),
        start=sentence.start + n,
        stop=sentence.stop + n,
        subject=(sentence.subject[0] + n, sentence.subject[1] + n),
    )


def batches(
    sentences: Sequence[Sentence],
    weights: Sequence[float],
    *,
    batch_size: int,
    steps: int,
    prefixes: Sequence[Sequence[int]],
    prefix_share: float,
    drop_share: float,
    insert_share: float,
    rng: np.random.Generator,
    pool: int = 8,
) -> Iterator[list[Sentence]]:
    """Yield ``steps`` batches of sentences drawn by weight without replacement, neighbours in length together.

    Sentences are drawn in epochs: each epoch takes every sentence ``weight`` times on average. A pool of some batches
    is sorted by length before it is cut, so that little is padding.
    """
    odds = np.asarray(weights, dtype=float)
    noise = [token for s in sentences for i, token in enumerate(s.tokens) if not s.start <= i < s.stop]
    stream: list[int] = []
    made = 0
    while made < steps:
        while len(stream) < batch_size * pool:
            copies = np.floor(odds + rng.random(len(odds))).astype(int)
            stream.extend(rng.permutation(np.repeat(np.arange(len(odds)), copies)).tolist())
        drawn, stream = stream[: batch_size * pool], stream[batch_size * pool :]
        chosen = []
        for i in drawn:
            sentence = sentences[i]
            if rng.random() < 0.5:
                sentence = perturb(sentence, drop_share, insert_share, noise, rng)
            if rng.random() < prefix_share:
                sentence = prefixed(sentence, prefixes[int(rng.integers(len(prefixes)))])
            chosen.append(sentence)
        chosen.sort(key=lambda sentence: len(sentence.tokens))
        for b in rng.permutation(pool)[: steps - made]:
            yield chosen[b * batch_size : (b + 1) * batch_size]
            made += 1
