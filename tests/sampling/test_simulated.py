"""The simulated device does what the real one does, and the scheduler comes to an end on it at any size."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.sampling import Question, SamplerOptions, SamplingParams, TreeOptions, TreeSampler
from ibtpo.sampling import sampler as sampler_lib
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import Chunks
from ibtpo.sampling.engine import Run
from ibtpo.sampling.grades import Grades
from ibtpo.sampling.growth import Growth
from ibtpo.sampling.process import Process, grade
from ibtpo.sampling.programs import DecoderDevice
from ibtpo.sampling.simulated import SimulatedDevice
from ibtpo.sampling.strategies import STRATEGIES
from tests.sampling.recording import check_simulated, recording
from tests.sampling.test_sampler import CODEC, MODEL, OPTIONS, STOP, TREE, policy, questions  # noqa: F401
from tests.sampling.test_sampler import grade as grade_of_model


@pytest.mark.parametrize("few_pages", [False, True])
@pytest.mark.parametrize("strategy", ["ib", "fixed_width"])
def test_step_by_step_it_does_what_the_real_device_does(policy, questions, monkeypatch, strategy, few_pages):  # noqa: F811
    """Every chunk has the same owners, tokens, ends, steps, pages and want of pages, preemptions included."""
    tree = dataclasses.replace(TREE, strategy=strategy)
    options = dataclasses.replace(OPTIONS, deterministic=True, questions_in_flight=8)
    if few_pages:
        options = dataclasses.replace(options, pages=Capacity.of(options, tree, 1).least)
    real = recording(DecoderDevice)
    monkeypatch.setattr(sampler_lib, "DecoderDevice", real)
    sampler = TreeSampler(policy[0], MODEL, options, tree, CODEC)
    key = jax.random.key(5)
    trees, stats = sampler(policy[1], questions, grade_of_model, key=key, sampling=SamplingParams())
    assert (stats.preemptions > 0) == few_pages

    check_simulated(real, sampler, questions, grade_of_model, key, trees, stats, [STOP])


class Checked(SimulatedDevice):
    """Counts its pages anew after every chunk."""

    def decode(self, steps, sequences):
        fetch = super().decode(steps, sequences)
        for shard in self._shards:
            held = [page for pages in shard.table.values() for page in pages]
            assert {page: held.count(page) for page in set(held)} == shard.references
            assert shard.free + len(shard.references) == self.capacity.num_pages
            for s in filter(None, shard.slots):
                written = shard.table[s.row][: (s.length - 1) // self.capacity.page_size + 1]
                last = written[(s.length - 2) // self.capacity.page_size] if s.length > 1 else None
                assert last is None or shard.references[last] == 1 or (s.length - 1) % self.capacity.page_size == 0
        return fetch


def sample(tree, options, shards, asked, device_class=SimulatedDevice, seed=0, step_units=3):
    capacity = Capacity.of(options, tree, shards)
    process = Process(seed=seed, unit_tokens=2, steps_median=3, step_units=step_units)
    device = device_class(capacity, process)
    growth, chunks = Growth(tree, process.codec(), [seed]), Chunks(0.0)
    trees, stats = Run(device, capacity, growth, Grades(grade), chunks, asked).run()
    return trees, stats, device


@given(
    strategy=st.sampled_from(list(STRATEGIES)),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    slots=st.integers(1, 9),
    shards=st.integers(1, 3),
    in_flight=st.integers(0, 9),
    page_size=st.sampled_from([1, 2, 4, 8]),
    chunk=st.integers(1, 16),
    spare=st.integers(0, 40),
    lag=st.integers(0, 3),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
def test_every_question_finishes_whatever_the_sizes(
    strategy, shape, slots, shards, in_flight, page_size, chunk, spare, lag, lengths, seed
):
    """No deadlock, no lost page, nothing starves for ever, and the responses depend on no size but the tree's."""
    initial, rounds, top_k, branch = shape
    tree = TreeOptions(
        strategy=strategy,
        initial=initial,
        rounds=1 if strategy == "independent" else rounds,
        top_k=top_k,
        branch=branch,
        lag=lag,
        max_new_tokens=24,
        min_new_tokens=2,
        segment_tokens=6,
    )
    options = SamplerOptions(
        slots=slots * shards, page_size=page_size, chunk=chunk, max_prompt_tokens=12, questions_in_flight=in_flight
    )
    least = Capacity.of(options, tree, shards).least
    options = dataclasses.replace(options, pages=shards * (least + spare))
    asked = [Question(id, [1] * length) for id, length in enumerate(lengths)]
    trees, stats, device = sample(tree, options, shards, asked, Checked, seed)
    assert [t.question.id for t in trees] == list(range(len(asked)))
    assert stats.pages_left == 0 and device.pages_in_use() == 0
    roomy = SamplerOptions(slots=64, page_size=8, chunk=16, max_prompt_tokens=12, questions_in_flight=9)
    others, unhurried, _ = sample(tree, roomy, 1, asked, seed=seed)
    for one, other in zip(trees, others, strict=True):
        assert len(one.responses) == len(other.responses)
        for r, s in zip(one.responses, other.responses):
            np.testing.assert_array_equal(r.tokens, s.tokens)
            assert (r.parent, r.fork, r.round, r.finish, r.reward) == (s.parent, s.fork, s.round, s.finish, s.reward)
    assert stats.generated_tokens == unhurried.generated_tokens


def test_a_pods_step_runs_in_seconds():
    """128 questions of 12 responses of up to 2,040 tokens on 256 slots of four shards."""
    tree = TreeOptions(strategy="ib", max_new_tokens=2040)
    options = SamplerOptions(slots=256, page_size=64, chunk=64, max_prompt_tokens=256, questions_in_flight=128)
    capacity, process = Capacity.of(options, tree, 4), Process()
    device, grades = SimulatedDevice(capacity, process, Unit()), Grades(grade)
    asked = [Question(id, [1] * 200) for id in range(128)]
    trees, stats = Run(device, capacity, Growth(tree, process.codec(), [0]), grades, Chunks(0.0), asked).run()
    assert stats.responses == 128 * 12 and stats.pages_left == stats.preemptions == 0
    assert stats.generated_tokens == sum(int((t.tree.step > 0).sum()) for t in trees)
    assert device.clock.by_kind["decode"] == stats.decode_steps
    assert 0.6 < stats.generated_tokens / stats.slot_steps < 1


@pytest.mark.slow
def test_ten_thousand_questions_finish():
    tree = TreeOptions(strategy="ib", max_new_tokens=128, min_new_tokens=2)
    options = SamplerOptions(slots=1024, page_size=16, chunk=32, max_prompt_tokens=12, questions_in_flight=1024)
    least = Capacity.of(options, tree, 16).least
    options = dataclasses.replace(options, pages=16 * 3 * least)
    asked = [Question(id, [1] * (1 + id % 12)) for id in range(10_000)]
    trees, stats, device = sample(tree, options, 16, asked, Checked, step_units=10)
    assert [t.question.id for t in trees] == list(range(10_000))
    assert all(len(t.responses) == 12 for t in trees)
    assert stats.pages_left == device.pages_in_use() == 0 and stats.preemptions > 0


class Unit:
    """One second a decode step, and everything else for nothing."""

    def prefill(self, prompts, width):
        return 0.0

    def start(self, forks):
        return 0.0

    def step(self, slots, live_tokens):
        return 1.0

    def recompute(self, tokens):
        return 0.0

    def release(self):
        return 0.0
