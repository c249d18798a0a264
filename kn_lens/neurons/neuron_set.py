"""Neurons, and immutable sets of them.

A neuron is a row of a layer's ``W_out`` (its value), and the entry of the same index of ``hook_post`` (its activation).
A gated MLP, too, has one neuron per row of ``W_out``. In a layer with experts a neuron is a row of an expert's
down-projection, and its activation has the expert's routing weight as a factor: 0 where the token is not routed to it.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from operator import index as as_int
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor

from kn_lens._core.checks import check_kind, check_path, wrong_kind
from kn_lens._core.display import ROWS_SHOWN, enumerated, table_html
from kn_lens._core.notation import SHARED, NeuronLike, neuron_key, neuron_name
from kn_lens._core.wording import counted, type_with_article
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, ModelIdentity, host_of, is_hosted
from kn_lens.neurons.files import read_sets, write_sets


class Neuron(tuple[int, ...]):
    """One neuron: its key as an immutable tuple; ``Neuron(9, 1234)`` or ``Neuron("L9N1234")``.

    The key is ``(layer, index)``. Where the layer has experts it is ``(layer, expert, index)``, in which the shared
    expert has the number -1. Neurons sort by layer, expert and index.

    Attributes:
        layer: zero-based block.
        index: row of the block's ``W_out``, from 0 to ``d_mlp - 1``; or row of the expert's down-projection.
        expert: zero-based expert, or ``"shared"``; None in a layer with one MLP.

    Raises:
        ArgumentError: a layer, an index or an expert that is not a whole number from 0, or a text that is not the name
            of a neuron.

    >>> Neuron(layer=9, index=1234)
    Neuron('L9N1234')
    >>> layer, index = Neuron("L9N1234")
    >>> layer, index
    (9, 1234)
    >>> Neuron(9, 338, expert=5), Neuron(9, 338, expert="shared")
    (Neuron('L9E5N338'), Neuron('L9SN338'))
    >>> Neuron("L9E5N338").expert, tuple(Neuron("L9E5N338"))
    (5, (9, 5, 338))
    """

    __slots__ = ()
    __match_args__ = ("layer", "index", "expert")

    @overload
    def __new__(cls, layer: str) -> "Neuron": ...
    @overload
    def __new__(cls, layer: int, index: int, expert: int | str | None = None) -> "Neuron": ...
    def __new__(cls, layer: int | str, index: int | None = None, expert: int | str | None = None) -> "Neuron":
        """Return the neuron of a layer, an index and an expert, or of a name. NumPy's integers become Python's."""
        if isinstance(layer, str) and index is None:
            key = neuron_key(layer)
            if key is None:
                raise ArgumentError(
                    f"{layer!r} is not the name of a neuron; expected one such as 'L9N1234', of an expert 'L9E5N338'."
                )
            return super().__new__(cls, key)
        key = [_checked("layer", layer), _checked("index", index)]
        if expert is not None:
            key.insert(1, SHARED if expert in (SHARED, "shared") else _checked("expert", expert))
        return super().__new__(cls, key)

    @property
    def layer(self) -> int:  # noqa: D102  # an attribute of the class
        return self[0]

    @property
    def index(self) -> int:  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index
        return self[-1]

    @property
    def expert(self) -> int | str | None:  # noqa: D102
        if len(self) == 2:
            return None
        return "shared" if self[1] == SHARED else self[1]

    def __getnewargs__(self) -> tuple[int, int, int | str | None]:
        return self.layer, self.index, self.expert

    def __str__(self) -> str:
        return neuron_name(*self)

    def __repr__(self) -> str:
        return f"Neuron({str(self)!r})"


NAMES_SHOWN = 10
"""Number of neurons in the text of a set."""


def _checked(name: str, number: Any) -> int:
    try:
        checked = -1 if isinstance(number, bool) else as_int(number)
    except TypeError:
        checked = -1
    if checked < 0:
        raise ArgumentError(f"Neuron {name}={number!r}; expected a whole number from 0.")
    return checked


class NeuronSet(AbstractSet[Neuron], Hashable):
    """An immutable set of neurons, iterated in order of layer and index. An index gives a neuron, a slice a set.

    A neuron is given as a ``Neuron``, by its name ``"L9N1234"`` or as the pair ``(9, 1234)``. The set has the operators
    of Python's sets, with any iterable of neurons on the right of ``|``, ``&``, ``-`` and ``^``, and equals and hashes
    like a ``frozenset`` of the same neurons.

    >>> found = NeuronSet(["L9N1234", (10, 5), Neuron(9, 7)])
    >>> found & ["L9N7", "L3N3"]
    NeuronSet(['L9N7'])
    >>> found[0], found[1:], "L10N5" in found
    (Neuron('L9N7'), NeuronSet(['L9N1234', 'L10N5']), True)
    >>> found.by_layer()
    {9: (7, 1234), 10: (5,)}
    """

    __slots__ = ("_members", "_ordered")

    def __init__(self, neurons: Iterable[NeuronLike] = ()) -> None:
        if isinstance(neurons, str):  # its characters are no neurons
            raise ArgumentError(f"Got the text {neurons!r}; expected several neurons, such as ['L9N1234'].")
        check_kind(neurons, Iterable, "several neurons: kn_lens.NeuronSet(['L2N7'])", "neurons")
        self._members = frozenset(map(_neuron, neurons))
        self._ordered = tuple(sorted(self._members))

    def __contains__(self, neuron: object) -> bool:
        if isinstance(neuron, str):
            return neuron_key(neuron) in self._members
        return neuron in self._members

    @overload
    def __getitem__(self, index: int) -> Neuron: ...
    @overload
    def __getitem__(self, index: slice) -> "NeuronSet": ...
    def __getitem__(self, index: int | slice) -> "Neuron | NeuronSet":
        if isinstance(index, slice):
            return NeuronSet(self._ordered[index])
        return self._ordered[index]

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self._ordered)

    def __len__(self) -> int:
        return len(self._ordered)

    def __hash__(self) -> int:
        return hash(self._members)

    def __repr__(self) -> str:
        names = [repr(str(neuron)) for neuron in self._ordered]
        return f"NeuronSet([{enumerated(names, NAMES_SHOWN)}])"

    def _repr_html_(self) -> str:
        by_layer: dict[int, list[str]] = {}
        for neuron in self:
            by_layer.setdefault(neuron.layer, []).append(str(neuron))
        rows = []
        for layer, names in list(by_layer.items())[:ROWS_SHOWN]:
            rows.append((layer, len(names), enumerated(names, NAMES_SHOWN)))
        summary = f"{counted(len(self), 'neuron')} in {counted(len(by_layer), 'layer')}"
        return table_html(summary, ("layer", "n", "neurons"), rows, n_rows=len(by_layer))

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
        """Return the indices of each layer that has any, both in ascending order.

        Raises:
            ArgumentError: a neuron of an expert, whose index is not that of a row of its layer: see `rows_by_layer`.
        """
        layers: dict[int, list[int]] = {}
        for neuron in self:
            if neuron.expert is not None:
                raise ArgumentError(
                    f"{neuron} is a neuron of an expert, whose index says nothing without the expert; "
                    "expected neurons of layers with one MLP. Use neurons.rows_by_layer(model)."
                )
            layers.setdefault(neuron.layer, []).append(neuron.index)
        return {layer: tuple(indices) for layer, indices in layers.items()}

    def rows_by_layer(self, model: HookedModel | Host) -> dict[int, tuple[int, ...]]:
        """Return the rows of the neurons in each layer that has any, both in ascending order.

        In a layer with one MLP a neuron's row is its index. In a layer with experts rows count through the shared
        expert and then the others, as the last axis of scores does.

        Args:
            model: the model of the neurons; a ``Host`` will do.

        Raises:
            ArgumentError: a neuron that the model does not have.
        """
        host = host_of(model)
        layers: dict[int, list[int]] = {}
        for neuron in self:
            layers.setdefault(neuron.layer, []).append(_row(host, neuron))
        return {layer: tuple(rows) for layer, rows in layers.items()}

    def expert_counts(self) -> dict[int, dict[int | str, int]]:
        """Return the number of neurons of each expert that has any, by layer; the shared expert comes first.

        >>> NeuronSet(["L2E5N7", "L2E5N9", "L2SN1", "L0N3"]).expert_counts()
        {2: {'shared': 1, 5: 2}}
        """
        counts: dict[int, dict[int | str, int]] = {}
        for neuron in self:
            if neuron.expert is not None:
                of_layer = counts.setdefault(neuron.layer, {})
                of_layer[neuron.expert] = of_layer.get(neuron.expert, 0) + 1
        return counts

    def layer_counts(self, n_layers: int) -> tuple[int, ...]:
        """Return the number of neurons in each of the model's layers.

        Raises:
            ArgumentError: a neuron lies above the last layer.
        """
        if self and self._ordered[-1].layer >= n_layers:
            last = self._ordered[-1]
            raise ArgumentError(f"{last} is in layer {last.layer}; there are {n_layers}.")
        counts = Counter(neuron.layer for neuron in self)
        return tuple(counts[layer] for layer in range(n_layers))

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "n_layers d_mlp"]) -> "NeuronSet":
        """Return the neurons at which a mask is true: the neurons that scores of another tool single out.

        For models without experts.

        Args:
            mask: a truth value for each neuron of the model, such as ``scores >= 0.2 * scores.max()`` for
                ``scores: Float[Tensor, "n_layers d_mlp"]``. An array of NumPy will do.

        Raises:
            ArgumentError: not truth values, or not one for each layer and index.

        >>> scores = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.2, 0.7]])
        >>> NeuronSet.from_mask(scores >= 0.5)
        NeuronSet(['L0N1', 'L1N2'])
        """
        values = mask if isinstance(mask, Tensor) else torch.as_tensor(mask)
        if values.dtype != torch.bool or values.ndim != 2:
            dtype = str(values.dtype).removeprefix("torch.")
            raise ArgumentError(
                f"mask is {dtype} of shape {list(values.shape)}; expected truth values of shape [n_layers, d_mlp]: "
                "kn_lens.NeuronSet.from_mask(scores >= threshold)."
            )
        return cls(map(tuple, values.nonzero().tolist()))

    def mask(self, model: HookedModel | Host) -> Bool[Tensor, "n_layers d_mlp"]:
        """Return a truth value for each neuron of the model, on the CPU: whether it is in the set.

        Args:
            model: the model of the neurons; a ``Host`` will do.

        Raises:
            ArgumentError: a neuron that the model does not have.

        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> mask = NeuronSet(["L2N7", "L3N5"]).mask(model)
        >>> mask.shape, NeuronSet.from_mask(mask)
        (torch.Size([4, 512]), NeuronSet(['L2N7', 'L3N5']))
        """
        host = host_of(model)
        mask = torch.zeros(host.n_layers, host.d_mlp, dtype=torch.bool)
        for layer, rows in self.rows_by_layer(host).items():
            mask[layer, list(rows)] = True
        return mask

    def check(self, model: HookedModel | Host) -> None:
        """Raise unless the model, or ``Host``, has every neuron of the set.

        Raises:
            ArgumentError: it lacks one; the error names the first, and the layers and indices of the model.
        """
        host = host_of(model)
        for neuron in self:
            _row(host, neuron)

    @classmethod
    def read_many(
        cls,
        path: str | Path,
        *,
        model: HookedModel | Host | None = None,
    ) -> "dict[str, NeuronSet]":
        """Read all sets of a JSON file: ours, EleutherAI's, or the released code's ``kn_bag`` and ``kn_rel``.

        The format is recognised by the shape of the document. The keys are those of the file: in ours the keys that it
        was written with (``Fact.key``), in EleutherAI's the ParaRel uuid, in the released code's ``P36[0]``,
        ``P36[1]``, ...: the relation and the fact's position in it. ``match_facts`` finds the facts.

        Args:
            path: the file.
            model: the model to use them with; a ``Host`` will do. A file that was written with
                ``write_many(..., model=model)`` must hold neurons of this model, by its weights, wherever they were
                loaded from; a file with a name alone, by the name. A file that names no model is not checked. None
                reads any file.

        Raises:
            DataError: the file cannot be read, has another format, or holds neurons of another model.
        """
        check_path(path)
        sets, of_model = read_sets(Path(path))
        identity = ModelIdentity.read(of_model)
        if model is not None and identity is not None:
            expected = ModelIdentity.of(model, with_digest=identity.digest is not None)
            difference = identity.difference(expected)
            if difference is not None:
                raise DataError(
                    f"{path} holds neurons of {identity.name}, "
                    f"and the model is {expected.name}: {difference}. "
                    "A neuron's index means nothing in another model; "
                    "find them in this one, or read them all the same with model=None."
                )
        return {key: cls(pairs) for key, pairs in sets.items()}

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        model: HookedModel | Host | None = None,
    ) -> "NeuronSet":
        """Read a file that holds one set; see ``read_many``.

        Raises:
            DataError: as ``read_many``, or the file holds several sets.
        """
        sets = cls.read_many(path, model=model)
        if len(sets) > 1:
            raise DataError(f"{path} holds {len(sets)} neuron sets; read them with NeuronSet.read_many.")
        return next(iter(sets.values()))

    @staticmethod
    def write_many(
        path: str | Path,
        sets: "Mapping[Any, NeuronSet]",
        **meta: Any,
    ) -> None:
        """Write sets to one JSON file, which appears whole or not at all.

        Args:
            path: the file.
            sets: keyed by facts (written as ``Fact.key``) or by strings.
            **meta: metadata of the file: ``model``, the model itself, so that ``read_many`` and the command line
                recognise it, or its name; the thresholds.

        Raises:
            ArgumentError: two facts with one key, or ``meta`` that is not JSON.
            DataError: the file cannot be written.
        """
        check_path(path)
        check_kind(sets, Mapping, "sets by fact or by name: {fact: neurons}", "sets")
        named: dict[str, NeuronSet] = {}
        for key, neurons in sets.items():
            name = key.key if isinstance(key, Fact) else str(key)
            if name in named:
                raise ArgumentError(f"Two of the sets have the key {name!r}; give the facts different uids.")
            named[name] = neurons
        if is_hosted(meta.get("model")):
            meta["model"] = ModelIdentity.of(meta["model"]).as_dict()
        write_sets(Path(path), named, meta)

    def write(self, path: str | Path, **meta: Any) -> None:
        """Write this set alone; see ``write_many``."""
        NeuronSet.write_many(path, {"": self}, **meta)


class SetsByFact(dict[Fact, NeuronSet]):
    """The neurons of facts: a dictionary whose text is one line, and whose HTML a short table.

    >>> SetsByFact({Fact("Ireland", "P36", "Dublin"): NeuronSet(["L2N7", "L3N5"])})
    SetsByFact(1 fact, 2 neurons each)
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary()})"

    def _summary(self) -> str:
        summary = counted(len(self), "fact")
        if self:
            sizes = [len(neurons) for neurons in self.values()]
            fewest, most = min(sizes), max(sizes)
            n_neurons = counted(most, "neuron") if fewest == most else f"{fewest:,} to {most:,} neurons"
            summary += f", {n_neurons} each"
        return summary

    def _repr_html_(self) -> str:
        rows = []
        for fact, neurons in islice(self.items(), ROWS_SHOWN):
            names = enumerated(list(map(str, neurons)), NAMES_SHOWN)
            rows.append([fact.relation_name, fact.subject, fact.object, len(neurons), names])
        columns = ["relation", "subject", "object", "n", "neurons"]
        return table_html(self._summary(), columns, rows, n_rows=len(self))


