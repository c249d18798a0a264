"""The training corpus of the embedded models: facts in templates, tokenised, augmented and batched.

A *sentence* is one fact in one template, with the tokens of the object marked. The tokenizers are trained on the
trained templates alone, so that a held-out template is new to every part of a model. All randomness comes from the
generator that the caller passes: a seed fixes every batch.
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
"""Neutral openings. They shift the positions of a sentence and carry no information about the fact."""

N_CTX = 64
"""Context length of the embedded models."""

PERTURBED_SHARE = 0.5
"""Probability that a sentence is perturbed."""

Rows = Sequence[Mapping[str, Any]]
"""Rows of a data file."""


def read_jsonl(name: str) -> list[dict[str, Any]]:
    """Return the rows of a data file of the embedded world, such as ``facts.jsonl``."""
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
        tokens: token ids of the whole sentence.
        start: index of the first token of the object.
        stop: index after the last token of the object.
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


def fill_templates(facts: Rows, templates: Rows) -> Iterator[tuple[int, int, str]]:
    """Yield each fact in each template of its relation and language: index of the fact, index of the template, text."""
    for fact_index, fact in enumerate(facts):
        for template_index, template in enumerate(templates):
            same_language = template.get("language", "") == fact.get("language", "")
            if template["relation"] == fact["relation"] and same_language:
                text = template["pattern"].replace("[X]", fact["subject"])
                text = text.replace("[Y]", fact["object"])
                yield fact_index, template_index, text


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a special token, such as ``[MASK]``."""
    token_id = tokenizer.backend_tokenizer.token_to_id(token)
    assert token_id is not None, token
    return token_id


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the padding token. The attention mask hides it."""
    return special_id(tokenizer, "[PAD]" if tokenizer.mask_token else "<|endoftext|>")


def train_tokenizer(
    kind: str,
    texts: Sequence[str],
    vocab_size: int,
) -> PreTrainedTokenizerFast:
    """Train a cased WordPiece (``kind="bert"``) or byte-level BPE (``kind="gpt2"``) tokenizer on ``texts``.

    The byte-level tokenizer adds a space before the first word, so that a name has the same tokens at every position.
    """
    bpe = Tokenizer(models.BPE())
    if kind == "bert":
        bpe.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False)
        bpe.train_from_iterator(texts, trainer)
        return _wordpiece_tokenizer(bpe, texts)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return GPT2Tokenizer(tokenizer_object=bpe, add_prefix_space=True, model_max_length=N_CTX)


def _wordpiece_tokenizer(bpe: Tokenizer, texts: Sequence[str]) -> BertTokenizer:
    """Return a WordPiece tokenizer whose vocabulary is the pieces that a BPE tokenizer makes of ``texts``.

    The WordPiece trainer of ``tokenizers`` breaks ties by the order of a hash map, which differs between processes.
    """
    words: set[str] = set()
    for text in texts:
        for word, _ in bpe.pre_tokenizer.pre_tokenize_str(text):  # pyright: ignore
            words.add(word)
    vocabulary: set[str] = set()
    for word in words:
        first, *rest = bpe.encode(word).tokens
        vocabulary.add(first)
        for piece in rest:
            vocabulary.add(f"##{piece}")
        for letter in word:
            vocabulary |= {letter, f"##{letter}"}
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = special_tokens + sorted(vocabulary)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return BertTokenizer(tokenizer_object=tokenizer, do_lower_case=False, model_max_length=N_CTX)


def tokenize(
    tokenizer: PreTrainedTokenizerFast,
    facts: Rows,
    templates: Rows,
) -> list[Sentence]:
    """Return each fact in each template of its relation as a tokenised sentence."""
    filled = list(fill_templates(facts, templates))
    texts = [text for _, _, text in filled]
    encoding = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    sentences = []
    for i, (fact_index, template_index, _) in enumerate(filled):
        fact = facts[fact_index]
        template = templates[template_index]
        pattern = template["pattern"]
        offsets = encoding["offset_mapping"][i]
        start, stop = _slot_tokens(pattern, "[Y]", fact, offsets)
        sentence = Sentence(
            relation=fact["relation"],
            fact=fact_index,
            held_out=template["split"] == "held_out",
            object_last=not any(letter.isalnum() for letter in pattern.split("[Y]")[1]),
            tokens=tuple(encoding["input_ids"][i]),
            start=start,
            stop=stop,
            subject=_slot_tokens(pattern, "[X]", fact, offsets),
        )
        sentences.append(sentence)
    return sentences


def _slot_tokens(
    pattern: str,
    slot: str,
    fact: Mapping[str, Any],
    offsets: Sequence[tuple[int, int]],
) -> tuple[int, int]:
    """Return the half-open range of the tokens that overlap the name in a slot."""
    names = {"[X]": fact["subject"], "[Y]": fact["object"]}
    before = pattern[: pattern.index(slot)]
    for other, name in names.items():
        before = before.replace(other, name)
    first_char = len(before)
    end_char = first_char + len(names[slot])
    inside = [i for i, (start, end) in enumerate(offsets) if start < end_char and end > first_char]
    return inside[0], inside[-1] + 1


def perturb(
    sentence: Sentence,
    drop: float,
    insert: float,
    noise: Sequence[int],
    rng: np.random.Generator,
) -> Sentence:
    """Return a sentence with template tokens dropped and random tokens inserted; subject and object stay whole.

    No token is inserted directly before the object, where the context announces the answer.

    Args:
        sentence: the original.
        drop: probability of dropping each template token.
        insert: probability of inserting a token after each token.
        noise: tokens to insert.
        rng: source of all draws.
    """
    names = {*range(*sentence.subject), *range(sentence.start, sentence.stop)}
    tokens: list[int] = []
    new_index = []
    for i, token in enumerate(sentence.tokens):
        new_index.append(len(tokens))
        if i in names or rng.random() >= drop:
            tokens.append(token)
        inside_name = i in names and i + 1 in names
        if not inside_name and i + 1 != sentence.start and rng.random() < insert:
            tokens.append(noise[int(rng.integers(len(noise)))])
    start = new_index[sentence.start]
    subject = new_index[sentence.subject[0]]
    return replace(
        sentence,
        tokens=tuple(tokens),
        start=start,
        stop=start + sentence.stop - sentence.start,
        subject=(subject, subject + sentence.subject[1] - sentence.subject[0]),
    )


def with_prefix(sentence: Sentence, prefix: Sequence[int]) -> Sentence:
    """Return a sentence with the tokens of a neutral opening before it."""
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
    """Yield ``steps`` batches of augmented sentences, drawn by weight without replacement.

    An epoch takes each sentence ``weight`` times on average. A pool of ``pool`` batches is sorted by length before it
    is split, so that sentences of similar length share a batch and little is padding.
    """
    expected_copies = np.asarray(weights, dtype=float)
    noise: list[int] = []
    for sentence in sentences:
        noise.extend(sentence.tokens[: sentence.start])
        noise.extend(sentence.tokens[sentence.stop :])
    stream: list[int] = []
    n_batches = 0
    while n_batches < steps:
        while len(stream) < batch_size * pool:
            copies = np.floor(expected_copies + rng.random(len(sentences))).astype(int)
            epoch = np.repeat(np.arange(len(sentences)), copies)
            stream.extend(rng.permutation(epoch).tolist())
        drawn = stream[: batch_size * pool]
        stream = stream[batch_size * pool :]
        pooled = []
        for i in drawn:
            sentence = sentences[i]
            if rng.random() < PERTURBED_SHARE:
                sentence = perturb(sentence, drop_share, insert_share, noise, rng)
            if rng.random() < prefix_share:
                sentence = with_prefix(sentence, prefixes[int(rng.integers(len(prefixes)))])
            pooled.append(sentence)
        pooled.sort(key=lambda sentence: len(sentence.tokens))
        for batch in rng.permutation(pool)[: steps - n_batches]:
            yield pooled[batch * batch_size : (batch + 1) * batch_size]
            n_batches += 1
