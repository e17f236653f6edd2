"""Order of the questions: a function of (seed, batch), resumable, without repeats in an epoch."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data.iterator import ProblemIterator
from ibtpo.data.problems import Problem
from ibtpo.errors import UserError

# Few problems: a shuffled index costs a millisecond.
_sizes = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def _problems(num: int) -> list[Problem]:
    return [Problem(index, f"question {index}", str(index)) for index in range(num)]


def _ids(iterator: ProblemIterator, num_batches: int) -> list[list[int]]:
    return [[problem.id for problem in iterator.next_batch()] for _ in range(num_batches)]


@given(_sizes, st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 5))
def test_resumed_run_equals_uninterrupted_run(sizes, seed, before, after):
    num, batch_size = sizes
    whole = _ids(ProblemIterator(_problems(num), batch_size, seed), before + after)
    interrupted = ProblemIterator(_problems(num), batch_size, seed)
    _ids(interrupted, before)
    state = json.loads(json.dumps(interrupted.state()))
    resumed = ProblemIterator(_problems(num), batch_size, seed)
    resumed.restore(state)
    assert _ids(resumed, after) == whole[before:]
    assert resumed.state()["batch"] == before + after


@given(_sizes, st.integers(0, 2**31))
def test_no_problem_twice_in_an_epoch(sizes, seed):
    num, batch_size = sizes
    iterator = ProblemIterator(_problems(num), batch_size, seed)
    for _ in range(3):
        epoch = _ids(iterator, num // batch_size)
        assert all(len(batch) == batch_size for batch in epoch)
        seen = [id_ for batch in epoch for id_ in batch]
        assert len(set(seen)) == len(seen) and set(seen) <= set(range(num))


def test_epochs_and_seeds_differ_and_nothing_is_left_out():
    def epochs(seed):
        iterator = ProblemIterator(_problems(50), 8, seed)
        return [_ids(iterator, 6) for _ in range(8)]

    first, second = epochs(0), epochs(1)
    assert first != second
    assert all(a != b for a, b in itertools.pairwise(first))
    assert {id_ for epoch in first for batch in epoch for id_ in batch} == set(range(50))


def test_wrong_sizes_and_foreign_states_are_named():
    for batch_size in (0, 6):
        with pytest.raises(UserError, match=f"batch_size {batch_size} .* 5: lower train.questions_per_step"):
            ProblemIterator(_problems(5), batch_size, 0)
    state = ProblemIterator(_problems(5), 2, 0).state()
    for other, name in [
        (ProblemIterator(_problems(5), 2, 1), "seed=0"),
        (ProblemIterator(_problems(5), 1, 0), "batch_size=2"),
        (ProblemIterator(_problems(6), 2, 0), "num_problems=5"),
    ]:
        with pytest.raises(UserError, match=name):
            other.restore(state)


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 5), max_size=4),
)
def test_hosts_share_out_the_batches_of_one(count, each, extra, seed, numbers):
    batch_size = count * each
    whole = ProblemIterator(_problems(batch_size + extra), batch_size, seed)
    hosts = [ProblemIterator(_problems(batch_size + extra), batch_size, seed, shard=(i, count)) for i in range(count)]
    for number in numbers:
        parts = [host.take(number) for host in hosts]
        assert [problem for together in zip(*parts) for problem in together] == whole.take(number * count)
        assert all(host.state() == whole.state() for host in hosts)
    # One host alone goes on from there, and they from where it stops.
    whole.restore(hosts[0].state())
    while whole.state()["taken"]:
        whole.take(1)
    for host in hosts:
        host.restore(json.loads(json.dumps(whole.state())))
    parts = [host.next_batch() for host in hosts]
    assert sorted(problem.id for part in parts for problem in part) == sorted(p.id for p in whole.next_batch())


def test_impossible_shards_are_refused():
    with pytest.raises(UserError, match=r"batch_size 4 cannot be dealt out to 3 hosts.* 6"):
        ProblemIterator(_problems(9), 4, 0, shard=(0, 3))
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="0 <= index < count"):
            ProblemIterator(_problems(9), 4, 0, shard=shard)
    alone = ProblemIterator(_problems(9), 4, 0)
    alone.take(3)
    with pytest.raises(UserError, match="3 problems into a batch, which 2 hosts"):
        ProblemIterator(_problems(9), 4, 0, shard=(1, 2)).restore(alone.state())


def test_problems_taken_in_any_numbers_come_in_the_order_of_the_batches():
    whole = ProblemIterator(_problems(7), 3, seed=1)
    expected = [problem for _ in range(8) for problem in whole.next_batch()]
    parts, taken = ProblemIterator(_problems(7), 3, seed=1), []
    for number in (1, 4, 3, 2, 7):
        taken += parts.take(number)
        resumed = ProblemIterator(_problems(7), 3, seed=1)
        resumed.restore(parts.state())
        parts = resumed
    assert taken == expected[:17] and parts.next_batch() == expected[17:20]