def match_facts(
    sets: Mapping[str, NeuronSet],
    facts: Iterable[Fact],
) -> SetsByFact:
    """Return the sets of a neuron file by the facts that its keys name.

    A key names the fact with that ``key`` or ``uid``, or, written ``P36[3]``, the fourth of the relation's facts in the
    order given: for the released code's files that must be the order of its data file.

    Raises:
        DataError: a key that names no fact, or several (facts that share a uid).

    Example:
        >>> capital = Fact(subject="Ireland", relation="P36", object="Dublin")
        >>> list(match_facts({"P36[0]": NeuronSet([(9, 7)])}, [capital])) == [capital]
        True
    """
    check_kind(sets, Mapping, "the sets of a neuron file: kn_lens.NeuronSet.read_many(path)", "sets")
    if isinstance(facts, (str, Fact)):
        raise wrong_kind(facts, "several Facts, such as a FactSet", "facts")
    facts_of_name: dict[str, list[Fact]] = {}
    n_facts: dict[str, int] = {}
    for fact in facts:
        check_kind(fact, Fact, "Facts alone", "one of the facts")
        position = n_facts.setdefault(fact.relation, 0)
        n_facts[fact.relation] += 1
        names = {fact.key, fact.uid, f"{fact.relation}[{position}]"}
        for name in names - {""}:
            facts_of_name.setdefault(name, []).append(fact)
    matched = SetsByFact()
    for key, neurons in sets.items():
        candidates = facts_of_name.get(key, [])
        if len(candidates) != 1:
            raise DataError(
                f"The key {key!r} of the neuron sets stands for {len(candidates)} of the facts; "
                "expected one, by its key, its uid or its place (P36[0])."
                f"{did_you_mean(key, facts_of_name)}"
            )
        (fact,) = candidates
        if fact in matched:
            raise DataError(f"The fact {fact.key} has two of the neuron sets, the second under {key!r}.")
        matched[fact] = neurons
    return matched


