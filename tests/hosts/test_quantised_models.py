"""Weights that are no plain numbers on one device are refused, from disk before they are read and in memory, with the
cure."""

import json

import pytest
import torch
import transformers

import kn_lens as kn
from tests.tiny import tiny_checkpoint, tiny_hf_model

QUANTISED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"load_in_8bit": True}, "bitsandbytes"),
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
]


@pytest.mark.parametrize(("settings", "method"), QUANTISED)
def test_a_quantised_checkpoint_is_refused_before_its_weights_are_read(tmp_path, settings, method):
    directory = tiny_checkpoint("LlamaForCausalLM", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    (directory / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(kn.UnsupportedModelError, match=rf"quantised \({method}\).*original weights.*bfloat16.*GGUF"):
        kn.load_model(directory)


def test_a_quantised_model_in_memory_is_refused_by_its_configuration():
    hf_model = tiny_hf_model("LlamaForCausalLM")
    hf_model.config.quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(kn.UnsupportedModelError, match=r"quantised \(bitsandbytes\).*take the original weights"):
        kn.load_model(hf_model)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_weights_of_a_quantised_type_are_refused_by_name(dtype):
    hf_model = tiny_hf_model("LlamaForCausalLM")
    linear = hf_model.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(
        kn.UnsupportedModelError, match=rf"layers.1.mlp.down_proj.weight' is {dtype}; load the original"
    ):
        kn.load_model(hf_model)


def test_weights_that_only_seem_to_be_plain_tensors_are_refused():
    class QuantizedTensor(torch.Tensor):
        """As torchao's: it says that it is float64, and holds something else."""

    hf_model = tiny_hf_model("LlamaForCausalLM")
    linear = hf_model.model.layers[0].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(QuantizedTensor), requires_grad=False)
    with pytest.raises(kn.UnsupportedModelError, match=r"down_proj.weight' is a QuantizedTensor, no plain tensor"):
        kn.load_model(hf_model)


@pytest.mark.filterwarnings("ignore:torch")  # that they are deprecated
def test_modules_of_a_quantising_library_are_refused():
    hf_model = tiny_hf_model("LlamaForCausalLM", torch.float32)
    quantised = torch.ao.quantization.quantize_dynamic(hf_model, {torch.nn.Linear}).eval()
    with pytest.raises(kn.UnsupportedModelError, match=r"is quantised: '.*' is a Linear of torch.ao"):
        kn.load_model(quantised)


def test_a_model_that_is_spread_over_devices_or_offloaded_is_refused():
    from accelerate import cpu_offload

    hf_model = tiny_hf_model("LlamaForCausalLM")
    cpu_offload(hf_model, execution_device="cpu")  # as device_map="auto" does where memory is short
    with pytest.raises(kn.UnsupportedModelError, match=r"weights on meta; expected all on one device.*device_map="):
        kn.load_model(hf_model)
