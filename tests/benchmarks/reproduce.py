"""How long a reproduction takes, and how much memory: the numbers of docs/reproduction.md.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.reproduce pararel/ [--limit N]

The model is ``world-bert`` with the words of ParaRel added to its vocabulary, their embeddings drawn from those of
its own words: of the size of the embedded models, with answers of one token, and knowing nothing. With ``--limit`` the
study runs on so many facts of each relation and is timed; in any case the whole of it is planned.
"""

import argparse
import platform
import resource
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken
from transformers import AutoModelForMaskedLM, AutoTokenizer

import kn_lens as kn
from kn_lens.runs.context import open_context
from kn_lens.runs.execute import RunState, run_stages
from kn_lens.runs.planning import plan
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.order import STAGES


def widened(facts: kn.FactSet, n_words: int = 8000):
    """Return ``world-bert`` with the words of the facts in its vocabulary: all answers, and frequent others."""
    checkpoint = Path(kn.__file__).parent / "world" / "models" / "world-bert"
    hf = AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    answers = dict.fromkeys(fact.object for fact in facts)
    words = Counter(word for fact in facts for word in fact.subject.split() if word.isalpha())
    new = [*answers, *(word for word, _ in words.most_common(n_words) if word not in answers)]
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in new if word not in tokenizer.get_vocab()])
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        like = torch.randint(known, (len(tokenizer) - known,), generator=generator)
        weight = hf.get_input_embeddings().weight
        weight[known:] = weight[like] + 0.3 * weight.std() * torch.randn(weight[like].shape, generator=generator)
    return kn.load_model(hf, tokenizer=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pararel", type=Path)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    facts = kn.FactSet.from_pararel(given.pararel)
    model = widened(facts)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; {facts}")
    with TemporaryDirectory() as folder:
        if given.limit:
            seconds: dict[str, float] = {}
            last = began = time.perf_counter()

            def watch(state: RunState) -> None:
                nonlocal last
                now = time.perf_counter()
                seconds[state.stage.name] = seconds.get(state.stage.name, 0.0) + now - last
                last = now

            with open_context(model, facts, Path(folder, "run"), Settings.of(limit=given.limit)) as study:
                tables = run_stages(study, STAGES, watch)
            n_prompts = int(tables["coverage"]["n_prompts"].sum())
            print({name: round(took, 1) for name, took in seconds.items()})
            print(f"{n_prompts:,} prompts in {time.perf_counter() - began:.0f} s")
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            print(f"{size / n_prompts:.0f} bytes of disk a prompt")
        planned = plan(model, facts, Path(folder, "whole"), Settings.of(), STAGES)
    print(planned.to_string(index=False))
    print(f"{planned['seconds'].sum() / 60:.1f} minutes; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} KiB")


if __name__ == "__main__":
    main()
