"""Training rows: trees side by side (`rows`), and flat groups of any trainer as such trees (`flat`)."""

from ibtpo.packing.flat import PackedGroups, gather_responses, pack_groups
from ibtpo.packing.rows import (
    ROW_STEP,
    Layout,
    Piece,
    TokenBatch,
    fill,
    moved,
    place,
    place_weights,
    plan,
    row_length,
    unpack,
)

__all__ = [
    "ROW_STEP",
    "Layout",
    "PackedGroups",
    "Piece",
    "TokenBatch",
    "fill",
    "gather_responses",
    "moved",
    "pack_groups",
    "place",
    "place_weights",
    "plan",
    "row_length",
    "unpack",
]
