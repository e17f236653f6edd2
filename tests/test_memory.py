"""The least memory of a run: what cannot fit is refused with its numbers, and what runs is not."""

import re

import jax
import jax.numpy as jnp
import pytest

from ibtpo import memory
from ibtpo.errors import RunFailure, UserError
from ibtpo.models import hf
from ibtpo.models.lora import LoraOptions
from ibtpo.models.presets import PRESETS
from ibtpo.run_plan import RunPlan, initial_state, run_optimizer
from tests.config_cases import ROOT, parse

TINY = hf.read_config(ROOT / "assets" / "qwen3-tiny")
GIB = 2**30


def test_a_run_that_fits_is_not_refused():
    memory.check_training(parse(), TINY)
    memory.check_evaluation(parse(), TINY)


@pytest.mark.parametrize("number", [10**7, 10**8, 2**31 - 1])
@pytest.mark.parametrize(
    "key, of_a_flat_group",
    [
        ("sampling.slots", False),
        ("sampling.chunk", False),
        ("sampling.pages", False),
        ("tree.initial", True),
        ("tree.rounds", False),
        ("tree.extra_rounds", False),
        ("train.questions_per_step", False),
        ("train.rows_per_step", False),
        ("train.row_tokens", False),
        ("eval.samples", False),
    ],
)
def test_a_number_that_no_machine_holds_is_named(monkeypatch, key, of_a_flat_group, number):
    monkeypatch.setattr(memory, "host_bytes", lambda: 1 * GIB)
    method = ["--config.method=grpo"] if of_a_flat_group else []
    config = parse(*method, f"--config.{key}={number}")
    message = (
        rf"^{re.escape(key)}={number}: the run needs at least [\d,]+\.\d GiB of memory, [\d,]+\.\d GiB of it for "
        r"[a-z' ]+, and this machine has 1\.0 GiB: lower it$"
    )
    with pytest.raises(UserError, match=message):
        memory.check_training(config, TINY)


def test_a_model_that_is_too_large_is_named(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 64 * GIB)
    with pytest.raises(UserError, match=r"^model\.path: .* for weights, optimizer state .* take a smaller model"):
        memory.check_training(parse(), PRESETS["Qwen/Qwen3-8B"])
    with pytest.raises(UserError, match=r"eval\.samples=1000000: .* for pages of keys and values"):
        memory.check_evaluation(parse("--config.eval.samples=1000000"), PRESETS["Qwen/Qwen3-8B"])


