"""Costs of whole programs: branches, kernels, copies, sums."""

import jax
import pytest

from ibtpo.compiler import costs
from ibtpo.compiler.collectives import Collective
from ibtpo.compiler.costs import analyse
from ibtpo.compiler.kernel_calls import Kernel
from tests.compiler.programs import analysed, module


def test_the_costlier_branch_of_a_conditional_counts():
    def choose(flag, x):
        return jax.lax.cond(flag[0] > 0, lambda x: (x @ x) @ x, lambda x: x, x)

    assert analysed(choose, (1,), (64, 64)).total.flops == 2 * 2 * 64**3


def test_kernels_count_by_their_own_estimate():
    estimate = '"cost_estimate":{"flops":"1000","transcendentals":"4","bytes_accessed":"2000"},'
    line = (
        '%%k%d = bf16[64,128]{1,0} custom-call(%%q), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(f)/jvp(jit(%s))/pallas_call"}, '
        'backend_config={"custom_call_config":{"body":"TUzvUgFN)(",%s"needs_layout_passes":true}}'
    )
    text = module(
        "\n".join(
            [
                "%q = bf16[64,128]{1,0} parameter(0)",
                line % (0, "tree", estimate),
                line % (1, "tree", estimate),
                line % (2, "paged", ""),
                "ROOT %t = (bf16[64,128]{1,0}, bf16[64,128]{1,0}, bf16[64,128]{1,0}) tuple(%k0, %k1, %k2)",
            ]
        )
    )
    total = analyse(text).total
    size = 2 * 64 * 128 * 2
    assert total.kernels == {
        "tree": Kernel(calls=2, flops=2000, bytes=4000, operand_bytes=2 * size, estimated=True),
        "paged": Kernel(calls=1, flops=0, bytes=0, operand_bytes=size, estimated=False),
    }
    assert total.bytes == 0 and total.flops == 0


def test_copies_within_hbm_are_reported():
    text = module(
        """%a = bf16[64,128]{1,0} parameter(0)
        %b = bf16[64,128]{0,1} copy(%a), metadata={op_name="jit(f)/transpose"}
        ROOT %c = bf16[64,128]{0,1:S(1)} copy(%b)"""
    )
    assert analyse(text).total.copies == [costs.Copy("bf16[64,128]", 2 * 64 * 128, 1, 0, "jit(f)/transpose")]


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        analyse("module @jit_f {}")


def test_costs_add_and_scale():
    one = costs.Cost(flops=3, flops_by_depth={1: 3}, bytes=5, collectives={("all-gather", 2): Collective(1, 8, 4)})
    total = costs.Cost()
    total.add(one, 3)
    total.add(one)
    assert (total.flops, total.flops_by_depth, total.bytes, total.sent) == (12, {1: 12}, 20, 16)
    assert total.collectives["all-gather", 2] == Collective(4, 32, 16)
