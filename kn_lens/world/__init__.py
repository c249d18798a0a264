"""The embedded world: real facts, their paraphrase templates, and small checkpoints trained on them.

Everything here works offline. ``facts.jsonl``, ``templates.jsonl``, ``relations.jsonl`` and ``minimal_pairs.jsonl`` are
described in ``DATA_CARD.md``; ``models/`` holds plain Hugging Face checkpoints, each with its model card.
"""
