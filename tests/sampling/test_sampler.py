"""The sampler against a teacher-forced forward pass, and against itself under other slot counts."""

import dataclasses
import functools
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from ibtpo.errors import UserError
from ibtpo.ib_score import ScoreOptions
from ibtpo.models.attention import tree_attend
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.sampling import (
    Codec,
    Question,
    SamplerOptions,
    SamplingParams,
    TreeOptions,
    TreeSampler,
    capacity,
    chunks,
    programs,
)
from ibtpo.sampling.strategies import STRATEGIES

VOCAB, STOP, SEPARATOR = 24, 0, 1
MODEL = ModelConfig(
    family="qwen3",
    vocab_size=VOCAB,
    embed_dim=32,
    mlp_dim=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-6,
    tie_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
    max_positions=256,
)
TREE = TreeOptions(
    strategy="ib",
    initial=3,
    rounds=4,
    top_k=1,
    branch=1,
    min_new_tokens=2,
    max_new_tokens=24,
    segment_tokens=5,
)
# Nearly all of the time goes into compiling: a program for each pool, chunk, prompt length and width of decoding. Three
# slots have two widths, and tests that have no reason for other sizes share these.
OPTIONS = SamplerOptions(slots=3, pages=0, page_size=4, chunk=3, max_prompt_tokens=20, questions_in_flight=3)


def step_ends(tokens):
    """Every separator token ends a step."""
    ends = [i + 1 for i, token in enumerate(tokens) if token == SEPARATOR]
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]


CODEC = Codec(VOCAB, stop_ids=[STOP], cut_steps=step_ends)
ENDLESS = Codec(VOCAB, cut_steps=step_ends)


def grade(question, tokens):
    """A reward that depends on the response, so that guided strategies have something to follow."""
    return float(int(np.sum(tokens)) % 3 == 0)


