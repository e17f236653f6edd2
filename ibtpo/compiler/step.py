"""What a whole training step takes at best: the scheduler on the simulated device, each of its programs priced.

A program's price is the roofline of its compiled FLOPs, bytes and exchanges on the chip's published peaks, so no run is
faster, with everything else overlapped; the host's own time is not in it. Lengths, confidences and rewards are those
of a stated process (`ibtpo.sampling.process`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ibtpo import metrics, packing, report
from ibtpo.advantages import group_is_uniform
from ibtpo.compiler.check import Check, Report
from ibtpo.compiler.chips import Chip, roofline
from ibtpo.config import ConfigError
from ibtpo.errors import UserError
from ibtpo.sampling import Question, SampledTree, SamplerOptions, SamplerStats, TreeOptions
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import Chunks
from ibtpo.sampling.device import prefill_width
from ibtpo.sampling.engine import Run
from ibtpo.sampling.grades import Grades
from ibtpo.sampling.growth import Growth
from ibtpo.sampling.process import Process, grade
from ibtpo.sampling.simulated import SimulatedDevice
from ibtpo.sampling.strategies import flat_group
from ibtpo.tree import stack_trees

PROGRAMS = ("serve", "prefill", "start", "decode", "release", "recompute", "update")
PROMPT_TOKENS = 200  # of a simulated question; the problem sets' mean is below


@dataclasses.dataclass(frozen=True)
class DecodePrice:
    """Of one decode step of a shard: what does not depend on its slots (the weights), what each slot adds, and each
    token in the cache. sent: bytes to other chips, by slot."""

    chip: Chip
    bytes: float
    bytes_per_slot: float
    bytes_per_token: float
    flops_per_slot: float
    flops_per_token: float
    sent_per_slot: float

    def seconds(self, slots: float, live_tokens: float) -> float:
        num_bytes = self.bytes + self.bytes_per_slot * slots + self.bytes_per_token * live_tokens
        flops = self.flops_per_slot * slots + self.flops_per_token * live_tokens
        return roofline(flops, num_bytes, self.sent_per_slot * slots, self.chip)[0]


def decode_price(check: Check) -> DecodePrice:
    """From the compiled chunk: its loop's body, and the attention kernel's reads for each token."""
    report = _compiled(check, "decode")
    assert report.program is not None
    body = next(loop for loop in report.program.loops if loop.given).body
    slots = check.config.sampling.slots // check.sampler.capacity.num_shards
    kernels = [check.work_of_kernel(report.on_rows, name, k) for name, k in body.kernels.items()]
    weights = min(body.bytes, check.serving_bytes())
    # The kernel was counted at the mean length in whole blocks: per token it reads as much more.
    live = slots * check.work.mean_length
    return DecodePrice(
        chip=check.chip,
        bytes=weights,
        bytes_per_slot=(body.bytes - weights) / slots,
        bytes_per_token=sum(k.bytes for k in kernels) / live,
        flops_per_slot=body.flops / slots,
        flops_per_token=sum(k.flops for k in kernels) / live,
        sent_per_slot=body.sent / slots,
    )


def can_price(check: Check, names: Sequence[str] = ()) -> bool:
    """Whether these programs, or all of a step, are compiled, and fit."""
    reports = [check.reports.get(name) for name in names or (*PROGRAMS, *check.plan.log_probs_of)]
    return all(report is not None and report.program is not None for report in reports)


def _compiled(check: Check, name: str) -> Report:
    report = check.reports.get(name)
    if report is None or report.program is None:
        missing = "was not compiled" if report is None else "does not fit"
        raise ConfigError(f"no step can be priced: the program {name} {missing}")
    return report


class CompiledPrice:
    """`sampling.simulated.Price` of a check's compiled programs."""

    def __init__(self, check: Check):
        self._decode = decode_price(check)
        self._chip, self._programs = check.chip, {n: _compiled(check, n) for n in PROGRAMS if n != "update"}
        self._width = prefill_width(check.config.data.max_prompt_tokens)
        self._weights = check.serving_bytes()

    def prefill(self, prompts: int, width: int) -> float:
        report = self._programs["prefill"]
        assert report.program is not None
        share = width / self._width
        num_bytes = self._weights + max(0.0, report.hbm_bytes - self._weights) * share
        return roofline(report.flops * share, num_bytes, report.program.total.sent * share, self._chip)[0]

    def start(self, forks: int) -> float:
        return self._programs["start"].roofline

    def step(self, slots: int, live_tokens: float) -> float:
        return self._decode.seconds(slots, live_tokens)

    def recompute(self, tokens: int) -> float:
        return self._programs["recompute"].roofline

    def release(self) -> float:
        return self._programs["release"].roofline

    @property
    def serve(self) -> float:
        """Of the copy of the parameters that a call of the sampler reads."""
        return self._programs["serve"].roofline


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step at best: seconds, and what the slots did.

    useful: share of the slots' steps that drew a token. in_flight: questions at once, at most, over all shards.
    pages: of the pool, over all shards; peak_pages: most of them in use at once. unique_tokens: drawn.
    chain_s: that the longest question would take alone, as its rounds wait for one another; no schedule is faster.
    """

    name: str
    sampling_s: float
    update_s: float | None
    responses: int
    unique_tokens: int
    useful: float
    preemptions: int
    in_flight: int
    pages: int
    peak_pages: int
    chain_s: float
    chips: int

    @property
    def responses_per_s(self) -> float:
        """Finished responses per second of sampling."""
        return self.responses / self.sampling_s

    @property
    def tokens_per_s_per_chip(self) -> float:
        """Drawn tokens per second of sampling and chip."""
        return self.unique_tokens / self.sampling_s / self.chips


def sample(
    price: Any,
    process: Process,
    options: SamplerOptions,
    tree: TreeOptions,
    shards: int,
    questions: int,
    *,
    mesh: bool = False,
) -> tuple[list[SampledTree], SamplerStats, SimulatedDevice]:
    """One call of the sampler on the simulated device."""
    capacity = Capacity.of(options, tree, shards)
    device = SimulatedDevice(capacity, process, price, mesh=mesh)
    prompt = [1] * min(PROMPT_TOKENS, options.max_prompt_tokens)
    asked = [Question(id, prompt) for id in range(questions)]
    growth, grades, chunks = Growth(tree, process.codec(), [process.seed]), Grades(grade), Chunks(0.0)
    trees, stats = Run(device, capacity, growth, grades, chunks, asked).run()
    return trees, stats, device


def predict(
    check: Check, process: Process, tree: TreeOptions, options: SamplerOptions, name: str, *, update: bool = True
) -> Step:
    """A step of `train.questions_per_step` questions with these options, by the programs of the check. update: whether
    the update is priced too, whose program must be compiled then."""
    price, questions = CompiledPrice(check), check.config.train.questions_per_step
    shards = check.sampler.capacity.num_shards
    trees, stats, device = sample(price, process, options, tree, shards, questions, mesh=check.mesh.size > 1)
    return Step(
        name=name,
        sampling_s=price.serve + device.clock.seconds,
        update_s=update_seconds(check, trees) if update else None,
        responses=stats.responses,
        unique_tokens=stats.generated_tokens,
        useful=stats.generated_tokens / stats.slot_steps,
        preemptions=stats.preemptions,
        in_flight=min(questions, device.capacity.num_blocks * shards),
        pages=device.capacity.total_pages,
        peak_pages=stats.peak_pages,
        chain_s=max(chain(sampled, tree) for sampled in trees) * price.step(1, 0),
        chips=check.mesh.size,
    )


def chain(sampled: SampledTree, tree: TreeOptions) -> int:
    """Decode steps that a question takes with a slot for each of its responses: a round begins when those that it is
    chosen from have ended, which with tree.lag are not the last ones."""
    longest: dict[int, int] = {}
    for response in sampled.responses:
        longest[response.round] = max(longest.get(response.round, 0), len(response.tokens) - response.fork)
    ended: list[int] = []
    for round in sorted(longest):
        known = ended[: max(1, len(ended) - tree.lag)]
        ended.append(max(known, default=0) + longest[round])
    return max(ended)


def trees_of(check: Check, process: Process) -> list[SampledTree]:
    """The trees of a step, which depend on no size of the sampler."""
    tree, questions = TreeOptions.from_config(check.config), check.config.train.questions_per_step
    return sample(None, process, check.options, tree, check.sampler.capacity.num_shards, questions)[0]


def update_seconds(check: Check, trees: list[SampledTree]) -> float:
    """Of training on these trees, and of the log-probabilities that the plan asks for: rows as they are packed, each
    microbatch at the price of the compiled one, token for token."""
    plan, config = check.plan, check.config
    tree = stack_trees([sampled.tree for sampled in trees])
    trained = ~group_is_uniform(tree) if config.loss.mask_uniform_groups else None
    row_tokens = plan.row_tokens(tree.tokens.shape[1])
    layout = packing.plan(tree, row_tokens=row_tokens, rows_per_step=plan.rows_per_step, select=trained)
    share = layout.rows[0] * row_tokens / (check.work.rows * check.work.row_tokens)
    passes = [_compiled(check, name).roofline for name in plan.log_probs_of]
    return share * (sum(passes) + config.train.epochs * _compiled(check, "update").roofline)


def process_of(config: Any, run: str | None = None) -> Process:
    """The process of a prediction: the paper's, or one with the lengths of the unguided responses in the metrics of an
    earlier run, log-normal around their mean over its updates.

    Raises:
      UserError: no run, or none that has trained.
    """
    process = Process(seed=config.train.seed)
    if not run:
        return process
    if not metrics.exist(run):
        raise UserError(f"--lengths={run}: no {metrics.FILE_NAME} there; name the workdir of a run that trained")
    _, lengths = report.read_run(run).get("train/response_length_initial", (None, np.array([np.nan])))
    lengths = lengths[lengths > 0]
    if not lengths.size:
        raise UserError(f"--lengths={run}: no response lengths in its metrics; name the workdir of a run that trained")
    mean = float(lengths.mean())
    return dataclasses.replace(process, length_median=mean / math.exp(process.length_sigma**2 / 2))


def step_of(
    check: Check, process: Process, *, counts: Sequence[int] = (8, 12), update: bool = True
) -> list[Step]:
    """The configuration's own step, and those of 8 and of 12 independent responses on as many slots and pages."""
    config = check.config
    tree, options = TreeOptions.from_config(config), check.options
    shape = ",".join(str(getattr(tree, name)) for name in ("initial", "rounds", "top_k", "branch"))
    own = predict(check, process, tree, options, f"{tree.strategy} ({shape})", update=update)
    others = []
    for count in counts:
        flat = dataclasses.replace(tree, **flat_group(count))
        roomy = dataclasses.replace(options, pages=check.sampler.total_pages, questions_in_flight=0)
        others.append(predict(check, process, flat, roomy, f"{count} independent", update=update))
    return [own, *others]


def sampling_steps(check: Check, process: Process) -> list[Step]:
    """The same without the update, beside 12 independent responses alone."""
    return step_of(check, process, counts=(12,), update=False)


def half_the_pages(check: Check, process: Process, own: Step) -> Step:
    """The configuration's own step, `own`, with half of the pages that it had in use at its peak, so that questions are
    preempted; at least as many as one question of each shard may need."""
    capacity = check.sampler.capacity
    shards = capacity.num_shards
    pages = max(own.peak_pages // 2 // shards, capacity.least) * shards
    tree, options = TreeOptions.from_config(check.config), dataclasses.replace(check.options, pages=pages)
    return predict(check, process, tree, options, f"with {pages:,} pages", update=False)
