"""The run loop on a device without a model: what it asks of a device is all there is between the two."""

import dataclasses
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ibtpo.sampling import Codec, Question, SamplerOptions, TreeOptions
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import Chunks
from ibtpo.sampling.device import Device
from ibtpo.sampling.engine import Run
from ibtpo.sampling.grades import Grades
from ibtpo.sampling.growth import Growth
from ibtpo.sampling.strategies import STRATEGIES
from ibtpo.tree import tokens_of_response
from tests.sampling.recording import recording
from tests.sampling.scripted_device import STOP, VOCAB, ScriptedDevice, draw

OPTIONS = SamplerOptions(slots=4, page_size=4, chunk=3, max_prompt_tokens=6, questions_in_flight=6)


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_device_without_a_model_grows_every_strategys_trees(strategy, num_shards):
    tree = TreeOptions(strategy=strategy, initial=2, rounds=3, max_new_tokens=12, segment_tokens=5)
    capacity = Capacity.of(OPTIONS, tree, num_shards)
    device: Device = ScriptedDevice(capacity)
    codec = Codec(VOCAB, stop_ids=[STOP], cut_steps=lambda tokens: [*range(2, len(tokens), 2), len(tokens)])
    questions = [Question(id, [1] * (1 + id % 6)) for id in range(9)]
    grades = Grades(lambda question, tokens: float(sum(tokens) % 2))
    trees, stats = Run(device, capacity, Growth(tree, codec, [3]), grades, Chunks(0.0), questions).run()

    assert [sampled.question for sampled in trees] == questions
    for sampled in trees:
        assert len(sampled.responses) == capacity.group_size == 4
        for r in sampled.responses:
            prompt = len(sampled.question.tokens)
            own = [draw(sampled.question.id, r.index, prompt + i) for i in range(r.fork, len(r.tokens))]
            before = sampled.responses[r.parent].tokens[: r.fork] if r.fork else []
            assert r.tokens.tolist() == [*before, *own]
            assert STOP not in r.tokens[:-1]
            assert r.finish == ("stop" if r.tokens[-1] == STOP else "length")
            assert r.finish == "stop" or len(r.tokens) == tree.max_new_tokens
            nodes = tokens_of_response(sampled.tree, r.index)
            np.testing.assert_array_equal(sampled.tree.tokens[0, nodes], r.tokens)
    assert stats.generated_tokens == sum(int((t.tree.step > 0).sum()) for t in trees)
    assert stats.pages_left == stats.preemptions == 0


def test_a_grade_that_asks_is_told_which_responses_were_cut_off():
    tree = TreeOptions(strategy="independent", initial=4, rounds=1, max_new_tokens=12)
    capacity = Capacity.of(OPTIONS, tree, 1)
    codec = Codec(VOCAB, stop_ids=[STOP], cut_steps=lambda tokens: [len(tokens)])
    questions = [Question(id, [1, 1]) for id in range(9)]

    def grade(question, tokens, truncated):
        assert truncated == (tokens[-1] != STOP)
        return float(truncated)

    growth = Growth(tree, codec, [3])
    trees, _ = Run(ScriptedDevice(capacity), capacity, growth, Grades(grade), Chunks(0.0), questions).run()
    rewards = {(r.finish, r.reward) for sampled in trees for r in sampled.responses}
    assert rewards == {("stop", 0.0), ("length", 1.0)}


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_uniform_groups_get_extra_rounds_and_mixed_ones_none(strategy):
    tree = TreeOptions(strategy=strategy, initial=2, rounds=2, extra_rounds=3, max_new_tokens=12, segment_tokens=5)
    capacity = Capacity.of(OPTIONS, tree, 1)
    assert capacity.group_size == 6
    codec = Codec(VOCAB, stop_ids=[STOP], cut_steps=lambda tokens: [*range(2, len(tokens), 2), len(tokens)])
    # Those of question 0 are always wrong; of question 1 the first is right, of question 2 the fourth.
    right = {(1, 0), (2, 3)}
    asked: dict[int, int] = {}

    def grade(question, tokens):
        index = asked[question.id] = asked.get(question.id, -1) + 1
        return float((question.id, index) in right)

    questions = [Question(id, [1, 1]) for id in range(3)]
    growth = Growth(tree, codec, [3])
    trees, stats = Run(ScriptedDevice(capacity), capacity, growth, Grades(grade), Chunks(0.0), questions).run()
    assert [len(sampled.responses) for sampled in trees] == [6, 3, 4]
    assert stats.responses == 13 and stats.pages_left == 0


