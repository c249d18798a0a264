"""Addresses of neurons on Neuronpedia.

Neuronpedia's id of a neuron is its model, its source and its index. The source of MLP neurons is the number of the
layer alone, and their activations are those of ``blocks.{layer}.mlp.hook_post``, as here:

    https://www.neuronpedia.org/gpt2-small/9/1234        id: gpt2-small/9/1234

Nothing is fetched. The pages have dashboards of neurons where somebody made them, above all of GPT-2 small; for the
neurons of other models they may be empty.
"""

from types import MappingProxyType

from kn_lens._core.notation import NeuronLike
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import HookedModel, Host, host_of
from kn_lens.neurons.neuron_set import neuron_set_of

SITE = "https://www.neuronpedia.org"

NEURONPEDIA_IDS = MappingProxyType(
    {
        "gpt2": "gpt2-small",
        "openai-community/gpt2": "gpt2-small",
        "EleutherAI/pythia-70m-deduped": "pythia-70m-deduped",
        "google/gemma-2-2b": "gemma-2-2b",
        "google/gemma-2-2b-it": "gemma-2-2b-it",
        "google/gemma-2-9b": "gemma-2-9b",
        "google/gemma-2-9b-it": "gemma-2-9b-it",
        "google/gemma-2-27b": "gemma-2-27b",
        "google/gemma-3-270m": "gemma-3-270m",
        "google/gemma-3-270m-it": "gemma-3-270m-it",
        "google/gemma-3-1b-pt": "gemma-3-1b",
        "google/gemma-3-1b-it": "gemma-3-1b-it",
        "google/gemma-3-4b-pt": "gemma-3-4b",
        "google/gemma-3-4b-it": "gemma-3-4b-it",
        "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b-it",
        "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b-it",
        "Qwen/Qwen3-1.7B": "qwen3-1.7b",
        "Qwen/Qwen3-4B": "qwen3-4b",
        "Qwen/Qwen3-8B": "qwen3-8b",
        "Qwen/Qwen3-14B": "qwen3-14b",
        "meta-llama/Llama-3.1-8B": "llama3.1-8b",
        "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b-it",
        "meta-llama/Llama-3.3-70B-Instruct": "llama3.3-70b-it",
    }
)
"""Neuronpedia's ids of models, by their names on the Hugging Face hub."""


def neuronpedia_url(neuron: NeuronLike, model: HookedModel | Host | str) -> str:
    """Return the address of a neuron's page on Neuronpedia. Nothing is fetched.

    The page has activating texts and explanations where Neuronpedia has made them, above all for GPT-2 small. The path
    of the address is Neuronpedia's id of the neuron; with ``?embed=true`` added it is a page for a frame.

    Args:
        neuron: the neuron, its name or its layer and index.
        model: the model, by which the neuron is checked; or Neuronpedia's id of it, such as ``"gpt2-small"``, or its
            name on the Hugging Face hub.

    Raises:
        ArgumentError: no neuron, several neurons, one that the model does not have, or a model whose id is not known
            here.

    >>> neuronpedia_url("L9N1234", "gpt2-small")
    'https://www.neuronpedia.org/gpt2-small/9/1234'
    """
    neurons = neuron_set_of([neuron] if isinstance(neuron, (str, tuple)) else neuron)
    if len(neurons) != 1:
        raise ArgumentError(
            f"Got {len(neurons)} neurons, and a page is about one: "
            "expected [kn_lens.neuronpedia_url(neuron, model) for neuron in neurons]."
        )
    (one,) = neurons
    if one.expert is not None:
        raise ArgumentError(
            f"{one} is a neuron of an expert, and Neuronpedia has pages of neurons without experts alone."
        )
    if isinstance(model, str):
        model_id = _id_of(model, is_id=True)
    else:
        host = host_of(model)
        neurons.check(host)
        model_id = _id_of(host.name, is_id=False)
    return f"{SITE}/{model_id}/{one.layer}/{one.index}"


def _id_of(name: str, *, is_id: bool) -> str:
    """Return Neuronpedia's id of a model.

    Args:
        name: the name on the hub, or, with ``is_id``, perhaps an id, also one that is not known here.
        is_id: whether a name without a folder that is not known is an id.

    Raises:
        ArgumentError: the model is not known here.
    """
    if name in NEURONPEDIA_IDS:
        return NEURONPEDIA_IDS[name]
    if name in NEURONPEDIA_IDS.values() or (is_id and name and "/" not in name):
        return name
    near = did_you_mean(name, NEURONPEDIA_IDS)
    raise ArgumentError(
        f"Neuronpedia's id of {name!r} is not known here; expected the id from the address of its page: "
        f"kn_lens.neuronpedia_url(neuron, 'gpt2-small').{near}"
    )
