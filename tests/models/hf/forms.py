"""Forms of config.json as small random models of transformers, and the comparison with ours."""

import copy
import json
import pathlib

import numpy as np
import torch
import transformers

from ibtpo.models import hf
from tests.models.hf.folders import logits
from tests.models.reference import random_tokens, torch_logits

LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)


def small(family: str) -> dict:
    """The sizes of a model of two layers, and nothing else: every other field is absent."""
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(num_hidden_layers=2, max_position_embeddings=64, initializer_range=0.3)
    return dict(model_type=family, **sizes)


def make_model(config: dict):
    """transformers' model of such a configuration, with random weights in which a mistake anywhere shows."""
    torch.manual_seed(0)
    make = transformers.CONFIG_MAPPING[config["model_type"]]
    made = make.from_dict(copy.deepcopy(config))  # it writes into the objects that it is given
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager").eval().to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.normal_()
    return model


def make_folder(config: dict, folder: pathlib.Path):
    """A folder with the configuration as it is and weights; returns transformers' model."""
    model = make_model(config)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return model


def assert_same_logits(config: dict, folder: pathlib.Path):
    model, tokens = make_folder(config, folder), random_tokens((2, 40))
    expected, found = torch_logits(model, tokens), logits(hf.load(folder), tokens)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
