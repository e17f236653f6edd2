"""Conclusions from the programs of a check: ratios to the unavoidable cost, room that is left, advice, goals."""

import math
from typing import Any

from ibtpo.compiler.check import Check, Report, chip_bytes
from ibtpo.compiler.chips import roofline
from ibtpo.compiler.model import own_flops

UPDATE_GOAL, DECODE_GOAL = 1.35, 1.2


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f}"


def update_flops(check: Check) -> dict[str, float] | None:
    """Compiled FLOPs of the update over the model's own, both per chip and per token: padding counts in neither."""
    report = check.reports.get("update")
    if report is None or report.exceeded is not None:
        return None
    work = check.work
    share = work.unique_tokens / work.row_tokens
    kernels = sum(k.flops for k in report.kernels.values())
    compiled = (report.flops - kernels) * share + kernels
    own = work.rows * own_flops(check.model, work.unique_tokens, work.pairs, check.plan.adapters) / check.mesh.size
    return {
        "compiled": compiled,
        "own": own,
        "ratio": compiled / own,
        "in_kernels": kernels,
        "padded": report.flops,
    }


def decode_step(check: Check) -> dict[str, float] | None:
    """Bytes of one decode step over those it cannot avoid reading: weights and the live part of the cache."""
    report = check.reports.get("decode")
    if report is None or report.program is None:
        return None
    loop = next(loop for loop in report.program.loops if loop.given)
    kernels = {n: check.work_of_kernel(report.on_rows, n, k) for n, k in loop.body.kernels.items()}
    measured = loop.body.bytes + sum(k.bytes for k in kernels.values())
    flops = loop.body.flops + sum(k.flops for k in kernels.values())
    weights = check.serving_bytes()
    if not check.model.tie_embeddings:
        # Of the table that is only looked up a step reads a row per slot.
        weights -= check.serving_bytes(only="embedding")
    model = check.model
    slots = check.config.sampling.slots // check.sampler.capacity.num_shards
    token = 2.0 * check.kv_heads_per_chip * model.num_layers * model.head_dim * check.dtype.itemsize
    cache = slots * check.work.mean_length * token
    seconds, bound = roofline(flops, measured, loop.body.sent, check.chip)
    return {
        "bytes": measured,
        "weights": weights,
        "live_cache": cache,
        "ratio": measured / (weights + cache),
        "flops": flops,
        "sent": loop.body.sent,
        "roofline": seconds,
        "bound": bound,
    }


def capacity(check: Check) -> dict[str, float] | None:
    """Most pages that fit beside everything else, and most slots with their pages in proportion; over all chips.

    From the measured bytes: the pool grows with the pages, the temporaries of a decode step with the slots.
    """
    needs = [check.need(r) for r in check.reports.values() if not r.on_rows]
    if not needs or "decode" not in check.reports:
        return None
    sampler, decode = check.sampler, check.reports["decode"]
    pool = 2.0 * math.prod(check.pool_shape()) * check.dtype.itemsize
    shards, page = sampler.capacity.num_shards, pool / check.pool_shape()[2]
    pages = shards * math.floor((check.limit - (max(needs) - pool)) / page)
    growing = pool + decode.temporaries
    slots = shards * math.floor((check.limit - (max(needs) - growing)) / (growing / sampler.capacity.num_slots))
    return {"page_bytes": page, "pool_bytes": pool, "pages": max(pages, 0), "slots": max(slots, 0)}


def advice(check: Check) -> list[str]:
    """For each program that does not fit by how much, and which knob to turn."""
    return [_advice(check, r) for r in check.reports.values() if check.need(r) > check.limit]


