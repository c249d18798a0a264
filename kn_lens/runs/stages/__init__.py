"""The stages of a reproduction: a file for each table or figure of the paper, and for each check.

``facts`` selects the facts to query. ``attributions`` scores all neurons, and ``neurons`` refines each fact's neurons
(Table 2, Figure 3). ``interventions`` suppresses and amplifies them (Figures 4 and 5), ``texts`` measures their
activations on sentences (Table 3), and ``fact_details`` and ``readouts`` describe single facts and neurons.
``answers`` measures what the model knows. ``updates`` (Table 6) rewrites known facts, and ``erasures`` (Table 5)
removes whole relations. The checks are ``robustness``, and ``syntax_pairs`` with ``syntax``. ``circuits`` are those of
some facts, and ``redundancy`` asks for facts with more than one home, both on request. ``order`` lists all stages.
"""
