"""The report of a check: tables of at most 100 columns, or plain numbers for JSON."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from ibtpo.compiler.check import Check, chip_bytes
from ibtpo.compiler.conclusions import (
    advice,
    capacity,
    decode_step,
    gib,
    goals,
    pool_copies,
    uncounted_loops,
    update_flops,
)
from ibtpo.compiler.model import matmul_params
from ibtpo.compiler.search import Found, Search
from ibtpo.compiler.step import Step


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = list(zip(header, *rows))
    widths = [max(map(len, column)) for column in columns]
    lines = [
        [h.rjust(w) if i else h.ljust(w) for i, (h, w) in enumerate(zip(line, widths))] for line in (header, *rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def show(check: Check) -> str:
    """The whole report as text of at most 100 columns."""
    parts = [_heading(check), _memory(check), _amounts(check), _collectives(check), _kernels(check)]
    parts += ["\n".join(_conclusions(check)), _goals(check)]
    return "\n" + "\n\n".join(part for part in parts if part)


def show_steps(steps: Sequence[Step]) -> str:
    """The table of predicted steps, the first of which is the configuration's own."""
    rows = [
        [
            s.name,
            f"{s.sampling_s:.1f}",
            "-" if s.update_s is None else f"{s.update_s:.1f}",
            f"{s.responses_per_s:.1f}",
            f"{s.responses_per_s / steps[-1].responses_per_s:.2f}",
            f"{s.tokens_per_s_per_chip:,.0f}",
            f"{100 * s.useful:.0f} %",
            f"{s.in_flight}",
            f"{s.preemptions}",
            f"{s.chain_s:.1f}",
        ]
        for s in steps
    ]
    header = ["a step at best", "sampling s", "update s", "responses/s", f"over {steps[-1].name}", "tokens/s/chip"]
    return _table([*header, "useful slots", "in flight", "preempted", "longest alone s"], rows)


def show_half(tight: Step, own: Step) -> str:
    """One line: what preemption costs where there are half the pages that were in use."""
    ratio = tight.sampling_s / own.sampling_s
    return (
        f"At its peak it has {own.peak_pages:,} of {own.pages:,} pages in use; with {tight.pages:,} in all sampling "
        f"takes {ratio:.2f} times as long, {tight.preemptions} questions are preempted"
    )


def show_search(search: Search) -> str:
    """The tables of what was tried, the fastest first, and the keys to change."""

    def fullest(found: Found) -> str:
        return "" if found.fullest is None else f"{100 * found.fullest:.0f} %"

    def row(found: Found) -> list[str]:
        s, flat = found.step, search.flat_at(found)
        assert s is not None
        over = f"{s.responses_per_s / flat.responses_per_s:.2f}" if flat else "-"
        work = [f"{s.pages:,}", f"{s.sampling_s:.1f}", over, f"{100 * s.useful:.0f} %", f"{s.preemptions}"]
        return [*(str(value) for value in found.changes.values()), *work, fullest(found)]

    work = ["pages", "sampling s", "over 12 independent", "useful slots", "preempted", "of HBM"]
    sizes = _table(["slots", "in flight (0: chosen)", *work], [row(f) for f in search.sizes])
    shape = ["slots", "in flight", "rounds", "top_k", "lag"]
    shapes = _table([*shape, *work], [row(f) for f in search.shapes])
    flats = _table(
        ["slots", "sampling s", "responses/s", "useful slots"],
        [
            [str(slots), f"{s.sampling_s:.1f}", f"{s.responses_per_s:.1f}", f"{100 * s.useful:.0f} %"]
            for slots, s in sorted(search.flats.items())
        ],
    )
    rows = [
        [str(f.changes["train.rows_per_step"]), "-" if f.update_s is None else f"{f.update_s:.1f}", fullest(f)]
        for f in search.updates
    ]
    updates = _table(["rows at a time", "update s", "of HBM"], rows)
    flags = " ".join(f"--config.{key}={value}" for key, value in search.changes.items())
    notes = ["Sizes of the sampler by time; those with a share of the HBM are compiled, the others estimated:", sizes]
    notes += ["Trees of as many responses at the fastest size; each is another method:", shapes] * bool(search.shapes)
    notes += ["12 independent responses on as many slots and pages:", flats]
    notes += ["Rows of an update at a time:", updates, f"Fastest that fits: {flags or 'nothing that was tried'}"]
    return "\n\n".join(notes)


