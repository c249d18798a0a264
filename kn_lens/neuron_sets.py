"""Neurons, immutable sets of them, and reading and writing such sets.

A neuron is a row of a layer's ``W_out`` (its value), and the scalar at the same place of ``hook_post`` (how much its
key fired). In a gated MLP, too, there is one neuron per row of ``W_out``.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import index as as_int
from pathlib import Path
from typing import Any

from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Host, host_of
from kn_lens.model_identity import ModelIdentity, is_hosted
from kn_lens.neuron_files import read_sets, write_sets


@dataclass(frozen=True, order=True, slots=True)
class Neuron:
    """One neuron; ordered by layer, then index.

    Attributes:
        layer: zero-based block.
        index: row of the block's ``W_out``, from 0 to ``d_mlp - 1``.

    >>> str(Neuron(layer=9, index=1234))
    'L9N1234'
    """

    layer: int
    index: int

    def __post_init__(self) -> None:
        for name in ("layer", "index"):
            got = getattr(self, name)
            try:
                number = -1 if isinstance(got, bool) else as_int(got)
            except TypeError:
                number = -1
            if number < 0:
                raise ArgumentError(f"Neuron {name}={got!r}; expected a whole number from 0.")
            object.__setattr__(self, name, number)  # NumPy's integers become Python's

    def __str__(self) -> str:
        return f"L{self.layer}N{self.index}"


class NeuronSet(AbstractSet[Neuron], Hashable):
    """An immutable set of neurons, iterated in order of layer and index.

    It has the operators of Python's sets, with any iterable of neurons or ``(layer, index)`` pairs on the right of
    ``|``, ``&``, ``-`` and ``^``, and equals and hashes like a ``frozenset`` of the same neurons.

    >>> found = NeuronSet([(9, 1234), (10, 5), (9, 7)])
    >>> found & [(9, 7), (3, 3)]
    NeuronSet([(9, 7)])
    >>> found.by_layer()
    {9: (7, 1234), 10: (5,)}
    """

    __slots__ = ("_members", "_ordered")

    def __init__(self, neurons: Iterable[Neuron | tuple[int, int]] = ()) -> None:
        self._members = frozenset(map(_neuron, neurons))
        self._ordered = tuple(sorted(self._members))

    def __contains__(self, neuron: object) -> bool:
        return neuron in self._members

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self._ordered)

    def __len__(self) -> int:
        return len(self._ordered)

    def __hash__(self) -> int:
        return hash(self._members)

    def __repr__(self) -> str:
        return f"NeuronSet({[(neuron.layer, neuron.index) for neuron in self]})"

    def __or__(self, other: Iterable[Any]) -> "NeuronSet":
        return NeuronSet(self._members | NeuronSet(other)._members)

    def __and__(self, other: Iterable[Any]) -> "NeuronSet":
        return NeuronSet(self._members & NeuronSet(other)._members)

    def __sub__(self, other: Iterable[Any]) -> "NeuronSet":
        return NeuronSet(self._members - NeuronSet(other)._members)

    def __xor__(self, other: Iterable[Any]) -> "NeuronSet":
        return NeuronSet(self._members ^ NeuronSet(other)._members)

    __ror__, __rand__, __rxor__ = __or__, __and__, __xor__

    def __rsub__(self, other: Iterable[Any]) -> "NeuronSet":
        return NeuronSet(other) - self

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Return the indices of each layer that has any, both in ascending order."""
        layers: dict[int, list[int]] = {}
        for neuron in self:
            layers.setdefault(neuron.layer, []).append(neuron.index)
        return {layer: tuple(indices) for layer, indices in layers.items()}

    def layer_counts(self, n_layers: int) -> tuple[int, ...]:
        """Return the number of neurons in each of the model's layers.

        Raises:
            ArgumentError: a neuron lies above the last layer.
        """
        if self and self._ordered[-1].layer >= n_layers:
            raise ArgumentError(f"{self._ordered[-1]} is in layer {self._ordered[-1].layer}; there are {n_layers}.")
        found = self.by_layer()
        return tuple(len(found.get(layer, ())) for layer in range(n_layers))

    def check(self, model: Any) -> None:
        """Raise unless the model, or ``Host``, has every neuron of the set.

        Raises:
            ArgumentError: naming the first that it does not have, and what it has.
        """
        host = model if isinstance(model, Host) else host_of(model)
        for neuron in self:
            if neuron.layer >= host.n_layers or neuron.index >= host.d_mlp:
                raise ArgumentError(
                    f"{host.name} has no neuron {neuron}; expected layers 0 to {host.n_layers - 1} and indices 0 to "
                    f"{host.d_mlp - 1}. Was the set made for another model?"
                )

    @classmethod
    def read_many(cls, path: str | Path, *, model: Any = None) -> "dict[str, NeuronSet]":
        """Read all sets of a JSON file: ours, EleutherAI's, or the released code's ``kn_bag`` and ``kn_rel``.

        The formats are told apart by their shape. The keys are the file's own: for ours what it was written with
        (``Fact.key``), for EleutherAI's the ParaRel uuid, for the released code's ``P36[0]``, ``P36[1]``, ...: the
        relation and the fact's place in it. ``match_facts`` finds the facts.

        Args:
            path: the file.
            model: the model that they are meant for; a ``Host`` will do. A file that was written with
                ``write_many(..., model=model)`` is held to it by the model's weights, wherever they were loaded from,
                one that holds a name alone by the name, and one that names no model not at all. None takes any.

        Raises:
            DataError: the file cannot be read or holds something else, or neurons of another model.
        """
        sets, of_model = read_sets(Path(path))
        found_in = ModelIdentity.read(of_model)
        if model is not None and found_in is not None:
            here = ModelIdentity.of(model, with_digest=found_in.digest is not None)
            if (difference := found_in.difference(here)) is not None:
                raise DataError(
                    f"{path} holds neurons of {found_in.name}, and the model is {here.name}: {difference}. A neuron's "
                    "index means nothing in another model; find them in this one, or read them all the same with "
                    "model=None."
                )
        return {key: cls(pairs) for key, pairs in sets.items()}

    @classmethod
    def read(cls, path: str | Path, *, model: Any = None) -> "NeuronSet":
        """Read a file that holds one set; see ``read_many``.

        Raises:
            DataError: as ``read_many``, or the file holds several sets.
        """
        found = cls.read_many(path, model=model)
        if len(found) > 1:
            raise DataError(f"{path} holds {len(found)} neuron sets; read them with NeuronSet.read_many.")
        return next(iter(found.values()))

    @staticmethod
    def write_many(path: str | Path, sets: "Mapping[Any, NeuronSet]", **meta: Any) -> None:
        """Write sets to one JSON file, which appears whole or not at all.

        Args:
            path: the file.
            sets: keyed by facts (written as ``Fact.key``) or by strings.
            **meta: kept in the file beside them: ``model``, the model itself, by which ``read_many`` and the command
                line tell it from others, or its name; the thresholds.

        Raises:
            ArgumentError: two facts with one key, or ``meta`` that is not JSON.
            DataError: the file cannot be written.
        """
        named: dict[str, NeuronSet] = {}
        for key, neurons in sets.items():
            name = key.key if isinstance(key, Fact) else str(key)
            if name in named:
                raise ArgumentError(f"Two of the sets have the key {name!r}; give the facts different uids.")
            named[name] = neurons
        pairs = {name: [(neuron.layer, neuron.index) for neuron in neurons] for name, neurons in named.items()}
        if is_hosted(meta.get("model")):
            meta["model"] = ModelIdentity.of(meta["model"]).as_dict()
        write_sets(Path(path), pairs, meta)

    def write(self, path: str | Path, **meta: Any) -> None:
        """Write this set alone; see ``write_many``."""
        NeuronSet.write_many(path, {"": self}, **meta)