def _neuron(item: Any) -> Neuron:
    if isinstance(item, Neuron):
        return item
    if isinstance(item, str):
        return Neuron(item)
    try:
        layer, *expert, index = item
        (expert,) = expert or [None]
    except (TypeError, ValueError):
        raise ArgumentError(
            f"Got {item!r}; expected a neuron: its name 'L9N1234', a (layer, index) pair or a Neuron."
        ) from None
    return Neuron(layer, index, expert)


def _row(host: Host, neuron: Neuron) -> int:
    """Return the row of a neuron in its layer.

    Raises:
        ArgumentError: the model lacks it; the error names the layers and indices that there are.
    """
    if neuron.layer < host.n_layers:
        row = host.layout.row(neuron)
        if row is not None and row < host.d_mlp:
            return row
    expected = f"layers 0 to {host.n_layers - 1} and indices 0 to {host.d_mlp - 1}"
    if host.layout.has_experts:
        expected = f"layers 0 to {host.n_layers - 1}"
        if neuron.layer < host.n_layers:
            expected = f"in layer {neuron.layer} {host.layout.layers[neuron.layer]}"
    raise ArgumentError(f"{host.name} has no neuron {neuron}; expected {expected}. Was the set made for another model?")


def neuron_set_of(neurons: Any) -> NeuronSet:
    """Return one set of neurons, of a set, of one neuron, or of several.

    Raises:
        ArgumentError: another kind of argument, such as a mapping from facts to sets.

    >>> neuron_set_of("L2N7"), neuron_set_of(["L2N7", (3, 5)])
    (NeuronSet(['L2N7']), NeuronSet(['L2N7', 'L3N5']))
    """
    if isinstance(neurons, NeuronSet):
        return neurons
    if isinstance(neurons, (str, Neuron)):
        return NeuronSet([_neuron(neurons)])
    if isinstance(neurons, Mapping):
        raise ArgumentError(
            f"Got a mapping of {counted(len(neurons), 'fact')} as neurons; "
            "expected the NeuronSet of one fact: neurons[fact]."
        )
    check_kind(neurons, (Sequence, AbstractSet), "a NeuronSet: kn_lens.NeuronSet(['L2N7'])", "neurons")
    return NeuronSet(neurons)


def check_neurons_by_fact(neurons_by_fact: object, name: str = "neurons_by_fact") -> None:
    """Raise unless the argument is a mapping from facts to sets of neurons.

    Raises:
        ArgumentError: another kind of argument, such as one set.
    """
    if not isinstance(neurons_by_fact, Mapping):
        raise wrong_kind(neurons_by_fact, "a mapping from facts to NeuronSets: {fact: neurons}", name)
    for fact, neurons in neurons_by_fact.items():
        if not isinstance(fact, Fact) or not isinstance(neurons, NeuronSet):
            raise ArgumentError(
                f"{name} maps {type_with_article(fact)} to {type_with_article(neurons)}; "
                "expected a Fact and a NeuronSet. "
                "kn_lens.match_facts(sets, facts) finds the facts of a neuron file's keys."
            )
