"""Our losses and advantages against those of other libraries, on the same arrays.

    python benchmarks/losses.py [--quick] [--json] [--peers=tunix,trl]

Random flat groups: four questions of four responses with 1 to 24 tokens, some cut off at the limit; the rewards of the
first question are all equal, and the ratios lie on both sides of the clip range. A peer gets the log-probabilities (of
the policy, of the policy that drew the tokens and of the reference), the mask and our advantages, and its own code
gives the loss and, by differentiation, the gradient with respect to the policy's log-probabilities. Ours come from the
trees of the same responses, packed into rows. Compared are

    gradient:  |ours - theirs| / |theirs|, in the Euclidean norm
    loss:      |ours - theirs| / max(|theirs|, sum of the absolute values of their gradient)

(a loss is a sum of terms of either sign, which may all but cancel; the gradient has their sizes). The largest of all
cases is reported, in float32 and, where the peer computes in the type it is given, in float64. The goal is 1e-5 in
float32 and 1e-11 in float64; the exit code is 1 where a goal is not met or a peer fails. The peers are installed, at
pinned versions, under build/benchmarks.

Tunix (google-tunix 0.1.7): the registered policy loss "grpo", the aggregations and advantage estimators of tunix.rl.
TRL (1.16.0): GRPOTrainer._compute_loss with a GRPOConfig. Where their definitions differ from ours, this is
compared:

- Standard deviation of a group: ours (loss.deviation=sample, as every method of the GRPO family has it) and Tunix's are
  the sample's plus 1e-6, TRL's the sample's plus 1e-4. Losses are compared with our advantages.
- KL: both compute k3 as we do, Tunix if kl_loss_mode is "low_var_kl" (its default is k1). We clamp its exponent to
  +-20, which no case reaches. TRL multiplies it by the ratio unless use_bias_correction_kl is off, as it is here.
- Dual clip is epsilon_c of Tunix. TRL bounds the ratio by delta, for either sign of the advantage; with delta above
  1 + epsilon_high that is the same.
- The normaliser of fixed_length is the width of the arrays in Tunix and max_completion_length in TRL; the arrays are as
  wide as max_new_tokens.
- TRL's "dapo" and "cispo" divide by the tokens of the whole generation batch, "bnpo" by those of the microbatch; here
  one is the other.
- epsilon_high of TRL's "cispo" is the bound itself, 1 + clip_high.
- GSPO: TRL differentiates the ratio of the whole response, Tunix and we that of each token (GSPO-token). With one
  advantage per response, the gradients are the same.
- SAPO: TRL rounds the temperature 1.05 to float32; the goal in float64 is 1e-7.
- Truncated responses left out: TRL counts them in the denominators of "grpo" and "dr_grpo", as we do in all. Tunix
  counts no empty response, and TRL's other types no token of them: not compared.
- Entropy bonus: not compared, since it is no function of the given log-probabilities.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.engines import peer_python  # noqa: E402
from benchmarks.loss_cases import (  # noqa: E402
    IMPORTANCE_CAP,
    MAX_NEW,
    METHODS,
    PEERS,
    PROMPT,
    QUESTIONS,
    RESPONSES,
    TUNIX_ADVANTAGES,
    Case,
    Method,
    random_case,
)
from ibtpo.advantages import ADVANTAGES, AdvantageOptions  # noqa: E402
from ibtpo.losses import LossOptions, policy_loss  # noqa: E402
from ibtpo.packing import fill, place, plan, unpack  # noqa: E402
from ibtpo.token_weights import sequence_weights, token_weights  # noqa: E402
from ibtpo.tree import Response, Tree, build_tree, stack_trees, tokens_of_response  # noqa: E402

ROW_TOKENS = len(PROMPT) + RESPONSES * MAX_NEW  # any tree fits
OPTIONS = AdvantageOptions(deviation="sample")


# Ours.


def make_tree(case: Case, drawn: np.ndarray, dtype) -> Tree:
    """The groups as trees that fork at the question only; drawn: log-probabilities of the sampler."""

    def of_question(q: int) -> Tree:
        responses = [
            Response(r, -1, 0, 0, np.full(n, 4), drawn[q, r, :n], "stop", case.rewards[q, r])
            for r, n in enumerate(case.length[q])
        ]
        return build_tree(PROMPT, responses, lambda tokens: [len(tokens)])

    tree = stack_trees([of_question(q) for q in range(QUESTIONS)], num_tokens=ROW_TOKENS, num_responses=RESPONSES)
    tree = tree.replace(rewards=case.rewards.astype(dtype))
    return tree.replace(log_probs=in_tree_order(tree, drawn.astype(dtype)))


def in_tree_order(tree: Tree, values: np.ndarray) -> np.ndarray:
    """[Q, R, T] of responses as [Q, T'] of the tree's tokens; 0 on the prompt."""
    result = np.zeros(tree.tokens.shape, values.dtype)
    for q, r in np.ndindex(QUESTIONS, RESPONSES):
        result[q, tokens_of_response(tree, r, q)] = values[q, r, : tree.response_length[q, r]]
    return result


def of_responses(tree: Tree, values: np.ndarray) -> np.ndarray:
    """The way back; 0 behind the end."""
    result = np.zeros((QUESTIONS, RESPONSES, MAX_NEW), values.dtype)
    for q, r in np.ndindex(QUESTIONS, RESPONSES):
        result[q, r, : tree.response_length[q, r]] = values[q, tokens_of_response(tree, r, q)]
    return result


def response_advantages(case: Case, name: str, dtype) -> np.ndarray:
    """[Q, R] of one of `ADVANTAGES`, that of each response's only step."""
    tree = make_tree(case, case.old, dtype)
    values = np.asarray(ADVANTAGES[name](tree, OPTIONS))
    return np.take_along_axis(values, tree.response_node[:, :, None], axis=2)[:, :, 0]


@functools.cache
def _value_and_grad(options: LossOptions):
    def loss(log_probs, batch):
        return policy_loss(log_probs, batch, options=options)[0]

    return jax.jit(jax.value_and_grad(loss))


def our_loss(case: Case, method: Method, dtype) -> tuple[float, np.ndarray]:
    """(loss, its gradient with respect to the log-probabilities [Q, R, T]), by way of packed trees."""
    options = LossOptions(**dict(kl=0.0) | method.loss)
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        tree = make_tree(case, case.sampler if options.importance_cap else case.old, dtype)
        now, ref, old = (in_tree_order(tree, x.astype(dtype)) for x in (case.log_probs, case.ref, case.old))
        advantages = ADVANTAGES[method.advantage](tree, OPTIONS)
        mask = ~case.truncated if method.mask_truncated else None
        weighting = dict(aggregation=method.aggregation, max_new_tokens=MAX_NEW, mask=mask)
        if options.objective == "gspo":
            clip = dict(clip_low=options.clip_low, clip_high=options.clip_high)
            weights = sequence_weights(tree, advantages, now, **clip, **weighting)
        else:
            weights = token_weights(tree, advantages, **weighting)
        layout = plan(tree, row_tokens=ROW_TOKENS, rows_per_step=QUESTIONS)
        now, ref, old = (jnp.asarray(place(x, layout)) for x in (now, ref, old))
        batch = fill(layout, tree, weights).replace(ref_log_probs=ref if options.kl else None, old_log_probs=old)
        loss, gradient = _value_and_grad(options)(now, batch)
        assert loss.dtype == dtype
        return float(loss), of_responses(tree, unpack(gradient, layout))


# Theirs.


def peer_input(cases: list[Case], peer: str) -> dict[str, np.ndarray]:
    """The input of a peer, see benchmarks/peers/*_losses.py."""
    settings = {name: getattr(method, peer) for name, method in METHODS.items() if getattr(method, peer) is not None}
    arrays = {"settings": np.array(json.dumps(settings)), "dtypes": np.array(PEERS[peer][1])}
    for i, case in enumerate(cases):
        flat = dict(log_probs=case.log_probs, old=case.old, ref=case.ref)
        flat |= dict(importance=np.minimum(np.exp(case.old - case.sampler), IMPORTANCE_CAP))
        arrays |= {f"{i}/{name}": x.reshape(-1, MAX_NEW) for name, x in flat.items()}
        arrays[f"{i}/rewards"] = case.rewards
        for name in settings:
            method = METHODS[name]
            mask = case.mask & ~(case.truncated[:, :, None] & method.mask_truncated)
            arrays[f"{i}/{name}/mask"] = mask.reshape(-1, MAX_NEW)
            advantages = response_advantages(case, method.advantage, np.float64)
            arrays[f"{i}/{name}/advantages"] = advantages.reshape(-1)
            arrays[f"{i}/{name}/use_importance"] = np.array("importance_cap" in method.loss)
    return arrays


def run_peer(peer: str, arrays: dict[str, np.ndarray], log) -> dict[str, np.ndarray]:
    """The arrays that the peer writes for these."""
    python = peer_python(peer, PEERS[peer][0], log)
    with tempfile.TemporaryDirectory() as folder:
        given, written = (os.path.join(folder, name) for name in ("in.npz", "out.npz"))
        np.savez(given, **arrays)
        script = ROOT / "benchmarks" / "peers" / f"{peer}_losses.py"
        env = os.environ | dict(JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
        result = subprocess.run(
            [python, str(script), given, written], env=env, capture_output=True, text=True, timeout=1800
        )
        if result.returncode:
            raise RuntimeError(f"{peer} failed: " + "\n".join(result.stderr.splitlines()[-5:]))
        with np.load(written) as found:
            return dict(found)


# The comparison.


def relative_error(ours, theirs, scale=None) -> float:
    """The Euclidean norm of the difference over `scale`, or that of the second; infinity if it is no number."""
    scale = np.linalg.norm(theirs) if scale is None else scale
    error = np.linalg.norm(ours - theirs) / scale
    return float(error) if np.isfinite(error) else float("inf")


def compare(cases: list[Case], peer: str, found: dict[str, np.ndarray]) -> list[dict]:
    """Rows {method, dtype, loss, gradient} with the largest relative errors of all cases."""
    rows = []
    for name, method in METHODS.items():
        for dtype in PEERS[peer][1] if getattr(method, peer) is not None else ():
            errors = []
            for i, case in enumerate(cases):
                loss, gradient = our_loss(case, method, dtype)
                their_loss, theirs = (found[f"{i}/{name}/{dtype}/{what}"] for what in ("loss", "gradient"))
                theirs = theirs.reshape(gradient.shape)
                size = max(abs(float(their_loss)), float(np.abs(theirs).sum()))
                errors.append((relative_error(loss, their_loss, size), relative_error(gradient, theirs)))
            of_loss, of_gradient = map(max, zip(*errors))
            rows.append(dict(method=name, dtype=dtype, loss=of_loss, gradient=of_gradient))
    return rows


def compare_advantages(cases: list[Case], found: dict[str, np.ndarray]) -> list[dict]:
    """Rows {advantage, error} of Tunix's estimators, in float64."""
    rows = []
    for ours, theirs in TUNIX_ADVANTAGES.items():
        errors = []
        for i, case in enumerate(cases):
            values = found[f"{i}/advantages/{theirs}"].reshape(QUESTIONS, RESPONSES)
            errors.append(relative_error(response_advantages(case, ours, np.float64), values))
        rows.append(dict(advantage=ours, error=max(errors)))
    return rows


def _goal(name: str, value: float | None, goal: float) -> dict:
    """One entry of `goals`; that of a peer that failed is not met."""
    shown = None if value is None else float(f"{value:.3g}")
    return dict(name=name, value=shown, goal=goal, met=value is not None and value <= goal)


def run(*, quick: bool = False, peers=tuple(PEERS), log=print, show=print) -> dict:
    """The figures of the benchmark, `goals` among them."""
    from ibtpo.report import summary_table

    cases = [random_case(seed) for seed in range(2 if quick else 16)]
    results, goals, versions = {}, [], dict(jax=jax.__version__)
    for peer in peers:
        log(f"{peer}: {len(cases)} cases")
        try:
            found = run_peer(peer, peer_input(cases, peer), log)
        except (RuntimeError, subprocess.SubprocessError) as error:
            log(str(error))
            results[peer] = dict(error=str(error))
            goals.append(_goal(f"{peer}: runs", None, 0.0))
            continue
        versions |= json.loads(str(found["versions"]))
        rows = compare(cases, peer, found)
        results[peer] = dict(losses=rows)
        for row in rows:
            goal = METHODS[row["method"]].goal(row["dtype"])
            name = f"{peer}, {row['method']}"
            goals += [_goal(f"{name}: {what}, {row['dtype']}", row[what], goal) for what in ("loss", "gradient")]
        show(f"\n{peer}: largest relative errors\n{summary_table(_shown(rows))}")
        if peer == "tunix":
            rows = results[peer]["advantages"] = compare_advantages(cases, found)
            goals += [_goal(f"tunix, advantages of {row['advantage']}", row["error"], 1e-6) for row in rows]
            show(f"\ntunix: advantages\n{summary_table(_shown(rows))}")
    missed = [goal["name"] for goal in goals if not goal["met"]]
    show("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()))
    show(f"{len(goals) - len(missed)} of {len(goals)} goals met" + "".join(f"\n  not met: {name}" for name in missed))
    return dict(quick=quick, versions=versions, cases=len(cases), results=results, goals=goals)


def _shown(rows: list[dict]) -> list[dict]:
    return [{k: f"{v:.1e}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def main() -> None:
    from benchmarks.output import streams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases instead of sixteen")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the tables go to stderr")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers, separated by commas")
    arguments = parser.parse_args()
    peers = arguments.peers.split(",")
    if unknown := set(peers) - set(PEERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; peers: {', '.join(PEERS)}")
    figures = run(
        quick=arguments.quick,
        peers=peers,
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))
    sys.exit(not all(goal["met"] for goal in figures["goals"]))


if __name__ == "__main__":
    main()
