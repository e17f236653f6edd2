"""Every program of the sampler compiled before its calls: all that they need, and nothing that they cannot."""

import jax
import numpy as np
import pytest
from flax import nnx

from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.precompiled import compile_all
from ibtpo.sampling import Codec, Question, SamplerOptions, SamplingParams, TreeOptions, TreeSampler
from ibtpo.sampling.device import Prompt, prefill_batches, prefill_sizes
from tests.compilations import compilations

MODEL = ModelConfig(
    "qwen3",
    vocab_size=16,
    embed_dim=16,
    mlp_dim=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    tie_embeddings=True,
    qk_norm=True,
)
TREE = TreeOptions(initial=2, rounds=3, top_k=1, branch=1, min_new_tokens=2, max_new_tokens=10)


@pytest.fixture(scope="module")
def policy():
    return nnx.split(Decoder(MODEL, rngs=nnx.Rngs(0)), nnx.Param)


def make(policy, tree=TREE, dtype=np.float32, **changes):
    options = dict(slots=4, pages=0, page_size=4, chunk=4, max_prompt_tokens=40, questions_in_flight=4) | changes
    return TreeSampler(policy[0], MODEL, SamplerOptions(**options), tree, Codec(16, stop_ids=[0]), dtype=dtype)


def grade(question, tokens):
    return float(int(np.sum(tokens)) % 3 == 0)


def spy(sampler, used):
    """Adds the widths of decoding and the sizes of prefill that the sampler's calls use to a set."""
    for name in ("decode_chunk", "prefill"):
        function = getattr(sampler.programs, name)

        def key(*args, of=function.key, name=name, **named):
            used.add((name, of(*args, **named)))
            return of(*args, **named)

        function.key = key


def names(sampler, policy, prompt_tokens=()):
    """What is compiled ahead, by the functions' names, with the sizes that tell their programs apart."""
    of = {id(function): name for name, function in vars(sampler.programs).items()}
    programs = sampler.ahead(policy[1], prompt_tokens)
    return [(of[id(p.function)], p.function.key(*p.args, **p.named)) for p in programs]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_call_with_a_tail_and_a_preemption_compiles_nothing(policy, dtype):
    """bfloat16: the parameters are cast for the sampler by a program of its own."""
    dtype, used = jax.numpy.dtype(dtype), set()
    sampler = make(policy, pages=make(policy).least_pages, dtype=dtype)
    rng = np.random.default_rng(1)
    questions = [Question(i, rng.integers(2, 16, n).tolist()) for i, n in enumerate((3, 40, 7, 33, 5, 6, 4, 2, 9))]
    key, lengths = jax.random.key(7), {len(question.tokens) for question in questions}
    jax.random.key_data(key)  # no program of the sampler's
    with compilations() as found:
        compile_all({"sampler": sampler.ahead(policy[1], lengths)})
    assert found.count("decode_chunk") == len(sampler.programs.widths) == 3 and found.count("prefill") == 4
    spy(sampler, used)
    with compilations() as found:
        _, stats = sampler(policy[1], questions, grade, key=key, sampling=SamplingParams(temperature=0.7))
    assert found == []
    assert stats.preemptions > 0 and stats.recomputed_tokens > 0 and stats.pages_left == 0
    assert {key for name, key in used if name == "decode_chunk"} == set(sampler.programs.widths)
    assert {key for name, key in used if name == "prefill"} <= {(1, 32), (8, 32), (1, 64), (8, 64)}


@pytest.mark.slow
def test_calls_after_the_first_are_of_the_same_programs(policy):
    """Other parameters, other sampling, fewer questions."""
    sampler, key = make(policy), jax.random.key(3)
    jax.random.key_data(key)
    compile_all({"sampler": sampler.ahead(policy[1])})
    other = jax.tree.map(lambda x: x * 1.5, policy[1])
    for params, number, temperature in ((policy[1], 6, 1.0), (other, 1, 0.5)):
        questions = [Question(i, [2 + i] * (1 + 6 * i)) for i in range(number)]
        with compilations() as found:
            sampler(params, questions, grade, key=key, sampling=SamplingParams(temperature=temperature, top_k=3))
        assert found == []


def test_what_no_call_can_need_is_not_compiled(policy):
    everything = {"decode_chunk", "prefill", "initial_state", "start", "release", "pages_in_use", "_unstack"}
    assert {name for name, _ in names(make(policy), policy)} == everything
    # A pool for the most that the questions in flight can need cannot run out; a smaller one can, of two or more.
    least = make(policy).least_pages
    assert {name for name, _ in names(make(policy, pages=4 * least - 1), policy)} == everything | {"recompute"}
    assert "recompute" not in dict(names(make(policy, pages=4 * least), policy))
    assert "recompute" not in dict(names(make(policy, pages=least, questions_in_flight=1), policy))
    # One question of four responses never fills more than four of sixteen slots.
    few = names(make(policy, slots=16, questions=1), policy)
    assert [key for name, key in few if name == "decode_chunk"] == [4, 2]
    assert {key for name, key in few if name == "prefill"} == {(1, 32), (1, 64)}
    # Prompts whose lengths are known.
    short = names(make(policy), policy, {3, 30})
    assert [key for name, key in short if name == "prefill"] == [(8, 32), (1, 32)]


@pytest.mark.parametrize("shards", [1, 2, 8, 16])
def test_the_sizes_of_prefill_are_those_of_its_batches(shards):
    rng = np.random.default_rng(shards)
    lengths, found = [3, 40, 200], set()
    sizes = prefill_sizes(lengths, shards, at_once=20)
    for _ in range(200):
        prompts = [[Prompt(0, [1] * rng.choice(lengths)) for _ in range(rng.integers(0, 12))] for _ in range(shards)]
        found |= {(width, per_shard) for per_shard, width, _ in prefill_batches(prompts)}
        prompts = [of_shard[:1] for of_shard in prompts]
        alone = {(width, per_shard) for per_shard, width, _ in prefill_batches(prompts)}
        assert alone <= set(prefill_sizes(lengths, shards, at_once=1))
        found |= alone
    assert found == set(sizes) and len(sizes) == len(set(sizes)) == (6 if shards < 8 else 3)