def _heading(check: Check) -> str:
    config, chip, mesh, work, model = check.config, check.chip, check.mesh, check.work, check.model
    tree, state = config.tree, "parameters, moments" + ", reference" * check.plan.keep_reference
    if check.plan.adapters is not None:
        state = f"frozen parameters, {check.plan.adapters.num_params(model) / 1e6:.1f} M in adapters and their moments"
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines = [
        f"{mesh.size} x TPU {chip.name}: {chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm_bandwidth / 1e9:.0f} GB/s, "
        f"{gib(check.limit)} GiB of HBM usable; mesh {shape}",
        f"{config.model.preset or config.model.path}: {model.num_layers} layers, "
        f"{matmul_params(model) / 1e9:.2f} B parameters in matrix products",
        f"Training state ({state}): {gib(chip_bytes(check.state))} GiB",
        f"One update: {work.rows} rows of {work.row_tokens:,} tokens, {config.train.rows_per_step} at a time; "
        f"{work.unique_tokens:,} of a row's tokens are real",
        f"where a tree ({tree.initial},{tree.rounds},{tree.top_k},{tree.branch}) of "
        f"{config.sampling.max_new_tokens:,}-token responses has {work.tree_tokens:,}.",
        f"Visible blocks of attention ({work.blocks.query} queries x {work.blocks.key} keys): {work.visible:,} of "
        f"{work.causal:,} causal ones, {100 * work.visible / work.causal:.1f} %",
        "Everything below is per chip.",
    ]
    return "\n".join(lines)


def _memory(check: Check) -> str:
    rows = []
    for r in check.reports.values():
        need = check.need(r)
        sizes = [r.arguments, r.temporaries, r.outputs, r.own, r.resident]
        cells = (
            [gib(x) for x in sizes] if r.exceeded is None else ["-", "-", "-", f"+{gib(r.exceeded)}", gib(r.resident)]
        )
        rows.append([r.name, f"{r.seconds:.0f} s", *cells, gib(need), f"{100 * need / check.limit:.0f} %"])
    header = ["memory, GiB", "compile", "arguments", "temporary", "outputs", "peak", "resident", "total", "of HBM"]
    return _table(header, rows)


def _amounts(check: Check) -> str:
    chip, rows = check.chip, []
    for r in check.reports.values():
        if r.program:
            sent = r.program.total.sent
            times = [r.flops / chip.flops, r.hbm_bytes / chip.hbm_bandwidth, sent / chip.ici_bandwidth]
            amounts = [f"{r.flops / 1e12:.3f}", gib(r.hbm_bytes), gib(sent)]
            rows.append([r.name, *amounts, *(f"{1e3 * t:.2f}" for t in times), f"{1e3 * r.roofline:.2f}", r.bound])
    header = ["work", "TFLOP", "HBM GiB", "sent GiB", "ms: compute", "memory", "links", "at best", "bound"]
    note = f"decode: a chunk of {check.config.sampling.chunk} steps; links: all of them at once"
    return f"{_table(header, rows)}\n{note}"


def _collectives(check: Check) -> str:
    rows = []
    for r in check.reports.values():
        for (kind, group), c in sorted(r.program.total.collectives.items()) if r.program else ():
            rows.append([r.name, kind, str(group), f"{c.calls:,.0f}", gib(c.bytes), gib(c.sent)])
    return _table(["collectives", "kind", "among", "calls", "GiB", "sent GiB"], rows) if rows else ""


def _kernels(check: Check) -> str:
    rows = []
    for r in check.reports.values():
        for name, k in sorted(r.kernels.items()):
            source = "own estimate" if k.estimated else ("mean length" if "paged" in name else "no estimate")
            rows.append([r.name, name[:40], f"{k.calls:,.0f}", f"{k.flops / 1e12:.3f}", gib(k.bytes), source])
    return _table(["kernels", "name", "calls", "TFLOP", "GiB", "counted by"], rows) if rows else "kernels: none"


