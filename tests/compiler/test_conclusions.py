"""Conclusions from the programs of a check: room and advice."""

from ibtpo.compiler.check import chip_bytes
from ibtpo.compiler.conclusions import advice, capacity, goals
from tests.compiler.small import MODEL


def test_a_larger_pool_costs_its_pages(check):
    """Pool bytes are linear in the pages; the largest pool is computed from that."""
    needs, rooms = [], []
    for pages in (48, 96):
        made = check(sampling__pages=pages)
        made.compile(made.lowered()["decode"])
        needs.append(made.need(made.reports["decode"]))
        rooms.append(capacity(made))
    page = rooms[0]["page_bytes"]
    assert page == 2 * MODEL.num_kv_heads * MODEL.num_layers * 16 * MODEL.head_dim * 4
    assert needs[1] - needs[0] >= 48 * page
    assert rooms[0]["pages"] > 96


def test_what_does_not_fit_says_by_how_much_and_which_knob(check):
    made = check(model__remat="none")
    made.compile(made.lowered()["update"])
    need, state = made.need(made.reports["update"]), chip_bytes(made.state)
    assert advice(made) == [] and need > state

    made.limit = 0.9 * state  # not even the state fits: only what splits it, or leaves some of it out, helps
    (line,) = advice(made)
    assert line.startswith(f"update needs {need / 2**30:.2f} GiB per chip, {(need - made.limit) / 2**30:.2f} too many")
    assert "more chips, over which mesh.fsdp" in line and "loss.kl=0" in line and "remat" not in line
    assert not goals(made)[0]["met"]

    made.limit = state + 0.3 * (need - state)  # the activations do not
    (line,) = advice(made)
    assert "model.remat=full (now none)" in line and "train.rows_per_step=1 (now 2)" in line


def test_a_pool_that_does_not_fit_names_the_one_that_does(check):
    made = check()
    made.compile(made.lowered()["decode"])
    made.limit = made.need(made.reports["decode"]) - 10 * capacity(made)["page_bytes"]
    pages = made.sampler.capacity.num_pages - 10
    assert capacity(made)["pages"] == pages
    (line,) = advice(made)
    assert f"sampling.pages={pages} or fewer (now {pages + 10})" in line
    assert "sampling.questions_in_flight=1 or fewer (now 2)" in line and "raise mesh" not in line