def _advice(check: Check, report: Report) -> str:
    config, shards = check.config, check.sampler.capacity.num_shards
    need = check.need(report)
    over = f"{report.name} needs {gib(need)} GiB per chip, {gib(need - check.limit)} too many"
    state = chip_bytes(check.state)
    knobs = []
    kept_for_kl = check.plan.keep_reference and check.plan.adapters is None
    if kept_for_kl and config.loss.ib_confidence != "reference":
        freed = gib(chip_bytes(check.state.ref_params))
        knobs.append(f"loss.kl=0 (no reference is kept: {freed} GiB less)")
    split = f"raise mesh.fsdp={check.mesh.shape['fsdp']} (it splits the training state, {gib(state)} GiB)"
    if check.mesh.size == 1:  # nothing to raise
        split = f"more chips, over which mesh.fsdp splits the training state ({gib(state)} GiB)"
    if report.on_rows or report.name == "serve":
        activations = need - state
        if report.name != "serve" and activations > check.limit - state > 0:
            if config.model.remat != "full" and report.name == "update":
                knobs.insert(0, f"model.remat=full (now {config.model.remat})")
            if config.train.rows_per_step > shards:
                knobs.insert(0, f"train.rows_per_step={shards} (now {config.train.rows_per_step})")
            knobs.append(f"train.token_block below {config.train.token_block}")
            knobs.append(f"shorter rows (train.row_tokens, now {check.work.row_tokens}, by sampling.max_new_tokens)")
            if check.mesh.size > 1:
                knobs.append(f"raise mesh.tensor={check.mesh.shape['tensor']} (it splits the layers' activations)")
        knobs.append(split)
    else:
        room, sizes = capacity(check), check.sampler.capacity
        fitting = int(room["pages"]) // shards // sizes.least if room else 0  # questions of a shard, at their worst
        if room and fitting:
            knobs.insert(0, f"sampling.pages={int(room['pages'])} or fewer (now {check.sampler.total_pages})")
            knobs.insert(1, f"sampling.slots below {config.sampling.slots}")
            if not config.sampling.pages:  # then the questions in flight decide the pages
                in_flight = sizes.num_blocks * shards
                knobs.insert(0, f"sampling.questions_in_flight={fitting * shards} or fewer (now {in_flight})")
        knobs.append(split)
        if check.mesh.size > 1:
            tensor, serving = check.mesh.shape["tensor"], gib(check.serving_bytes())
            knobs.append(f"raise mesh.tensor={tensor} (it splits the serving weights, {serving} GiB)")
    return f"{over}: {'; or '.join(knobs)}"


def goals(check: Check) -> list[dict[str, Any]]:
    """[{name, value, goal, met}]; a value is at most its goal."""
    result = []

    def at_most(name: str, value: float, goal: float) -> None:
        result.append({"name": name, "value": value, "goal": goal, "met": bool(value <= goal)})

    fullest = max((check.need(r) for r in check.reports.values()), default=0.0)
    at_most("HBM needed over HBM there is, fullest program", fullest / check.limit, 1.0)
    if update := update_flops(check):
        at_most("compiled FLOPs of the update over the model's own", update["ratio"], UPDATE_GOAL)
    if step := decode_step(check):
        at_most("bytes of a decode step over weights and live KV", step["ratio"], DECODE_GOAL)
    attending = [r for r in check.reports.values() if r.on_rows or r.name in ("prefill", "decode")]
    missing = [r for r in attending if r.exceeded is None and not r.kernels]
    at_most("programs with attention that lack a Pallas kernel", len(missing), 0)
    return result


def pool_copies(check: Check) -> list[tuple[str, str, float, float]]:
    """(program, shape, bytes, times) of arrays as large as the pool's keys on this chip that are copied whole; the
    pool should be updated in place."""
    size = math.prod(check.pool_shape()) * check.dtype.itemsize
    found: dict[tuple[str, str, float], float] = {}
    for report in check.reports.values():
        if not report.on_rows and report.name != "serve" and report.program:
            for copy in report.program.total.copies:
                if copy.bytes >= size:
                    key = report.name, copy.shape, copy.bytes
                    found[key] = found.get(key, 0) + copy.calls
    return [(*key, calls) for key, calls in found.items()]


def uncounted_loops(check: Check) -> list[tuple[str, int]]:
    """(program, how many) of loops whose iterations neither its text nor its `Lowering` says: counted once."""
    found = [(r.name, len(r.program.counted_once)) for r in check.reports.values() if r.program]
    return [(name, number) for name, number in found if number]
