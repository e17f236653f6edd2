"""Resolved configurations, and values that cannot work together."""

import pytest

from ibtpo import config as config_lib
from ibtpo.config import ConfigError, resolve
from tests.config_cases import runnable


def test_values_of_the_paper():
    config = resolve(runnable())
    tree, sampling = config.tree, config.sampling
    assert (tree.strategy, tree.initial, tree.rounds, tree.top_k, tree.branch) == ("ib", 4, 9, 1, 1)
    assert config_lib.responses_per_question(tree) == 12
    assert (tree.beta, config.loss.ib_weight, config.loss.kl) == (5.0, 0.1, 0.001)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.7, 0.95, 20, 2048)
    assert config.optimizer.learning_rate == 1e-6


def test_resolved_config_is_locked():
    config = resolve(runnable())
    with pytest.raises((KeyError, AttributeError)):
        config.train.stps = 3


@pytest.mark.parametrize(
    "changes, key, hint",
    [
        (dict(tree__initial=1, tree__rounds=1), "tree.initial=1", "2 or more"),
        (dict(tree__min_new_tokens=4096), "tree.min_new_tokens=4096", "lower it"),
        (dict(tree__strategy="fixed_width", tree__segment_tokens=4096), "tree.segment_tokens=4096", "lower it"),
        (dict(optimizer__warmup_steps=200), "optimizer.warmup_steps=200", "136 or less"),
        (dict(loss__dual_clip=3.0, loss__objective="sapo"), "loss.dual_clip=3.0", "set it to 0"),
        (dict(loss__objective="gspo", loss__importance_cap=2.0), "loss.importance_cap=2.0", "set both to 0"),
        (dict(train__minibatches=129), "train.minibatches=129", "at least"),
        (dict(sampling__page_size=48), "sampling.page_size=48", "power of two"),
        (dict(sampling__pages=3), "sampling.pages=3", "at least 48"),
        (dict(train__row_tokens=2048), "train.row_tokens=2048", "at least 3072"),
        (dict(mesh__data=-1, mesh__fsdp=-1), "mesh.data=-1", "only one axis"),
        (dict(mesh__data=3), "sampling.slots=256", "e.g. 258"),
        (dict(mesh__data=16), "train.rows_per_step=8", "e.g. 16"),
        (dict(mesh__tensor=0), "mesh.tensor=0", "at least 1"),
        (dict(sampling__temperature=0.0), "sampling.temperature=0.0", "above 0"),
        (dict(sampling__top_p=0.0), "sampling.top_p=0.0", "above 0 and at most 1"),
        (dict(sampling__top_p=1.5), "sampling.top_p=1.5", "above 0 and at most 1"),
        (dict(loss__dual_clip=0.5), "loss.dual_clip=0.5", "above 1"),
        (dict(loss__importance_cap=-1.0), "loss.importance_cap=-1.0", "at least 0"),
        (dict(loss__max_old_probability=0.0), "loss.max_old_probability=0.0", "above 0 and at most 1"),
        (dict(reward__overlong_share=1.5), "reward.overlong_share=1.5", "from 0 to 1"),
        (dict(reward__terms="format"), "reward.terms='format'", "of format, length"),
        (dict(reward__terms="formal:0.1"), "reward.terms='formal:0.1'", "of format, length"),
        (dict(reward__terms="length:1,length:1"), "reward.terms=", '"format:0.1,length:-0.05"'),
        (dict(reward__terms="length:nan"), "reward.terms='length:nan'", "for none"),
        (dict(sampling__stop_strings="</answer>"), "sampling.stop_strings=", "a JSON list of texts"),
        (dict(sampling__stop_strings='["a", ""]'), "sampling.stop_strings=", "a JSON list of texts"),
        (dict(data__prompt="no place"), "data.prompt='no place'", "{question}"),
        (dict(data__prompt="{question} {other}"), "data.prompt=", "doubled"),
        (dict(data__answer_pattern="#### .*"), "data.answer_pattern='#### .*'", "exactly one group"),
        (dict(data__answer_pattern="(("), "data.answer_pattern='(('", "exactly one group"),
        (dict(data__source="tfds:gsm8"), "data.source='tfds:gsm8'", "did you mean 'tfds:gsm8k'?"),
        (dict(data__source="gsm8k"), "data.source='gsm8k'", "jsonl:<path>"),
        (dict(data__source="parquet:"), "data.source='parquet:'", "parquet:<path>"),
        (
            dict(data__decontaminate="math_500,math500"),
            "data.decontaminate=",
            "jsonl:<path>, parquet:<path> or one of gsm8k",
        ),
        (dict(data__decontaminate="gsm8k,"), "data.decontaminate='gsm8k,'", "separated by commas"),
        (dict(data__decontaminate="dapo_math_17k"), "data.decontaminate=", "one of gsm8k"),
        (dict(model__path=""), "model.path=''", "Hugging Face"),
    ],
)
def test_impossible_values(changes, key, hint):
    with pytest.raises(ConfigError) as caught:
        resolve(runnable(**changes))
    message = str(caught.value)
    assert key in message and hint in message and "\n" not in message


def test_rows_need_hold_a_response_in_training_only():
    """Of all limits: a benchmark's prompts may be longer than those that the rows were made for."""
    config = runnable(train__row_tokens=2048)
    assert resolve(config, training=False).train.row_tokens == 2048
    config.sampling.pages = 3
    with pytest.raises(ConfigError, match=r"sampling\.pages=3"):
        resolve(config, training=False)


def test_unknown_and_missing_keys_of_a_config_file():
    config = runnable()
    config.train.stps = 3
    with pytest.raises(ConfigError, match=r"unknown key train\.stps=3: the nearest valid key is train\.steps"):
        resolve(config)
    config = runnable()
    del config.train.seed
    with pytest.raises(ConfigError, match=r"missing key train\.seed"):
        resolve(config)