@pytest.fixture(scope="module")
def policy():
    decoder = Decoder(MODEL, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(decoder, nnx.Param)
    # Random weights of this size are nearly uniform over tokens: sharpen the logits, and nothing that attention would
    # amplify rounding with.
    params.embedding[...] *= 10
    return graphdef, params


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(0)
    return [Question(id=100 + i, tokens=rng.integers(2, VOCAB, rng.integers(1, 20)).tolist()) for i in range(7)]


def sampler(policy, options=OPTIONS, tree=TREE):
    return TreeSampler(policy[0], MODEL, options, tree, CODEC)


def run(policy, questions, options=OPTIONS, tree=TREE, sampling=None, grade=grade):
    return sampler(policy, options, tree)(
        policy[1], questions, grade, key=jax.random.key(5), sampling=sampling or SamplingParams()
    )


@pytest.fixture(scope="module")
def sampled(policy, questions):
    return run(policy, questions)


def same_responses(a, b):
    for left, right in zip(a, b, strict=True):
        assert [r.tokens.tolist() for r in left.responses] == [r.tokens.tolist() for r in right.responses]
        assert [(r.parent, r.fork, r.round, r.finish, r.reward) for r in left.responses] == [
            (r.parent, r.fork, r.round, r.finish, r.reward) for r in right.responses
        ]


@functools.partial(jax.jit, static_argnums=0)
def log_softmax_of(graphdef, params, sequence, length, temperature):
    """[T, V] log-probabilities after each token of one padded sequence, by a full forward pass."""
    index = jnp.arange(sequence.shape[0])
    ends = jnp.where(index < length, length, index + 1)[None]
    decoder = nnx.merge(graphdef, params)
    hidden, _ = decoder(sequence[None], index[None], tree_attend(ends))
    return jax.nn.log_softmax(decoder.logits(hidden)[0] / temperature)


def teacher_forced(policy, prompt, tokens, temperature):
    """log softmax(logits / temperature) of `tokens` after `prompt`."""
    sequence = np.zeros(OPTIONS.max_prompt_tokens + TREE.max_new_tokens, np.int32)
    length = len(prompt) + len(tokens)
    sequence[:length] = [*prompt, *tokens]
    log_probs = np.asarray(log_softmax_of(*policy, sequence, length, temperature))
    return log_probs[np.arange(len(prompt) - 1, length - 1), tokens]


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_spends_its_budget_and_reports_the_policys_log_probs(policy, questions, strategy):
    tree = dataclasses.replace(TREE, strategy=strategy)
    sampling = SamplingParams(temperature=0.8, top_k=12, top_p=0.95)
    trees, stats = run(policy, questions[:3], tree=tree, sampling=sampling)
    assert stats.pages_left == 0
    for result in trees:
        assert len(result.responses) == 6
        for response in result.responses:
            expected = teacher_forced(policy, result.question.tokens, response.tokens, 0.8)
            np.testing.assert_allclose(response.log_probs, expected, atol=1e-5)
            assert (response.finish == "stop") == (response.tokens[-1] == STOP)
            assert response.finish == "stop" or len(response.tokens) == tree.max_new_tokens
            assert STOP not in response.tokens[:-1]
            if response.parent >= 0:
                parent = result.responses[response.parent]
                np.testing.assert_array_equal(response.tokens[: response.fork], parent.tokens[: response.fork])
    unique = sum(int((t.tree.step > 0).sum()) for t in trees)
    assert stats.generated_tokens == unique
    assert stats.response_tokens == sum(len(r.tokens) for t in trees for r in t.responses)


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_stop_strings_end_a_response_over_several_tokens(policy, questions, strategy):
    tree = dataclasses.replace(TREE, strategy=strategy)
    pieces = [b""] + [b"abc"[i % 3 :][:1] * (1 + i % 2) for i in range(1, VOCAB)]
    strings = ["abc", "cca"]
    codec = Codec(VOCAB, stop_ids=[STOP], stop_strings=strings, token_bytes=pieces, cut_steps=step_ends)
    engine = TreeSampler(policy[0], MODEL, OPTIONS, tree, codec)
    trees, _ = engine(policy[1], questions, grade, key=jax.random.key(5), sampling=SamplingParams())
    endings = []
    for response in (r for t in trees for r in t.responses):
        text = b"".join(pieces[token] for token in response.tokens)
        before = b"".join(pieces[token] for token in response.tokens[:-1])
        endings.append(any(string.encode() in text for string in strings))
        assert not any(string.encode() in before for string in strings)
        assert (response.finish == "stop") == (endings[-1] or response.tokens[-1] == STOP)
    assert sum(endings) > len(endings) // 4
    if strategy == "independent":  # the same draws as without, cut short
        for cut, whole in zip(trees, run(policy, questions, tree=tree)[0]):
            for a, b in zip(cut.responses, whole.responses):
                np.testing.assert_array_equal(a.tokens, b.tokens[: len(a.tokens)])


def test_ib_forks_share_prefixes(sampled):
    trees, stats = sampled
    assert any(r.fork > 0 for t in trees for r in t.responses)
    assert stats.generated_tokens < stats.response_tokens
    assert [t.question.id for t in trees] == list(range(100, 107))


@pytest.mark.parametrize(
    "change",
    [
        dict(slots=1, page_size=1),
        dict(slots=24, questions_in_flight=7, page_size=7, chunk=11),  # all at once, in slots to spare
    ],
)
def test_responses_do_not_depend_on_slots_pages_or_chunks(policy, questions, sampled, change):
    trees, stats = run(policy, questions, dataclasses.replace(OPTIONS, **change))
    same_responses(trees, sampled[0])
    assert stats.generated_tokens == sampled[1].generated_tokens


def test_responses_do_not_depend_on_the_other_questions(policy, questions, sampled):
    trees, _ = run(policy, questions[4:5])
    same_responses(trees, sampled[0][4:5])


def test_responses_do_not_depend_on_when_grades_arrive(policy, questions, sampled):
    with ThreadPoolExecutor(4) as pool:

        def slowly(question, tokens):
            def work():
                time.sleep(0.001 * (int(np.sum(tokens)) % 7))
                return grade(question, tokens)

            return pool.submit(work)

        trees, _ = run(policy, questions, grade=slowly)
    same_responses(trees, sampled[0])


def test_a_deterministic_schedule_gives_the_same_bits_whenever_grades_arrive(policy, questions):
    """Tokens never depend on the time of grading; log-probabilities do in their last bits, where batches differ."""
    options = dataclasses.replace(OPTIONS, deterministic=True)
    with ThreadPoolExecutor(4) as pool:

        def after(milliseconds):
            def slowly(question, tokens):
                seconds = 0.001 * milliseconds * (int(np.sum(tokens)) % 7)
                return pool.submit(lambda: time.sleep(seconds) or grade(question, tokens))

            return [r for tree in run(policy, questions, options, grade=slowly)[0] for r in tree.responses]

        once, again = after(0.1), after(3)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.log_probs, other.log_probs)


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_running_out_of_pages_preempts_and_changes_no_response(policy, strategy):
    tree = dataclasses.replace(TREE, strategy=strategy)
    rng = np.random.default_rng(1)
    many = [Question(id=i, tokens=rng.integers(2, VOCAB, rng.integers(1, 20)).tolist()) for i in range(16)]
    plenty, stats = run(policy, many, tree=tree)
    assert stats.preemptions == stats.recomputed_tokens == 0
    least = sampler(policy, tree=tree).least_pages
    preemptions = 0
    options = dataclasses.replace(OPTIONS, questions_in_flight=8)
    for pages in (least, 2 * least - 5):
        trees, stats = run(policy, many, dataclasses.replace(options, pages=pages), tree)
        same_responses(trees, plenty)
        for a, b in zip(trees, plenty):
            for left, right in zip(a.responses, b.responses):
                np.testing.assert_allclose(left.log_probs, right.log_probs, atol=2e-5)
        assert stats.pages_left == 0
        assert stats.peak_pages <= pages
        assert (stats.recomputed_tokens > 0) == (stats.preemptions > 0)
        preemptions += stats.preemptions
    assert preemptions > 0
    with pytest.raises(ValueError, match=f"at least {least}"):
        sampler(policy, dataclasses.replace(options, pages=least - 1), tree)


