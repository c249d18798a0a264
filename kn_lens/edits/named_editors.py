"""Editors by the names that commands and settings have for them, with what they share: moments, layers and prefixes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kn_lens._core.names import EDITOR_NAMES
from kn_lens.edits.alphaedit import AlphaEdit
from kn_lens.edits.editors import Editor, check_causal, checked_layers, memit_layers, rome_layer
from kn_lens.edits.fine_tuning import FT
from kn_lens.edits.knowledge_neurons import KN, KNPreset
from kn_lens.edits.memit import MEMIT
from kn_lens.edits.moments import SecondMoments
from kn_lens.edits.rome import ROME
from kn_lens.edits.targets import PREFIXES
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import Host

_PRESET = "KN-"
_NEURON_EDITORS = ("KN", "KN-easyedit", "KN-eleutherai")
"""The default of models that editors of whole layers refuse."""
_LAYER_EDITORS = ("ROME", "MEMIT", "AlphaEdit", "FT")
_WITH_MOMENTS = ("ROME", "MEMIT", "AlphaEdit")
_CLASSES: Mapping[str, Callable[..., Editor]] = {
    "KN": KN,
    "ROME": ROME,
    "MEMIT": MEMIT,
    "AlphaEdit": AlphaEdit,
    "FT": FT,
}


@dataclass(frozen=True, kw_only=True)
class NamedEditors:
    """A choice of editors.

    Attributes:
        names: some of ``EDITOR_NAMES``; empty takes all that the kind of model has, ``KN`` with the two presets of
            other packages.
        rome_layer: the layer of ROME; None takes its default.
        memit_layers: the layers of MEMIT and AlphaEdit; empty takes their default.
        min_prompts: the least number of prompts that share a neuron, for ``KN`` and the presets of the paper; None
            takes that of ``KN``.
        with_prefixes: whether ROME, MEMIT and AlphaEdit put their prefixes before a fact's first prompt.

    Raises:
        ArgumentError: an unknown name, or one twice.
    """

    names: Sequence[str] = ()
    rome_layer: int | None = None
    memit_layers: Sequence[int] = ()
    min_prompts: int | None = None
    with_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in EDITOR_NAMES:
                near = did_you_mean(name, EDITOR_NAMES)
                raise ArgumentError(f"Unknown editor {name!r}; expected some of {', '.join(EDITOR_NAMES)}.{near}")
            if list(self.names).count(name) > 1:
                raise ArgumentError(f"The editor {name} is named twice; expected each once.")

    def names_for(self, host: Host) -> list[str]:
        """Return the names, or those of the editors that a model is edited by unless told."""
        if self.names:
            return list(self.names)
        if host.kind != "causal" or host.layout.has_experts:
            return list(_NEURON_EDITORS)
        return [*_NEURON_EDITORS, *_LAYER_EDITORS]

    def editors(self, host: Host, moments: Callable[[list[int]], SecondMoments]) -> list[Editor]:
        """Return the editors of a model.

        Args:
            host: the model.
            moments: returns the second moments of layers; called at most once, after all checks.

        Raises:
            ArgumentError: a layer that the model does not have.
            UnsupportedModelError: an editor that was named and does not edit models of this kind, or a layer of it.
        """
        names = self.names_for(host)
        for name in names:
            if name in _LAYER_EDITORS:
                check_causal(host, name)
        settings: dict[str, dict[str, Any]] = {name: {} for name in names}
        for name in ("KN", "KN-paper", "KN-official"):
            if name in names:
                settings[name]["min_prompts"] = self.min_prompts
        wanted: set[int] = set()
        if "ROME" in names:
            layer = rome_layer(host) if self.rome_layer is None else self.rome_layer
            settings["ROME"]["layer"] = layer
            wanted.update(checked_layers(host, [layer]))
        for name in ("MEMIT", "AlphaEdit"):
            if name in names:
                layers = checked_layers(host, list(self.memit_layers or memit_layers(host)))
                settings[name]["layers"] = layers
                wanted.update(layers)
        if "FT" in names:
            checked_layers(host, [FT().layer])
        if wanted:
            of_texts = moments(sorted(wanted))
            for name in _WITH_MOMENTS:
                if name in names:
                    settings[name]["moments"] = of_texts
                    settings[name]["prefixes"] = PREFIXES if self.with_prefixes else ()
        editors: list[Editor] = []
        for name in names:
            if name.startswith(_PRESET):
                editors.append(KN(preset=cast("KNPreset", name.removeprefix(_PRESET)), **settings[name]))
            else:
                editors.append(_CLASSES[name](**settings[name]))
        return editors
