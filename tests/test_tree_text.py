"""A tree as text names every node and response."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.tree import node_mask
from ibtpo.tree_text import describe
from tests.tree_cases import cases, make_tree, padded


@given(cases(), st.booleans())
def test_describe_shows_every_node_and_response(responses, with_values):
    tree = padded(make_tree(responses))
    values = np.full(tree.node_end.shape, 0.25) if with_values else None
    text = describe(tree, lambda ids: " ".join(map(str, ids)), values=values)
    lines = text.split("\n")
    assert len(lines) == int(node_mask(tree).sum())
    assert sum("reward=" in line for line in lines) == len(responses)
    assert sum("p̂=0.25" in line for line in lines) == (len(lines) if with_values else 0)
