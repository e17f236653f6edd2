"""Import from and export to a local Hugging Face model directory: config.json and safetensors."""

from ibtpo.models.hf.adapter import save_adapter
from ibtpo.models.hf.card import About
from ibtpo.models.hf.exporting import save
from ibtpo.models.hf.files import read_config
from ibtpo.models.hf.importing import load
from ibtpo.models.hf.layout import abstract, tensor_shapes, tensors

__all__ = ["About", "abstract", "load", "read_config", "save", "save_adapter", "tensor_shapes", "tensors"]
