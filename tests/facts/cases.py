"""A few facts, and random ones."""

from hypothesis import strategies as st

from kn_lens.facts.facts import Fact, FactSet

CAPITAL = "The capital of [X] is [Y]."
FACTS = FactSet(
    [
        Fact("Ireland", "P36", "Dublin", (CAPITAL, "[Y] is the capital of [X]."), uid="a"),
        Fact("France", "P36", "Paris", (CAPITAL,)),
        Fact("Ireland", "P30", "Europe", ("[X] lies in [Y].",)),
        Fact("Dublin", "P1376", "Ireland", ("[X] is the capital of [Y].",)),
    ]
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
pieces = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]"))
templates = st.tuples(pieces, pieces, pieces, st.booleans()).map(
    lambda t: f"{t[0]}[X]{t[1]}[Y]{t[2]}" if t[3] else f"{t[0]}[Y]{t[1]}[X]{t[2]}"
)
some_facts = st.builds(
    Fact,
    names,
    names,
    names,
    st.lists(templates, max_size=3).map(tuple),
    names | st.just(""),
    names | st.just(""),
)
