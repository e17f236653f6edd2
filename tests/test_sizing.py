"""The sampler's sizes that follow from the memory there is."""

import pytest

from ibtpo import memory, sizing
from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.presets import PRESETS
from ibtpo.sampling import TreeOptions
from ibtpo.sampling.capacity import Capacity
from tests.config_cases import ROOT, parse

TINY = hf.read_config(ROOT / "assets" / "qwen3-tiny")
GIB = 2**30


def sized(config, model, limit, **options):
    tree = TreeOptions.from_config(config)
    found = sizing.size_sampler(config, model, tree, limit=limit, **options)
    return found, Capacity.of(found, tree, 1)


def test_the_pool_is_what_the_questions_can_need_or_what_there_is_room_for():
    config = parse("--config.sampling.slots=64", "--config.sampling.questions_in_flight=0")
    options, enough = sized(config, TINY, 64 * GIB)
    assert options.pages == 0 and enough.num_pages == enough.num_blocks * enough.least
    few, capacity = sized(config, TINY, 0.05 * GIB)
    assert capacity.least <= capacity.num_pages == few.pages < enough.num_pages
    # All of the share is used, and no more than it.
    beside = sizing._beside(config, TINY, enough, False)
    left = 0.9 * 0.05 * GIB - beside - few.pages * memory.page_bytes(config, TINY)
    assert 0 <= left < memory.page_bytes(config, TINY)
    less, _ = sized(parse("--config.sampling.slots=64", "--config.sampling.memory_share=0.8"), TINY, 0.05 * GIB)
    trained, _ = sized(config, TINY, 0.05 * GIB, training=True)
    assert less.pages < few.pages > trained.pages
    assert sized(parse("--config.sampling.pages=5000"), TINY, 1)[0].pages == 5000


def test_no_more_questions_than_a_call_has():
    config = parse("--config.sampling.slots=64", "--config.sampling.questions_in_flight=0")
    _, any_number = sized(config, TINY, 64 * GIB)
    _, two = sized(config, TINY, 64 * GIB, questions=2)
    assert any_number.num_blocks == 80  # two responses for each slot, of which a question of (4,9,1,1) has 1.6
    assert two.num_blocks == 2 and two.num_pages == 2 * two.least
    flags = ("--config.sampling.slots=64", "--config.sampling.questions_in_flight=0", "--config.method=grpo")
    _, flat = sized(parse(*flags), TINY, 64 * GIB)
    assert flat.num_blocks == 32 and flat.group_size == 8  # half of a group that begins at once is at work


def test_too_little_for_one_question_is_said_in_one_line():
    lengths = ("--config.data.max_prompt_tokens=1024", "--config.sampling.max_new_tokens=2048")
    config = parse(*lengths, "--config.train.row_tokens=0")
    with pytest.raises(UserError, match=r"^sampling\.pages=0: .* room for \d+: lower sampling\.max_new") as caught:
        sized(config, PRESETS["Qwen/Qwen3-8B"], 32 * GIB)
    assert "\n" not in str(caught.value)


def test_of_a_cpu_half_the_host_is_the_limit(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 8 * GIB)
    assert sizing.device_bytes() == 4 * GIB
    monkeypatch.setattr(memory, "host_bytes", lambda: None)
    assert sizing.device_bytes() is None
