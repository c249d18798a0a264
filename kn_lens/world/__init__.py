"""The embedded world: facts about the real world, their templates, and small models trained on them, all offline.

``facts.jsonl``, ``templates.jsonl``, ``relations.jsonl`` and ``minimal_pairs.jsonl`` are described in ``DATA_CARD.md``;
``models/`` holds plain Hugging Face checkpoints, each with its model card. ``training`` produces all of them.
"""