@pytest.mark.parametrize("length", [15, 16, 17])
def test_the_fewest_pages_do_for_a_prompt_of_any_length(policy, length):
    """One of 16 needs more than one of 17: each response copies its last page."""
    tree = dataclasses.replace(TREE, strategy="independent", initial=6, rounds=1)
    options = dataclasses.replace(OPTIONS, max_prompt_tokens=17, questions_in_flight=1)
    engine = TreeSampler(policy[0], MODEL, options, tree, ENDLESS)
    assert engine.total_pages == engine.least_pages == 4 + 6 * (10 - 3)
    _, stats = engine(policy[1], [Question(1, [3] * length)], grade, key=jax.random.key(0), sampling=SamplingParams())
    assert stats.generated_tokens == 6 * TREE.max_new_tokens and stats.preemptions == 0
    assert (stats.peak_pages == engine.least_pages) == (length <= 16)


def test_a_question_that_can_never_go_on_ends_the_call(policy, monkeypatch):
    """Were the bound on its pages wrong."""
    tree = dataclasses.replace(TREE, strategy="independent", initial=6, rounds=1)
    monkeypatch.setattr(capacity, "worst_case_pages", lambda options, tree: 20)
    options = dataclasses.replace(OPTIONS, questions_in_flight=1)
    engine = TreeSampler(policy[0], MODEL, options, tree, ENDLESS)
    with pytest.raises(RuntimeError, match="no page is free for the only question in flight, although 20"):
        engine(policy[1], [Question(1, [3] * 20)], grade, key=jax.random.key(0), sampling=SamplingParams())


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_names_its_response(policy, questions, value, later):
    with ThreadPoolExecutor(1) as pool:

        def bad(question, tokens):
            return pool.submit(lambda: value) if later else value

        with pytest.raises(ValueError, match=rf"response \d of question 10\d was graded {value}: a reward must be"):
            run(policy, questions[:2], grade=bad)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_a_reward_that_is_no_probability_names_its_response(policy, questions, value, later):
    with ThreadPoolExecutor(1) as pool:

        def bad(question, tokens):
            return pool.submit(lambda: value) if later else value

        with pytest.raises(UserError, match=rf"response \d of question 10\d was graded {value}: .* in \[0, 1\]"):
            run(policy, questions[:2], grade=bad)


