"""What each metric of a run means, and what a healthy run shows: docs/metrics.md is made from this."""

import functools
import re
from dataclasses import dataclass

# A group's name behind #; below it "metric: meaning => what a healthy run shows", the last part where there is
# anything to look for. A star stands for any letters; the first line that covers a metric holds.
_TEXT = """
# The update
train/loss: the loss that is minimised: minus the clipped objective, plus the weighted KL => near 0, without a
    trend: advantages are relative to their group; it is no measure of progress
train/entropy: mean entropy of the policy at the trained tokens, nats => falls slowly; a fall to near 0 in a few
    updates is collapse: lower the learning rate or raise loss.kl
train/kl: mean k3 estimate of KL(policy to reference) per token, nats; only where loss.kl keeps a reference => rises
    slowly from 0; a jump goes with a gradient that was too large
train/clip_fraction: share of the tokens' weight whose gradient the clip removes => 0 with one update per step,
    whose ratio is 1; small with several
train/ratio: mean ratio of the policy to the one that is clipped against => 1 within rounding with one update per
    step
train/ratio_max: largest ratio of a trained token => close to 1; far above it the policy has moved within a step
train/sampler_gap: mean |log-probability of the sampler minus that of the trainer| of the same tokens, of the step's
    first update => rounding of the model's type, and steady; more means that the two do not compute the same model
train/importance: mean weight of truncated importance sampling (loss.importance_cap) => near 1
train/importance_capped: share of the tokens whose importance weight was cut => near 0
train/grad_norm: global norm of the gradient before it is clipped => steady; peaks above optimizer.clip_norm are cut
train/skipped_updates: updates without a finite loss and gradient, which were skipped => 0
train/empty_updates: updates without any gradient, as where all groups are uniform => 0, or seldom more
train/learning_rate: of the step's last update
train/masked_groups: share of the questions left out because all their rewards are equal => well below 1; near 1 the
    problems are too easy or too hard for the policy
train/refilled: questions that dynamic sampling replaced (train.refills)
train/term_*: mean of a term of reward.terms, without its weight
# The trees
train/avg_rate: mean reward of all responses of the step, branches included => rises; branches start from chosen
    prefixes, so it is not the policy's accuracy
train/avg_rate_initial: mean reward of the unguided responses: the accuracy on the training problems => rises
train/eff_rate: Eff-Rate: share of the questions whose responses do not all have one reward => high; it falls where
    the policy masters the problems, or never solves them
train/ib_score: mean IB-Score J over the nodes that have children
train/ib_score_root: J of the question itself, mean over questions
train/cov: Cov(eta1, eta2) over a node's children, mean over the nodes with two or more => above 0 where informative
    steps are the ones that help
train/cov_root: the same of the questions alone, by which methods without branches can be compared
train/response_length: tokens of a response, mean over all of them => no sudden growth: see truncation_rate
train/response_length_initial: the same over the unguided responses
train/truncation_rate: share of the responses cut off at sampling.max_new_tokens => near 0; much more means that
    rewards measure length
# Cost
train/tokens_per_question: tokens generated for a question, each once however many responses share it
train/responses_per_1k_tokens: responses for 1,000 generated tokens => above that of independent responses: trees
    share prefixes
train/generated_tokens: tokens generated so far in the run
train/row_use: share of the computed cells of the packed rows that hold a token of a tree => most of them
train/row_repeats: tokens repeated for trees cut in pieces, over their own tokens => near 0
train/slot_use: generated tokens over the places for them in the decode steps => near 1; low with too many slots for
    the questions
train/slot_tail: share of the decode places that ran after the last question was admitted => low with many questions
    per step
train/preemptions: questions that gave their pages back unfinished => 0, or few: raise sampling.pages
train/kv_pages_peak: most pages of the KV cache in use at once
train/kv_pages_left: pages still in use after the last question => 0
train/graded_graded: answers graded in the step
train/graded_fast: of them, decided at once in this process => most of them
train/graded_slow: of them, decided by a worker
train/graded_timeout: of them, wrong because they took longer than reward.timeout => 0, or very few
train/graded_crashed: of them, wrong because they took their worker down => 0, or very few
time/sample_s: seconds of sampling and grading the step's trees
time/update_s: seconds of scoring, packing and updating
time/eval_s: seconds of an evaluation
time/sampler_stall_s: seconds in which the device had nothing to do while the trees were sampled => small beside
    time/sample_s; else grading is slow: raise reward.workers
time/elapsed_s: seconds of the run so far, over all its invocations
time/sampled_tokens_per_s: tokens generated in the step over time/sample_s => steady; it falls as responses grow longer
time/trained_tokens_per_s: unique tokens trained on, prompts included, in all epochs, over time/update_s => steady
time/mfu: model FLOPs utilisation of the update, 0 to 1: 6 FLOPs for each parameter and trained token (with adapters 4,
    and 6 for each of theirs), and the attention between tokens that see each other, over time/update_s at the devices'
    published bfloat16 peak; recomputation, packing and the reference's pass count as lost; only with
    model.dtype=bfloat16 on a device whose peak is known => steady; that of the update's own pass is higher
memory/peak_bytes: most memory that has been in use on a device since the process began; of the first host's devices the
    largest; where the backend says it (not on a CPU) => steady after the first evaluation
memory/peak_share: the same as a share of what JAX may use there => below 1; sampling.memory_share is what it aims at
# Evaluation
eval/avg_at_k: avg@k: mean over the questions of the share of right responses, 0 to 1 => rises; differences within
    the interval are noise
eval/pass_at_k: share of the questions with a right response among k => does not fall while avg@k rises; a fall is
    lost diversity
eval/maj_at_k: share of the questions whose most frequent answer is right
eval/mean_length: mean tokens of a response
eval/truncation_rate: share of the responses cut off at sampling.max_new_tokens => near 0
eval/questions: questions evaluated
eval/k: responses for each
eval/generated_tokens: tokens of the evaluation
eval/*_low: lower end of a metric's 95 % bootstrap interval over questions
eval/*_high: upper end of it
eval/prompt_*: with IFEval's instructions, the share of prompts all of whose instructions were
    followed, strictly or loosely
eval/instruction_*: the same share of all instructions
# Supervised training
sft/loss: mean of -log pi over the solution's tokens since the last row => falls, and levels off
sft/learning_rate: of the last update
sft/solution_tokens: tokens trained on so far
sft/seconds: seconds since the start
"""


