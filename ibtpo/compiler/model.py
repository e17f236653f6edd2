"""The sizes of a config's model, and the FLOPs that it cannot do without."""

from ibtpo import hub
from ibtpo.config import ConfigError
from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.models.locate import configured_folder
from ibtpo.models.lora import LoraOptions
from ibtpo.models.presets import PRESETS


def load_model_config(config) -> ModelConfig:
    """Sizes of the model: of the config.json in model.path, or of model.preset. Of an id of the hub that is a preset,
    they are known without asking; of another one its config.json is fetched.

    Raises:
      ConfigError: neither is there.
      UserError: it cannot be fetched.
    """
    preset = config.model.get("preset")
    if (repo := hub.model_repo(config.model)) is not None and not config.model.get("revision"):
        preset = preset or repo.id
    if repo is None or preset not in PRESETS:
        folder = configured_folder(config.model, ["config.json"])
        if (folder / "config.json").is_file():
            return hf.read_config(folder)
    if preset in PRESETS:
        return PRESETS[preset]
    raise ConfigError(
        f"model.path={config.model.path}: no config.json there; give the folder of a model, or a known size by "
        "--config.model.preset"
    )


def matmul_params(model: ModelConfig) -> int:
    """Parameters that every token is multiplied with: the projections of all layers and the output head."""
    D, H, K, Dh = model.embed_dim, model.num_heads, model.num_kv_heads, model.head_dim
    layer = D * H * Dh * 2 + D * K * Dh * 2 + 3 * D * model.mlp_dim
    return model.num_layers * layer + model.vocab_size * D


def own_flops(model: ModelConfig, tokens: float, pairs: float, adapters: LoraOptions | None = None) -> float:
    """FLOPs of one update on `tokens` unique tokens, without recomputation.

        6 * matmul_params * tokens + 6 * 2 * Dh * H * L * pairs
        (4 * matmul_params + 6 * adapters' parameters) * tokens + 6 * 2 * Dh * H * L * pairs    with adapters

    A multiply-add is two, the backward pass twice the forward pass: once for the inputs' gradient and once for the
    weights', which frozen weights have none of. pairs: (query, key) that see each other; each costs Dh multiply-adds
    for its score and Dh for its value in every head and layer.
    """
    attention = 12.0 * model.head_dim * model.num_heads * model.num_layers * pairs
    if adapters is None:
        return 6.0 * matmul_params(model) * tokens + attention
    return (4.0 * matmul_params(model) + 6.0 * adapters.num_params(model)) * tokens + attention