def test_a_codec_of_another_vocabulary_is_refused(policy):
    with pytest.raises(ValueError, match="a codec of 23 tokens for a model of 24"):
        TreeSampler(policy[0], MODEL, OPTIONS, TREE, Codec(VOCAB - 1))


@pytest.mark.parametrize("strategy", ["ib", "independent"])
def test_parameters_that_are_not_finite_are_named(policy, questions, strategy):
    graphdef, params = policy
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.raises(ValueError, match="has a log-probability of NaN: the parameters are not finite"):
        run((graphdef, broken), questions[:2], tree=dataclasses.replace(TREE, strategy=strategy))


def test_pages_at_the_peak_hold_the_tokens_alive(policy, questions):
    tree = dataclasses.replace(TREE, strategy="independent")
    trees, stats = run(policy, questions[:1], dataclasses.replace(OPTIONS, slots=1, page_size=1), tree)
    responses = trees[0].responses
    # All responses stay until the last has ended; each one's last token is pending and never cached.
    assert stats.tokens_at_peak == len(questions[0].tokens) + sum(len(r.tokens) - 1 for r in responses)
    # A page is a token here. Each response feeds the token that it starts after once more, into a page of its own.
    assert stats.peak_pages == stats.tokens_at_peak + len(responses)


def test_the_device_has_its_next_chunk_before_the_host_reads_the_last(policy, questions, monkeypatch):
    """Between two dispatches the host reads one chunk, not the one it has just dispatched."""
    events = []
    dispatch, following = chunks.Chunks.dispatch, chunks.Chunks.next

    def record_dispatch(self, *args, **options):
        dispatch(self, *args, **options)
        events.append(self.dispatched)

    def record_next(self):
        events.append(-(self.dispatched - len(self) + 1))
        return following(self)

    monkeypatch.setattr(chunks.Chunks, "dispatch", record_dispatch)
    monkeypatch.setattr(chunks.Chunks, "next", record_next)
    run(policy, questions)
    assert events
    for number in range(1, max(events)):
        if number + 1 in events and -number in events:
            assert events.index(number + 1) < events.index(-number)
    assert sorted(e for e in events if e > 0) == sorted(-e for e in events if e < 0)


def test_prompt_too_long_names_the_question(policy):
    with pytest.raises(ValueError, match="question 9 has a prompt of 21 tokens"):
        run(policy, [Question(9, [2] * 21)])


@pytest.mark.parametrize("id", [-1, 2**31])
def test_an_id_out_of_range_is_named(policy, id):
    with pytest.raises(ValueError, match=f"question id {id} is out of range"):
        run(policy, [Question(id, [2])])


def test_nothing_recompiles_when_temperature_prompts_or_tree_settings_change(policy, questions):
    compiled = sampler(policy).programs.compiled
    functions = [compiled.prefill, programs._start, compiled.decode_chunk, programs._release, compiled.recompute]

    def sample(temperature, subset, tree=TREE):
        sampling = SamplingParams(temperature=temperature, top_k=3, top_p=0.9)
        return sampler(policy, tree=tree)(
            policy[1], subset, grade, key=jax.random.key(int(temperature * 10)), sampling=sampling
        )

    before = [f._cache_size() for f in functions]
    sample(1.0, questions)
    warm = [f._cache_size() for f in functions]
    widths = len(sampler(policy).programs.widths)
    assert all(b - a <= most for a, b, most in zip(before, warm, (1, 1, widths, 1, 1)))
    sample(0.5, questions[3:])
    sample(1.3, [Question(9, [3]), Question(10, [4] * 20)])
    # As many responses in another shape of tree, other strategies, and other settings of the choice.
    sample(1.0, questions, dataclasses.replace(TREE, initial=2, rounds=3, top_k=2))
    for strategy in STRATEGIES:
        changes = dict(strategy=strategy, score=ScoreOptions(beta=1.0), min_new_tokens=5)
        sample(0.9, questions, dataclasses.replace(TREE, **changes))
    again = [f._cache_size() for f in functions]
    assert again[:2] + again[3:] == warm[:2] + warm[3:]
    assert again[2] - before[2] <= widths