@pytest.mark.parametrize("first_moment, param_dtype", [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_training_eight_billion_parameters_on_one_gpu_is_refused_before_it_starts(
    monkeypatch, first_moment, param_dtype
):
    """The arithmetic of docs/results.md: 14 and, with gradients that add up in float32, 10 bytes of each parameter."""
    monkeypatch.setattr(memory.parallel, "platform", lambda: "gpu")
    monkeypatch.setattr(memory, "device_bytes", lambda: 80e9)
    monkeypatch.setattr(memory, "host_bytes", lambda: 512 * GIB)
    model = PRESETS["Qwen/Qwen3-8B"]
    config = parse(
        f"--config.optimizer.first_moment_dtype={first_moment}",
        f"--config.model.param_dtype={param_dtype}",
        "--config.model.dtype=bfloat16",
        "--config.model.remat=full",
        "--config.loss.kl=0.0",
    )
    with pytest.raises(UserError, match=r"^model\.path: the run needs at least .* and each .* has 74\.5 GiB: take a s"):
        memory.check_training(config, model)
    monkeypatch.setattr(memory, "device_bytes", lambda: 141e9)
    memory.check_training(config, model)


def test_adapters_of_eight_billion_parameters_fit_one_gpu_of_80_gb(monkeypatch):
    """16.4 GB of the base, as much again while responses are sampled, and 0.5 of adapters and their moments."""
    monkeypatch.setattr(memory.parallel, "platform", lambda: "gpu")
    monkeypatch.setattr(memory, "host_bytes", lambda: 512 * GIB)
    config, model = parse(path=ROOT / "configs" / "qwen3_8b_lora.py"), PRESETS["Qwen/Qwen3-8B-Base"]
    for limit, fits in ((80e9, True), (48e9, True), (24e9, False), (16e9, False)):
        monkeypatch.setattr(memory, "device_bytes", lambda limit=limit: limit)
        if fits:
            memory.check_training(config, model)
            continue
        with pytest.raises(UserError, match=r"^model\.path: the run needs .* take a smaller model, or split it"):
            memory.check_training(config, model)
    monkeypatch.setattr(memory, "device_bytes", lambda: 80e9)
    whole = parse("--config.model.lora_rank=0", path=ROOT / "configs" / "qwen3_8b_lora.py")
    with pytest.raises(UserError, match=r"take a smaller model, or train adapters \(model\.lora_rank\), or split it"):
        memory.check_training(whole, model)
    # A rank as large as that is the fault of the rank.
    large = parse("--config.model.lora_rank=4096", path=ROOT / "configs" / "qwen3_8b_lora.py")
    with pytest.raises(UserError, match=r"^model\.lora_rank=4096: .* for adapters and optimizer state.*: lower it$"):
        memory.check_training(large, model)


def test_the_state_of_adapters_is_counted_as_it_is_made():
    config = parse("--config.model.lora_rank=8", "--config.model.dtype=bfloat16")
    plan = RunPlan.from_config(config)
    params = hf.abstract(TINY, param_dtype=jnp.bfloat16)[1]
    transform, _ = run_optimizer(config, plan)
    state = jax.eval_shape(lambda p: initial_state(config, plan, transform, p, jax.random.key(0)), params)
    made = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
    assert memory.state_bytes(config, TINY, training=True) == made
    said = memory.describe_adapters(config, TINY)
    assert said.startswith(f"training adapters of rank 8, {LoraOptions(8, 1.0).num_params(TINY):,} numbers, beside ")
    assert "frozen in bfloat16" in said and memory.describe_adapters(parse(), TINY) == ""


def test_the_estimate_is_a_lower_bound():
    """Of the arrays that the sampler really makes."""
    from ibtpo.policy import load_policy, make_sampler

    config = parse("--config.sampling.slots=8", "--config.sampling.pages=2048")
    sampler = make_sampler(load_policy(config), config, questions=config.train.questions_per_step)
    made = jax.eval_shape(sampler.programs._empty_state)
    parts = memory._sampler(config, TINY, sampler.tree, config.train.questions_per_step)
    counted = {part.name: part.num_bytes for part in parts}
    pool = made.pool
    sizes = {name: x.size * x.dtype.itemsize for name, x in vars(pool).items()}
    assert counted["pages of keys and values"] == sizes["keys"] + sizes["values"]
    assert counted["the page table"] == sizes["page_table"]


def test_unknown_limits_refuse_nothing(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: None)
    memory.check_training(parse("--config.sampling.slots=100000000"), TINY)


def test_this_machine_has_memory():
    assert memory.host_bytes() > 2**28


def test_a_full_device_is_one_line_with_the_knobs():
    """The complaint is XLA's own."""
    config = parse()
    with pytest.raises(RunFailure) as failure, memory.enough(config, "sampling", memory.SAMPLING):
        jnp.zeros(2**46, jnp.int8).block_until_ready()
    line = str(failure.value)
    assert line.startswith("sampling: the memory of the ") and "\n" not in line
    assert "lower one of sampling.questions_in_flight=" in line and "sampling.slots=" in line
    assert "allocat" in line and isinstance(failure.value.__cause__, jax.errors.JaxRuntimeError)
    with pytest.raises(RunFailure, match=r"full \(Out of HBM, while a program of the update was compiled\): "):
        with memory.enough(config, "compiling", memory.UPDATE):
            error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of HBM")
            error.add_note("while a program of the update was compiled")
            raise error
    with pytest.raises(jax.errors.JaxRuntimeError), memory.enough(config, "sampling", memory.SAMPLING):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
