"""The search for the fastest sizes: what it tries, what it compiles, and that what it names fits."""

import dataclasses
import json

import pytest

from ibtpo.compiler.search import LAGS, Searcher, changed, shapes_of, sizes_of
from ibtpo.compiler.show import show_search
from ibtpo.compiler.step import process_of, step_of
from ibtpo.config import responses_per_question
from tests.compiler.small import small


def test_sizes_begin_with_the_configured_ones_and_divide_among_the_shards():
    config = small(sampling__slots=12, train__questions_per_step=10)
    tried = list(sizes_of(config, 4))
    assert tried[0] == {"sampling.slots": 12, "sampling.questions_in_flight": 2}
    assert len({tuple(t.values()) for t in tried}) == len(tried)
    assert {t["sampling.slots"] for t in tried} == {12, 8, 16, 24}
    assert all(t["sampling.slots"] % 4 == 0 for t in tried)
    assert {t["sampling.questions_in_flight"] for t in tried} == {2, 0, 8}


def test_shapes_have_as_many_responses_and_as_many_unguided_ones():
    config = small()
    tree, shapes = config.tree, list(shapes_of(config))
    assert {"tree.rounds": tree.rounds, "tree.top_k": tree.top_k, "tree.lag": 0} in shapes
    for changes in shapes:
        other = changed(config, changes)
        assert responses_per_question(other.tree) == responses_per_question(tree)
        assert (other.tree.initial, other.tree.branch) == (tree.initial, tree.branch)
    assert sum(c["tree.rounds"] == 2 for c in shapes) == 1  # one round has nothing to lag behind
    assert {c["tree.lag"] for c in shapes} == set(LAGS)
    assert config.tree.rounds == small().tree.rounds  # the original is as it was


@pytest.fixture
def searched(check):
    """(the search, the checks that it compiled by the names of their programs, a flat step)."""
    first = check(tree__min_new_tokens=1, train__row_tokens=256)
    for program in first.lowered().values():
        first.compile(program)
    process = dataclasses.replace(process_of(first.config), unit_tokens=1, step_units=2, steps_median=3)
    compiled = []

    def compile_more(config, names):
        same = {name: config[name] for name in ("sampling", "train")}
        changes = {f"{s}__{k}": v for s in same for k, v in same[s].items() if v != small()[s][k]}
        other = check(tree__min_new_tokens=1, **changes)
        for name, program in other.lowered().items():
            if name in names:
                other.compile(program)
        compiled.append((dict(config.sampling), dict(config.train), tuple(names)))
        return other

    search = Searcher(first, process, compile_more, lambda text: None).run()
    return first, search, compiled, step_of(first, process)[-1]


def test_the_fastest_is_compiled_and_fits(searched):
    first, search, compiled, flat = searched
    assert [f.seconds for f in search.sizes] == sorted(f.seconds for f in search.sizes)
    best = search.sizes[0]
    assert best.fullest is not None and best.fits and best.step.useful > 0
    assert best.seconds <= next(
        f for f in search.sizes if f.changes == next(sizes_of(first.config, 1))
    ).seconds  # no slower than the configured one
    assert all(f.fullest is None or f.fits for f in search.sizes)
    sampler_programs = [c for c in compiled if "decode" in c[2]]
    assert sum(f.fullest is not None for f in search.sizes) >= len(sampler_programs)
    assert {f.changes["train.rows_per_step"] for f in search.updates} == {1, 2, 4, 8}
    assert all(f.fits and f.update_s > 0 for f in search.updates)
    assert search.changes == best.changes | search.updates[0].changes
    assert {f.changes["tree.rounds"] for f in search.shapes} == {2, 3, 5, 9}
    assert set(search.flats) == {f.changes["sampling.slots"] for f in search.sizes}
    assert search.flats[4].responses == search.flats[8].responses == 4 * 12
    assert search.flats[4].sampling_s == pytest.approx(flat.sampling_s, rel=0.05)  # with its own pages
    table = show_search(search)
    assert f"--config.sampling.slots={best.changes['sampling.slots']}" in table and "another method" in table


def test_what_does_not_fit_is_passed_over(check):
    """Of chips that are full with the update's smallest rows, the larger ones are not named."""
    first = check(tree__min_new_tokens=1)
    for program in first.lowered().values():
        first.compile(program)
    process = dataclasses.replace(process_of(first.config), unit_tokens=1, step_units=2, steps_median=3)

    def compile_more(config, names):
        other = check(tree__min_new_tokens=1, train__rows_per_step=config.train.rows_per_step)
        for name, program in other.lowered().items():
            if name in names:
                other.compile(program)
        rows = config.train.rows_per_step > 2 or config.sampling.slots != 4
        other.limit = 1.0 if rows else first.limit
        return other

    search = Searcher(first, process, compile_more, lambda text: None).run()
    assert search.changes["train.rows_per_step"] <= 2 and search.changes["sampling.slots"] == 4
    assert [f.changes["train.rows_per_step"] for f in search.updates if not f.fits] == [4]  # more were not tried
    passed = [f for f in search.sizes if f.fullest is not None and not f.fits]
    fastest = next(f for f in search.sizes if f.fits)
    assert all(f.changes["sampling.slots"] != 4 for f in passed) and fastest.changes["sampling.slots"] == 4
    json.dumps(dataclasses.asdict(search))
