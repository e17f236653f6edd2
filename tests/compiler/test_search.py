"""The search for the fastest sizes: what it tries, what it compiles, and that what it names fits."""

import copy
import dataclasses
import json

import pytest

from ibtpo.compiler import search as search_lib
from ibtpo.compiler.check import Report
from ibtpo.compiler.search import LAGS, Searcher, changed, shapes_of, sizes_of
from ibtpo.compiler.show import as_json, show_search
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


@pytest.mark.slow
def test_the_fastest_that_fits_is_named(check, monkeypatch):
    """Once where everything fits, once where nothing does but the configured slots."""
    monkeypatch.setattr(search_lib, "SLOTS", (1, 2))
    monkeypatch.setattr(search_lib, "ROWS", (1, 2))
    compiled: dict = {}

    def build(config, names):
        """The check of a configuration, with its programs; each once."""
        wanted = {"sampling": ("slots", "questions_in_flight"), "train": ("rows_per_step",)}
        changes = {f"{section}__{key}": config[section][key] for section, keys in wanted.items() for key in keys}
        which = (tuple(names), *changes.values())
        if which not in compiled:
            compiled[which] = check(tree__min_new_tokens=1, **changes)
            for name, program in compiled[which].lowered().items():
                if not names or name in names:
                    compiled[which].compile(program)
        return compiled[which]

    first = build(small(), ())
    process = dataclasses.replace(process_of(first.config), unit_tokens=1, step_units=2, steps_median=3)
    search = Searcher(first, process, build, lambda text: None).run()
    best = search.sizes[0]
    assert [f.seconds for f in search.sizes] == sorted(f.seconds for f in search.sizes)
    assert best.fits and best.step.useful > 0 and all(f.fullest is None or f.fits for f in search.sizes)
    own = next(f for f in search.sizes if f.changes == next(sizes_of(first.config, 1)))
    assert best.seconds <= own.seconds
    assert {f.changes["train.rows_per_step"] for f in search.updates} == {1, 2}
    assert all(f.fits and f.update_s > 0 for f in search.updates)
    assert search.changes == best.changes | search.updates[0].changes
    assert {f.changes["tree.rounds"] for f in search.shapes} == {2, 3, 5, 9}
    assert all(f.changes.items() >= best.changes.items() for f in search.shapes)
    flat = step_of(first, process)[-1]
    assert search.flats.keys() == {4, 8} and all(step.responses == 4 * 12 for step in search.flats.values())
    assert search.flats[4].sampling_s == pytest.approx(flat.sampling_s, rel=0.05)  # with its own pages
    table = show_search(search)
    assert f"--config.sampling.slots={best.changes['sampling.slots']}" in table and "another method" in table
    json.dumps(as_json(first, [flat], flat, search))

    def build_small(config, names):
        other = copy.copy(build(config, names))
        other.limit = first.limit if config.sampling.slots == 4 else 1.0
        return other

    search = Searcher(first, process, build_small, lambda text: None).run()
    assert search.changes["sampling.slots"] == 4
    passed = [f for f in search.sizes if f.fullest is not None and not f.fits]
    assert passed and all(f.changes["sampling.slots"] == 8 for f in passed)


def test_an_update_that_cannot_fit_is_not_compiled(check, monkeypatch):
    first = check(tree__min_new_tokens=1)
    needs = Report("update", 0.0, arguments=0.4e9, temporaries=0.5e9)
    first.reports = {"update": needs}
    searcher = Searcher(first, process_of(first.config), lambda config, names: first, lambda text: None)
    assert searcher._least(2) == pytest.approx(0.9) and searcher._least(4) == pytest.approx(1.15)