@dataclass(frozen=True)
class Meaning:
    """One metric, or several whose names a star covers. healthy: what a healthy run shows; "": any value."""

    name: str
    words: str
    healthy: str = ""

    def covers(self, metric: str) -> bool:
        """Whether the metric of this name is meant."""
        return re.fullmatch(re.escape(self.name).replace(r"\*", r"\w+"), metric) is not None


@functools.cache
def meanings() -> dict[str, list[Meaning]]:
    """{group: its metrics}, in order."""
    groups: dict[str, list[Meaning]] = {}
    for line in re.sub(r"\n +", " ", _TEXT).strip().splitlines():
        if line.startswith("# "):
            group = groups.setdefault(line[2:], [])
        else:
            name, _, text = line.partition(": ")
            words, _, healthy = text.partition(" => ")
            group.append(Meaning(name, words, healthy))
    return groups


def find(metric: str) -> Meaning | None:
    """The meaning of a metric by its name in metrics.jsonl, the first that covers it; None for an unknown one."""
    return next((each for group in meanings().values() for each in group if each.covers(metric)), None)


def metrics_page() -> str:
    """A page of Markdown: a table for each group."""
    lines: list[str] = []
    for group, members in meanings().items():
        lines += ["", f"## {group}", "", "| metric | meaning | a healthy run |", "|---|---|---|"]
        lines += [f"| `{each.name}` | {each.words.replace('|', '&#124;')} | {each.healthy} |" for each in members]
    return "\n".join(lines).strip() + "\n"
