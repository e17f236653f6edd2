"""The programs of a configuration, with this machine's compiler."""

import json

import jax
import numpy as np
import pytest

from ibtpo.compiler.check import Lowering
from ibtpo.compiler.conclusions import advice, decode_step, goals, uncounted_loops, update_flops
from ibtpo.compiler.model import matmul_params
from ibtpo.compiler.show import as_json, show
from tests.compiler.small import MODEL


@pytest.fixture
def reported(check):
    made = check()
    for program in made.lowered().values():
        made.compile(program)
    return made


def test_the_whole_report(reported):
    made = reported
    assert list(made.reports) == ["serve", "prefill", "start", "decode", "release", "recompute", "reference", "update"]
    assert advice(made) == []

    update = update_flops(made)
    # Rows hold the tree's tokens once, and nothing is recomputed but blocks of attention and logits. Of XLA's attention
    # the most pairs count that a block may see, since how many it does see is known at run time only.
    assert 1.0 < update["ratio"] < 2.5
    step = decode_step(made)
    assert step["ratio"] >= 1.0
    assert step["weights"] == 4 * (matmul_params(MODEL)) + norm_bytes(made)

    report = as_json(made)
    assert json.loads(json.dumps(report))["programs"]["update"]["fits"]
    assert {"name", "value", "goal", "met"} == set(report["goals"][0])
    text = show(made)
    assert "Everything fits." in text and "kernels: none" in text
    assert [line for line in text.splitlines() if len(line) > 100] == []


def test_own_flops_of_adapters_leave_out_the_gradients_of_frozen_weights(check):
    """The same rows: what is compiled is about the same, since W + (alpha / r) A B has a gradient too, and the model's
    own are 4 N for each token in place of 6 N."""
    found = []
    for rank in (0, 2):
        made = check(model__lora_rank=rank)
        made.compile(made.lowered()["update"])
        found.append(update_flops(made))
    whole, adapters = found
    assert adapters["compiled"] > 0.95 * whole["compiled"]
    assert 4 / 6 < adapters["own"] / whole["own"] < 0.8


def norm_bytes(made):
    flat = jax.tree_util.tree_leaves_with_path(made.params)
    return 4 * sum(x.size for path, x in flat if "norm" in jax.tree_util.keystr(path))


def test_a_program_that_the_compiler_refuses_is_reported(check):
    made = check()

    def refuse():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (24.12G) "
            "exceeds available HBM (15.75G)."
        )

    report = made.compile(Lowering("decode", refuse))
    assert report.exceeded == pytest.approx((24.12 - 15.75) * 2**30)
    assert decode_step(made) is None and not goals(made)[0]["met"]
    (line,) = advice(made)
    assert line.startswith("decode needs ")
    assert show(made)


def test_other_compiler_errors_are_not_hidden(check):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed")

    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic"):
        check().compile(Lowering("update", fail))


def test_loops_that_nothing_counts_are_noted(check):
    made = check()

    def lower():
        return jax.jit(lambda x: jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x * 0.5, x)).lower(np.ones(8))

    made.compile(Lowering("release", lower, unknown_trips=3))
    assert uncounted_loops(made) == [] and "nothing says" not in show(made)
    made.compile(Lowering("release", lower))
    assert uncounted_loops(made) == [("release", 1)]
    assert "Note: loops of release whose iterations nothing says, so that they count once: 1" in show(made)
