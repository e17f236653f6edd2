"""A run that trains adapters: its checkpoints, its resumption, its evaluation and its exports."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import transformers
from etils import epath
from safetensors.numpy import load_file, save_file

from ibtpo import checkpoints, metrics
from ibtpo import config as config_lib
from ibtpo import export as export_lib
from ibtpo import train as train_lib
from ibtpo.checkpoints import manifest
from ibtpo.errors import UserError
from ibtpo.evaluation.checkpoint import load_checkpoint
from ibtpo.models import lora
from ibtpo.policy import load_policy
from ibtpo.saved_policy import load_saved
from ibtpo.trainer import Trainer
from tests.models.reference import random_tokens, torch_logits
from tests.test_lora import logits_of

RANK, ALPHA = 3, 8.0


def learning(workdir):
    found = list(metrics.read(workdir))
    return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in found]


def saved_arrays(workdir, step):
    """{item: {name: [type, shape, checksum]}} of a checkpoint."""
    return manifest.read(epath.Path(workdir / "checkpoints" / str(step)))["arrays"]


@pytest.fixture(scope="module")
def config_of(tiny_config, tiny_model_dir, tmp_path_factory):
    """Makes configs of a run on a copy of the tiny model."""
    folder = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("model") / "base")

    def make(**changes):
        defaults = dict(
            model__path=str(folder), model__lora_rank=RANK, model__lora_alpha=ALPHA, optimizer__learning_rate=3e-3,
            checkpoint__every=1, train__steps=3, log__trees=0, loss__mask_uniform_groups=False,
        )  # fmt: skip
        return tiny_config(**defaults | changes)

    return make


@pytest.fixture(scope="module")
def finished_run(config_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train_lib.train(config_of(), str(workdir))
    return workdir


def test_a_run_moves_its_adapters_and_saves_no_base(finished_run, config_of, capsys):
    rows = [row for row in learning(finished_run) if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["train/sampler_gap"] < 1e-5 and row["train/ratio"] == pytest.approx(1, abs=1e-5)
        assert row["train/skipped_updates"] == 0
    assert rows[0]["train/kl"] == 0 < rows[2]["train/kl"]  # the reference is the base, and at first the policy too
    arrays = saved_arrays(finished_run, 3)
    assert set(arrays) == {"params", "optimizer", "counters"}
    assert set(arrays["params"]) == {f"layers.{name}.{part}" for name in lora.MATRICES for part in "ab"}
    counted = sum(np.prod(shape) for _, shape, _ in arrays["params"].values())
    policy = load_policy(config_of())
    assert counted == lora.LoraOptions(RANK, ALPHA).num_params(policy.model) < policy.model.num_params / 10


@pytest.mark.slow
def test_resuming_equals_not_stopping(finished_run, config_of, tmp_path):
    for steps in (1, 3):
        train_lib.train(config_of(train__steps=steps), str(tmp_path))
    assert learning(tmp_path) == learning(finished_run)
    assert saved_arrays(tmp_path, 3) == saved_arrays(finished_run, 3)


@pytest.mark.parametrize(
    "changes", [dict(model__lora_rank=4), dict(model__lora_alpha=9.0), dict(model__lora_targets="mlp")]
)
def test_another_adapter_is_another_run(finished_run, config_of, changes):
    [(key, value)] = changes.items()
    key = key.replace("__", ".")
    with pytest.raises(config_lib.ConfigError, match=rf"{key}: .* -> {value!r}"):
        train_lib.train(config_of(**changes), str(finished_run))
    # Alpha is in no array: nothing else would tell.
    message = rf"^step 3 of .* was trained with {key}=.*, not {value!r}: set --config\.{key}="
    with pytest.raises(UserError, match=message):
        load_checkpoint(config_of(**changes), finished_run)


def test_a_run_without_adapters_and_one_with_them_are_told_apart(finished_run, config_of, tmp_path):
    message = r"was trained with model\.lora_rank=3, not 0: set --config\.model\.lora_rank=3"
    with pytest.raises(UserError, match=message):
        load_checkpoint(config_of(model__lora_rank=0), finished_run)
    with pytest.raises(UserError, match=r"^--adapter: model\.lora_rank=0, a run without adapters"):
        export_lib.export(config_of(model__lora_rank=0), str(finished_run), str(tmp_path / "out"), adapter=True)
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused_wherever_it_would_be_used(finished_run, config_of, tmp_path):
    file = pathlib.Path(config_of().model.path) / "model.safetensors"
    before = file.read_bytes()
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    try:
        save_file({**tensors, name: tensors[name] * np.float32(1.0001)}, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"other inputs: the model of model\.path=.* differ"):
            train_lib.train(config_of(train__steps=4), str(finished_run))
        for use in (load_checkpoint, lambda c, run: export_lib.export(c, str(run), str(tmp_path / "out"))):
            with pytest.raises(UserError, match=r"adapters belong to another model than the one in model\.path"):
                use(config_of(), finished_run)
    finally:
        file.write_bytes(before)
    assert not (tmp_path / "out").exists()
    load_checkpoint(config_of(), finished_run)


def test_evaluation_and_exports_are_the_policy_that_was_trained(finished_run, config_of, tmp_path):
    config = config_of()
    policy = load_checkpoint(config, finished_run)
    base = load_policy(config)
    like = jax.eval_shape(
        lambda p: lora.create(p, lora.LoraOptions(RANK, ALPHA), jax.random.key(0), jnp.float32), base.params
    )
    adapters = checkpoints.load_params(finished_run, like)
    tokens = random_tokens((1, 12))
    forward = jax.jit(logits_of, static_argnums=0)
    trained = np.asarray(forward(base.graphdef, lora.Adapted(base.params, adapters), tokens))
    np.testing.assert_array_equal(forward(policy.graphdef, policy.params, tokens), trained)
    assert np.abs(trained - np.asarray(forward(base.graphdef, base.params, tokens))).max() > 1e-3

    export_lib.export(config, str(finished_run), str(tmp_path / "merged"))
    export_lib.export(config, str(finished_run), str(tmp_path / "adapter"), adapter=True)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "| Adapters | rank 3, alpha 8, of all, merged |" in card
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(torch_logits(merged, tokens), trained, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(config.model.path)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    assert theirs.peft_config["default"].base_model_name_or_path == config.model.path
    np.testing.assert_allclose(torch_logits(theirs, tokens), trained, atol=1e-4)
    # The folder of the model itself, with an adapter beside it, is refused as ever.
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "merged")
    with pytest.raises(UserError, match="holds an adapter"):
        load_policy(config, path=tmp_path / "merged")


def test_a_rank_above_the_models_is_refused_before_the_weights_are_read(config_of):
    with pytest.raises(UserError, match=r"^model\.lora_rank=100000 is more than the smallest adapted matrix"):
        Trainer(config_of(model__lora_rank=100_000))


@pytest.mark.slow
def test_a_run_in_bfloat16_keeps_its_base_in_it_and_samples_from_the_sums(config_of, tmp_path):
    """Own log-probabilities of the policy (gspo's) and no reference: the base is kept all the same."""
    options = dict(method="gspo", model__dtype="bfloat16", train__steps=1, model__lora_targets="attention")
    config = config_of(**options)
    train_lib.train(config, str(tmp_path))
    [row] = [row for row in learning(tmp_path) if "train/loss" in row]
    assert row["train/skipped_updates"] == 0 and row["train/sampler_gap"] < 0.1
    policy, adapters = load_saved(config, tmp_path, 1, mesh=Trainer(config).mesh)
    assert {x.dtype for x in jax.tree.leaves(policy.params)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    with pytest.raises(UserError, match=r"trained with model\.dtype='bfloat16', not 'float32'"):
        load_saved(config_of(**options | dict(model__dtype="float32")), tmp_path, 1, mesh=Trainer(config).mesh)
