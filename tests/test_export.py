"""The export of a run, wherever its checkpoints are; that transformers reads it is in test_train.py."""

import json

import jax
import optax
import pytest
from safetensors.numpy import load_file

from ibtpo.checkpoints import Checkpoints
from ibtpo.export import export
from ibtpo.policy import load_policy
from ibtpo.state import create_state

NORM = "model.norm.weight"


@pytest.fixture
def save(tiny_config):
    """save(value, workdir, folder) saves the tiny model with a final norm of that value as a run's checkpoint."""
    params = load_policy(tiny_config()).params

    def save(value, workdir, folder=""):
        state = create_state(params, optax.sgd(1.0, momentum=0.9), jax.random.key(0), keep_reference=False)
        state.params["final_norm"].value = jax.numpy.full_like(state.params["final_norm"].value, value)
        with Checkpoints(workdir, folder=folder) as checkpoints:
            checkpoints.save(state, {}, {})

    return save


def test_the_checkpoint_comes_from_where_the_run_or_the_configuration_says(save, tiny_config, tmp_path):
    workdir, named, given = (tmp_path / name for name in ("run", "named", "given"))

    def exported(**changes):
        export(tiny_config(**changes), str(workdir), str(tmp_path / "out"))
        [value] = set(load_file(tmp_path / "out" / "model.safetensors")[NORM].tolist())
        return value

    save(2.0, workdir, named)
    save(3.0, workdir, given)
    workdir.mkdir()
    with pytest.raises(ValueError, match=r"no checkpoints in .*run: .*checkpoint\.dir"):
        exported()
    (workdir / "config.json").write_text(json.dumps(tiny_config(checkpoint__dir=str(named)).to_dict()))
    assert exported() == 2.0
    assert exported(checkpoint__dir=str(given)) == 3.0
    save(4.0, workdir)
    assert (exported(), exported(checkpoint__dir=str(given))) == (4.0, 3.0)


def test_the_model_card_says_where_the_model_comes_from(save, tiny_config, tmp_path):
    save(2.0, tmp_path / "run")
    export(tiny_config(method="grpo"), str(tmp_path / "run"), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    for row in ("Base model | qwen3-tiny", "Method | grpo", "Updates | 0", "Problems | tfds:chained_arithmetic"):
        assert f"| {row} |" in card
    prompt = r'"Question: {question}\nAnswer:\n"'
    assert f"| Prompt | `{prompt}` |" in card
