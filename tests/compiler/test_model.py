"""The model's own FLOPs, against its compiled forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ibtpo.compiler.costs import analyse
from ibtpo.compiler.model import matmul_params, own_flops
from ibtpo.state import make_log_probs
from tests.compiler.small import MODEL


def test_own_flops_are_those_of_the_compiled_forward_pass(check):
    made = check()
    rows, tokens = 2, 128  # one block of queries: attention computes all pairs of it
    shape = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    batch = dataclasses.replace(made.batch(), **{f.name: shape for f in dataclasses.fields(made.batch())})
    forward = make_log_probs(made.graphdef, temperature=1.0, rows_per_step=rows, token_block=128)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.params)
    total = analyse(forward.lower(params, batch).compile().as_text()).total
    # A third of an update's: the backward pass costs twice the forward pass.
    own = own_flops(MODEL, rows * tokens, rows * tokens**2) / 3
    assert total.flops == pytest.approx(own, rel=0.01)


def test_matmul_params_are_the_matrices_of_the_decoder(check):
    params = check().params
    flat = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    matrices = sum(x.size for name, x in flat.items() if not any(w in name for w in ("norm", "bias", "embedding")))
    assert matmul_params(MODEL) == matrices
