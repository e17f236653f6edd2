"""The price of a whole step: of its programs' parts, and of the schedule."""

import dataclasses
import json

import numpy as np
import pytest

from ibtpo.compiler import step as step_lib
from ibtpo.compiler.chips import Chip
from ibtpo.compiler.show import show_half, show_steps
from ibtpo.compiler.step import CompiledPrice, DecodePrice, can_price, half_the_pages, process_of, step_of
from ibtpo.errors import UserError
from ibtpo.sampling import Question, SampledTree, SamplerOptions, TreeOptions
from ibtpo.sampling.process import Process
from ibtpo.tree import Response

CHIP = Chip("test", flops=1e3, hbm_bytes=1e9, hbm_bandwidth=10.0, ici_bandwidth=1.0)


def test_a_decode_step_is_as_long_as_its_longest_part():
    price = DecodePrice(CHIP, 100, 1, 2, flops_per_slot=0, flops_per_token=0, sent_per_slot=0)
    assert price.seconds(4, 13) == (100 + 4 + 26) / 10
    assert dataclasses.replace(price, flops_per_slot=3000, flops_per_token=1000).seconds(4, 13) == 12 + 13
    assert dataclasses.replace(price, sent_per_slot=5).seconds(4, 13) == 20


def test_a_step_is_priced_by_its_programs(check, tmp_path):
    checked = check(tree__min_new_tokens=1)
    assert not can_price(checked)
    for program in checked.lowered().values():
        checked.compile(program)
    assert can_price(checked)
    process = dataclasses.replace(process_of(checked.config), unit_tokens=1, step_units=2, steps_median=3)
    own, eight, twelve = steps = step_of(checked, process)
    assert (own.responses, eight.responses, twelve.responses) == (4 * 12, 4 * 8, 4 * 12)
    assert own.unique_tokens < twelve.unique_tokens
    assert own.in_flight == 2 and own.pages == twelve.pages == checked.sampler.total_pages
    for step in steps:
        assert 0 < step.useful <= 1 and step.sampling_s > 0 and step.update_s > 0 and step.preemptions >= 0
    price = CompiledPrice(checked)
    assert 0 < price.step(2, 100) < price.step(4, 100) and 0 < price.prefill(1, 16) <= price.prefill(1, 32)
    assert price.serve == checked.reports["serve"].roofline
    tight = half_the_pages(checked, process, own)
    least = checked.sampler.capacity.least
    assert least <= tight.pages == max(own.peak_pages // 2, least) and own.peak_pages <= own.pages
    assert (tight.responses, tight.unique_tokens) == (own.responses, own.unique_tokens)
    assert f"{tight.pages} in all" in show_half(tight, own)
    table = show_steps(steps)
    assert "12 independent" in table and f"{own.responses_per_s:.1f}" in table

    metrics = tmp_path / "metrics.jsonl"
    name = "train/response_length_initial"
    metrics.write_text("".join(json.dumps({"step": step, name: 100.0 * step}) + "\n" for step in (1, 3)))
    fitted = process_of(checked.config, str(tmp_path))
    lengths = [len(fitted.respond(q, 0, [fitted.begin(q)]).kinds) * fitted.unit_tokens for q in range(400)]
    # The answer and the end are units of their own.
    assert sum(lengths) / 400 == pytest.approx(200 + 2 * fitted.unit_tokens, rel=0.1)
    metrics.write_text(json.dumps({"step": 1, "eval/k": 2}) + "\n")
    with pytest.raises(UserError, match="no response lengths"):
        process_of(checked.config, str(tmp_path))


def test_a_program_that_is_missing_is_named(check):
    with pytest.raises(step_lib.ConfigError, match="the program decode was not compiled"):
        CompiledPrice(check())


@pytest.mark.parametrize(("lag", "steps"), [(0, 9 + 4 + 7), (1, 9 + 7), (2, 9 + 7)])
def test_the_longest_question_waits_for_its_rounds(lag, steps):
    """Rounds of 9, 4 and 7 new tokens: the last is chosen without the one before it where there is a lag."""

    def response(index, round, length, fork):
        tokens = np.zeros(length, np.int32)
        return Response(index, -1 if round == 0 else 0, fork, round, tokens, tokens.astype(np.float32), "stop", 0.0)

    responses = [response(0, 0, 9, 0), response(1, 0, 5, 0), response(2, 1, 7, 3), response(3, 2, 12, 5)]
    sampled = SampledTree(Question(0, [1]), None, responses)
    assert step_lib.chain(sampled, TreeOptions(lag=lag)) == steps


def test_alone_a_question_is_as_long_as_its_chain():
    """On the scheduler itself, with a slot for every response, and a price that is the same for every step."""

    class Price:
        def step(self, slots, live_tokens):
            return 1.0

        def prefill(self, *_):
            return 0.0

        start = recompute = release = prefill

    process = Process(unit_tokens=1, steps_median=3, step_units=4)
    options = SamplerOptions(slots=12, page_size=4, chunk=1, max_prompt_tokens=4)
    for lag in (0, 1, 3):
        tree = TreeOptions(lag=lag, max_new_tokens=64)
        [sampled], _, device = step_lib.sample(Price(), process, options, tree, 1, 1)
        # Looking only now and then costs the steps between an end and the next start: two chunks of a step a round.
        assert 0 <= device.clock.seconds - step_lib.chain(sampled, tree) <= 2 * tree.rounds
