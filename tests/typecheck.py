"""The type checker of the suite: beartype, with int accepted where float is annotated, as type checkers do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
