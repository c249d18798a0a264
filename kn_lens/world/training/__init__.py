"""Production of the embedded facts and models.

``build_facts`` builds ``facts.jsonl`` from its sources. ``corpus`` turns facts into training sentences, ``recipes``
holds the hyperparameters, ``networks`` the model classes and ``objective`` the loss. ``train`` trains a model,
``evaluate`` measures it and ``card`` describes it. ``make`` is all three in one command:
``python -m kn_lens.world.training world-bert``.
"""
