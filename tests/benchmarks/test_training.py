"""The benchmark of training: its responses, laid out one by one, weigh what the trees do."""

import numpy as np
import pytest

from benchmarks import training, training_layouts
from ibtpo.advantages import AdvantageOptions, grpo
from ibtpo.token_weights import token_weights

OPTIONS = dict(aggregation="response_mean", max_new_tokens=112)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_responses_by_themselves_weigh_what_the_trees_do(share, several):
    tree = training.made_up_tree(share, 3, 64, 112)
    advantages = grpo(tree, AdvantageOptions())
    shared = (tree.step >= 0).sum() / (3 * training.RESPONSES * (training.PROMPT + training.LENGTH))
    fork = round(share * training.LENGTH)
    per_question = training.PROMPT + fork + training.RESPONSES * (training.LENGTH - fork)
    assert shared == pytest.approx(per_question / (training.RESPONSES * (training.PROMPT + training.LENGTH)))

    responses = training_layouts.responses_of(tree, advantages, tree.response_node >= 0, **OPTIONS)
    batch, rows = training_layouts.rows_of(responses, 300 if several else 128, 1200, several=several)
    assert batch.tokens.shape[0] % rows == 0 and rows * batch.tokens.shape[1] <= 1200
    of_nodes = token_weights(tree, advantages, **OPTIONS)
    for name, values in zip(("positive", "negative", "weight"), of_nodes):
        of_tokens = np.take_along_axis(values, np.maximum(tree.step, 0), axis=1)[tree.step > 0]
        np.testing.assert_allclose(np.asarray(getattr(batch, name)).sum(), of_tokens.sum(), rtol=1e-4, atol=1e-5)
    # Every trained token follows its parent in the same sequence, at the next position.
    row, column = np.nonzero(batch.weight)
    np.testing.assert_array_equal(batch.parent_token[row, column], column - 1)
    np.testing.assert_array_equal(batch.positions[row, column], batch.positions[row, column - 1] + 1)
    assert (batch.weight > 0).sum() == 3 * training.RESPONSES * training.LENGTH


def test_compiled_layouts_hold_the_same_responses():
    from ibtpo.compiler.model import load_model_config
    from ibtpo.compiler.work import make_work
    from ibtpo.run_plan import RunPlan

    works = {}
    for name in ("packed", "padded", "sequences"):
        config = training.layout_config(name, quick=True)
        works[name] = make_work(config, load_model_config(config), RunPlan.from_config(config))
        assert works[name].rows % config.train.rows_per_step == 0
    one = 128 + 256  # a response and its prompt
    assert works["padded"].unique_tokens == works["padded"].row_tokens == one
    assert works["padded"].rows == 10 * 12 and works["sequences"].unique_tokens == 4096 // one * one
    assert works["sequences"].rows >= 10 * 12 / (4096 // one)
    # The twelve responses of a tree share its prompt at least.
    assert works["packed"].tree_tokens <= 12 * one - 11 * 128


def test_trees_that_share_their_prompts_alone_weigh_the_same():
    tree = training.made_up_tree(0.5, 3, 64, 112)
    counted = tree.response_node >= 0
    counted[1] = False
    responses = training_layouts.responses_of(tree, grpo(tree, AdvantageOptions()), counted, **OPTIONS)
    batch, rows = training_layouts.prompts_only(tree, responses, counted, 1024, 2)
    one, _ = training_layouts.rows_of(responses, 128, 1024, several=False)
    assert batch.tokens.shape == (2, 1024) and rows == 2
    assert (batch.weight > 0).sum() == (one.weight > 0).sum() == 2 * training.RESPONSES * training.LENGTH
    for name in ("positive", "negative", "weight", "log_probs"):
        np.testing.assert_allclose(getattr(batch, name)[batch.weight > 0].sum(), getattr(one, name).sum(), rtol=1e-4)