def match_facts(sets: Mapping[str, NeuronSet], facts: Iterable[Fact]) -> dict[Fact, NeuronSet]:
    """Return the facts that the keys of a neuron file stand for, with their sets.

    A key stands for the fact with that ``key`` or ``uid``, or, written ``P36[3]``, for the fourth of the relation's
    facts in the order given: for the released code's files that must be the order of its data file.

    Raises:
        DataError: a key that stands for no fact, or for several (facts that share a uid).

    Example:
        >>> capital = Fact(subject="Ireland", relation="P36", object="Dublin")
        >>> list(match_facts({"P36[0]": NeuronSet([(9, 7)])}, [capital])) == [capital]
        True
    """
    names: dict[str, list[Fact]] = {}
    places: dict[str, int] = {}
    for fact in facts:
        place = places.setdefault(fact.relation, 0)
        places[fact.relation] += 1
        for name in {fact.key, fact.uid, f"{fact.relation}[{place}]"} - {""}:
            names.setdefault(name, []).append(fact)
    matched: dict[Fact, NeuronSet] = {}
    for key, neurons in sets.items():
        meant = names.get(key, [])
        if len(meant) != 1:
            raise DataError(
                f"The key {key!r} of the neuron sets stands for {len(meant)} of the facts; expected one, by its key, "
                f"its uid or its place (P36[0]).{did_you_mean(key, names)}"
            )
        (fact,) = meant
        if fact in matched:
            raise DataError(f"The fact {fact.key} has two of the neuron sets, the second under {key!r}.")
        matched[fact] = neurons
    return matched


def _neuron(item: Any) -> Neuron:
    if isinstance(item, Neuron):
        return item
    try:
        layer, index = item
    except (TypeError, ValueError):
        raise ArgumentError(f"Got {item!r}; expected a Neuron or a (layer, index) pair.") from None
    return Neuron(layer, index)