@pytest.mark.parametrize("strategy", ["ib", "random", "entropy", "at2po", "uucb"])
@pytest.mark.parametrize("lag", [1, 2, 9])
def test_with_a_lag_a_round_knows_only_the_rounds_before(strategy, lag, monkeypatch):
    """A choice sees the unguided responses and the rounds up to its own less 1 + lag, and where the others forked."""
    tree = TreeOptions(strategy=strategy, initial=2, rounds=5, top_k=2, max_new_tokens=12, lag=lag)
    codec = Codec(VOCAB, stop_ids=[STOP], cut_steps=lambda tokens: [*range(2, len(tokens), 2), len(tokens)])
    questions = [Question(id, [1] * (1 + id % 6)) for id in range(9)]
    choose, seen = STRATEGIES[strategy], []

    def watched(known, responses, options, rng, limits, pending):
        forks = choose(known, responses, options, rng, limits, pending)
        seen.append(([r.round for r in responses], [r.round for r in pending]))
        return forks

    monkeypatch.setitem(STRATEGIES, strategy, watched)
    grown = {}
    for slots, chunk in ((4, 3), (1, 1), (24, 7)):
        options = dataclasses.replace(OPTIONS, slots=slots, chunk=chunk)
        capacity = Capacity.of(options, tree, 1)
        grades = Grades(lambda question, tokens: float(sum(tokens) % 2))
        growth = Growth(tree, codec, [3])
        trees, _ = Run(ScriptedDevice(capacity), capacity, growth, grades, Chunks(0.0), questions).run()
        grown[slots] = [[(r.parent, r.fork, r.round, r.tokens.tolist()) for r in t.responses] for t in trees]
        assert all(len(t) == 10 for t in grown[slots])
    assert grown[4] == grown[1] == grown[24]
    for known, pending in seen:
        coming = max([*known, *pending]) + 1
        assert set(known) == set(range(max(0, coming - 1 - lag) + 1))
        assert set(pending) == set(range(max(known) + 1, coming))


def schedule(delay, *, deterministic):
    """What a device is asked for where the grade of a response takes `delay` seconds; 0: no time, and no Future."""
    tree = TreeOptions(strategy="ib", initial=3, rounds=4, max_new_tokens=12)
    capacity = Capacity.of(OPTIONS, tree, 2)
    device = recording(ScriptedDevice)(capacity)
    codec = Codec(VOCAB, stop_ids=[STOP], cut_steps=lambda tokens: [*range(2, len(tokens), 2), len(tokens)])
    questions = [Question(id, [1] * (1 + id % 6)) for id in range(12)]
    with ThreadPoolExecutor(8) as pool:

        def grade(question, tokens):
            reward, seconds = float(sum(tokens) % 2), delay()
            return pool.submit(lambda: time.sleep(seconds) or reward) if seconds else reward

        grades = Grades(grade, deterministic=deterministic)
        Run(device, capacity, Growth(tree, codec, [3]), grades, Chunks(0.0), questions).run()
    return device.log


def test_a_deterministic_schedule_does_not_depend_on_the_time_of_grading():
    rng = random.Random(0)
    delays = (lambda: 0, lambda: 0.003, lambda: rng.choice([0, 0.001, 0.008]))
    schedules = [schedule(delay, deterministic=True) for delay in delays]
    assert schedules[0] == schedules[1] == schedules[2]
    assert schedule(delays[0], deterministic=False) != schedule(delays[1], deterministic=False)
