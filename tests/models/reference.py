"""Random checkpoints of every family, made by transformers, and what PyTorch computes with them."""

import numpy as np
import torch
import transformers

# PyTorch's threads wait for one another in busy loops, which beside other test processes take many times as long.
torch.set_num_threads(1)

_SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    initializer_range=0.3,  # large, so that a mistake anywhere shows in the logits
)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1e3,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=3.0,
    original_max_position_embeddings=24,
)
_DEFAULT_ROPE = dict(rope_type="default", rope_theta=5e3)
# A head_dim that is not hidden_size / heads, where the family allows it.
FAMILIES = {
    "qwen3": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        dict(head_dim=16, rope_parameters=_DEFAULT_ROPE),
    ),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, dict(rope_parameters=_DEFAULT_ROPE)),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, dict(head_dim=12, rope_parameters=_LLAMA3)),
}
CASES = [(family, tied) for family in FAMILIES for tied in (False, True)]


def make_reference(family: str, tied: bool, seed: int = 0):
    """A random checkpoint of the family as a PyTorch model in float32; norms and biases are random too."""
    make_config, make_model, extra = FAMILIES[family]
    torch.manual_seed(seed)
    config = make_config(**_SIZES, **extra, tie_word_embeddings=tied, attn_implementation="eager")
    model = make_model(config).eval().to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.normal_()
    return model


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def torch_greedy(model, prompts: np.ndarray, count: int) -> np.ndarray:
    """The `count` tokens [B, count] that transformers' generate, with its cache, appends to prompts [B, T]."""
    prompts = torch.from_numpy(prompts).long()
    model.generation_config.eos_token_id = None  # nothing but the count ends a continuation
    with torch.no_grad():
        tokens = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=count, pad_token_id=0
        )
    return tokens[:, prompts.shape[1] :].numpy()


def torch_gradients(model, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """{tensor: gradient} of the mean log-probability of tokens[:, 1:] given those before."""
    tokens = torch.from_numpy(tokens).long()
    model.zero_grad()
    log_probs = torch.log_softmax(model(tokens[:, :-1]).logits, dim=-1)
    log_probs.gather(-1, tokens[:, 1:, None]).mean().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients


def random_tokens(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, _SIZES["vocab_size"], shape).astype(np.int32)
