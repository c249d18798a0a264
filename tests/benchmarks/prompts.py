"""How long the whole of ParaRel takes to become prompts, on one core.

    python -m tests.benchmarks.prompts PARAREL_DIR

Reads the 34 relations with at least 4 templates and encodes every fact in every template for a masked tokenizer
(WordPiece, 30,000 pieces) and for a causal one (byte-level BPE, 50,000), each trained on ParaRel's own sentences. The
time counts the reading and both encodings, not the making of the tokenizers or imports.
"""

import os
import sys
from collections.abc import Iterator
from time import perf_counter, process_time

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries are loaded

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kn_lens.facts.facts import FactSet
from kn_lens.prompts.build import PromptForm
from kn_lens.prompts.build import build as build_prompts

LIMIT_S = 60.0


def sentences(facts: FactSet) -> Iterator[str]:
    """Every fact in the first of its templates, and every template once."""
    for fact in facts:
        yield fact.filled(fact.templates[0]).replace("[Y]", fact.object)
    yield from {template.replace("[X]", "").replace("[Y]", "") for fact in facts for template in fact.templates}


def masked_tokenizer(facts: FactSet) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences(facts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )


def causal_tokenizer(facts: FactSet) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=50_000, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(sentences(facts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def main(root: str) -> int:
    began = perf_counter()
    facts = FactSet.from_pararel(root)
    total = perf_counter() - began
    n_pairs = sum(len(fact.templates) for fact in facts)
    print(f"read    {total:6.2f} s  {len(facts)} facts, {len(facts.relations)} relations, {n_pairs} pairs")
    for name, tokenizer in (("masked", masked_tokenizer(facts)), ("causal", causal_tokenizer(facts))):
        form = PromptForm(
            tokenizer=tokenizer,
            masked=name == "masked",
            n_ctx=512,
            d_vocab=len(tokenizer),
            device=torch.device("cpu"),
        )
        began, began_cpu = perf_counter(), process_time()
        prompts = build_prompts(form, facts, None, "leave_out")
        elapsed = perf_counter() - began
        total += elapsed
        print(
            f"{name}  {elapsed:6.2f} s  {process_time() - began_cpu:.2f} s of processor time, {len(prompts)} prompts, "
            f"{prompts.n_rows} rows of {prompts.tokens.shape[1]}, left out {dict(prompts.left_out)}"
        )
    print(f"total   {total:6.2f} s, limit {LIMIT_S:.0f} s")
    return int(total > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
