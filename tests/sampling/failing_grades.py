"""Run by test_multihost.py in two processes: what each makes of grades that come, and of grades that do not."""

import concurrent.futures
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from ibtpo import parallel
from ibtpo.sampling import Codec, Question, SamplerOptions, TreeOptions
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import Chunks
from ibtpo.sampling.engine import Run
from ibtpo.sampling.grades import BLOCK, Grades, exchange
from ibtpo.sampling.growth import Growth
from tests.sampling.scripted_device import STOP, VOCAB, ScriptedDevice

QUESTIONS = [Question(id, [1, 2]) for id in range(6)]
sizes = set()  # of the arrays exchanged


def sample(grade):
    tree = TreeOptions(strategy="ib", initial=2, rounds=3, max_new_tokens=12)
    options = SamplerOptions(slots=4, page_size=4, chunk=3, max_prompt_tokens=6, questions_in_flight=6)
    capacity = Capacity.of(options, tree, 1)
    codec = Codec(VOCAB, stop_ids=[STOP], cut_steps=lambda tokens: [len(tokens)])
    growth, grades, chunks = Growth(tree, codec, [3]), Grades(grade), Chunks(time.perf_counter())
    return Run(ScriptedDevice(capacity), capacity, growth, grades, chunks, QUESTIONS).run()


def right(question, tokens):
    return float(sum(tokens) % 2)


def raises_on_1(question, tokens):
    if jax.process_index() == 1 and question.id == 3:
        raise ZeroDivisionError("the grader's own words")
    return right(question, tokens)


def fails_later_on_0(question, tokens):
    return pool.submit(lambda: 1 / 0 if jax.process_index() == 0 else right(question, tokens))


def no_probability_on_1(question, tokens):
    return 2.0 if jax.process_index() == 1 else right(question, tokens)


parallel.initialize()
gather = multihost_utils.process_allgather
multihost_utils.process_allgather = lambda words: (sizes.add(words.shape), gather(words))[1]
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for grade in (raises_on_1, fails_later_on_0, no_probability_on_1):
        try:
            sample(grade)
        except Exception as error:
            print(f"{grade.__name__}: {type(error).__name__}: {error}", flush=True)
trees, _ = sample(right)
print("rewards:", [r.reward for t in trees for r in t.responses], flush=True)
for n in (1, BLOCK, 2 * BLOCK + 1):
    of_all = exchange(np.arange(n) / 3 + jax.process_index())
    np.testing.assert_array_equal(of_all, [np.arange(n) / 3, np.arange(n) / 3 + 1])
print("sizes:", sizes, flush=True)