def _conclusions(check: Check) -> list[str]:
    sampling, sampler, mesh, lines = check.config.sampling, check.sampler, check.mesh, []
    if update := update_flops(check):
        lines.append(
            f"Update, without padding: {update['compiled'] / 1e12:,.1f} TFLOP over the model's own "
            f"{update['own'] / 1e12:,.1f}: {update['ratio']:.3f}"
        )
    if step := decode_step(check):
        lines.append(
            f"Decode step: {gib(step['bytes'])} GiB over weights {gib(step['weights'])} + live KV "
            f"{gib(step['live_cache'])} ({check.work.mean_length:,.0f} tokens a slot): {step['ratio']:.3f}"
        )
        lines.append(
            f"  at best {1e3 * step['roofline']:.2f} ms ({step['bound']}), "
            f"{sampling.slots / step['roofline']:,.0f} tokens/s with {sampling.slots} slots on {mesh.size} chips"
        )
    if room := capacity(check):
        lines.append(
            f"Room, from these bytes: {room['pages']:,} pages (now {sampler.total_pages:,}) at {sampling.slots} slots, "
            f"or {room['slots']:,} slots with pages in proportion"
        )
    for name, shape, num_bytes, calls in pool_copies(check):
        lines.append(f"Note: {name} copies {shape}, of the size of the pool ({gib(num_bytes)} GiB), {calls:.0f} times")
    for name, number in uncounted_loops(check):
        lines.append(f"Note: loops of {name} whose iterations nothing says, so that they count once: {number}")
    fits = [f"Does not fit: {line}" for line in advice(check)] or ["Everything fits."]
    return [*lines, *(textwrap.fill(line, 100) for line in fits)]


def _goals(check: Check) -> str:
    rows = [[g["name"], f"{g['value']:.3f}", f"{g['goal']:g}", "yes" if g["met"] else "no"] for g in goals(check)]
    return _table(["goal (at most)", "value", "goal", "met"], rows)


def _step_as_json(step: Step) -> dict[str, Any]:
    rates = {"responses_per_s": step.responses_per_s, "tokens_per_s_per_chip": step.tokens_per_s_per_chip}
    return dataclasses.asdict(step) | rates


def _search_as_json(search: Search) -> dict[str, Any]:
    def plain(f: Found) -> dict[str, Any]:
        own = {"changes": f.changes, "fullest": f.fullest, "update_s": f.update_s}
        return own | {"step": f.step and _step_as_json(f.step)}

    kinds = {"sizes": search.sizes, "updates": search.updates, "shapes": search.shapes}
    found = {kind: [plain(f) for f in of_kind] for kind, of_kind in kinds.items()}
    return found | {"flats": {n: _step_as_json(s) for n, s in search.flats.items()}, "changes": search.changes}


def as_json(
    check: Check, steps: Sequence[Step] = (), tight: Step | None = None, search: Search | None = None
) -> dict[str, Any]:
    """The whole report as plain numbers: bytes, FLOPs, seconds. steps: those predicted. tight: with half the pages.
    search: what was searched."""
    work = dataclasses.asdict(check.work)
    del work["subtree_end"]
    programs = {}
    for r in check.reports.values():
        fields = ("seconds", "arguments", "temporaries", "outputs", "resident", "exceeded", "flops", "hbm_bytes")
        programs[r.name] = {name: getattr(r, name) for name in fields} | {
            "total": check.need(r),
            "fits": check.need(r) <= check.limit,
            "roofline_seconds": r.roofline,
            "bound": r.bound,
            "collectives": [
                {"kind": kind, "group": group, **dataclasses.asdict(c)}
                for (kind, group), c in (r.program.total.collectives.items() if r.program else ())
            ],
            "kernels": [{"name": name, **dataclasses.asdict(k)} for name, k in r.kernels.items()],
        }
    return {
        "chip": dataclasses.asdict(check.chip),
        "chips": check.mesh.size,
        "mesh": dict(check.mesh.shape),
        "hbm_usable": check.limit,
        "state_bytes": chip_bytes(check.state),
        "serving_bytes": check.serving_bytes(),
        "matmul_params": matmul_params(check.model),
        "work": work,
        "programs": programs,
        "update": update_flops(check),
        "decode_step": decode_step(check),
        "capacity": capacity(check),
        "steps": [_step_as_json(step) for step in steps],
        "half_the_pages": tight and _step_as_json(tight),
        "search": search and _search_as_json(search),
        "pool_copies": [dict(zip(("program", "shape", "bytes", "calls"), c)) for c in pool_copies(check)],
        "advice": advice(check),
        "goals": goals(check),
    }
