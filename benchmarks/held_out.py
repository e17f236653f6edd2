"""Trees of a config's model for its held-out problems, without training."""

import dataclasses
from collections.abc import Sequence
from typing import Any


class HeldOut:
    """A config's policy, the held-out problems and a grader; as a context, it ends the grader's processes."""

    def __init__(self, config: Any, limit: int | None = None):
        """config: resolved (`ibtpo.config.resolve`). limit: only the first problems."""
        from ibtpo.compilation_cache import enable_compilation_cache
        from ibtpo.data.problems import load_problems
        from ibtpo.policy import load_policy, make_grader

        enable_compilation_cache(config)
        self.config, self.policy = config, load_policy(config)
        self.problems = load_problems(config.data, config.data.eval_split, self.policy.tokenizer)[:limit]
        self.grader = make_grader(config)

    def __enter__(self) -> "HeldOut":
        return self

    def __exit__(self, *_: object) -> None:
        self.grader.close()

    def exact(self, problem):
        """`exact_values.Exact` of a problem; of navigation only."""
        from benchmarks.exact_values import exact

        prompt = self.policy.question(0, problem, self.config.data).tokens
        return exact(self.policy, prompt, problem.answer, self.config.sampling.temperature)

    def sample(self, problems: Sequence | None = None, *, copies=1, seed=0, greedy=False, **tree):
        """(trees of each problem, `copies` times; the sampler's stats). problems: all. tree: fields of TreeOptions."""
        import jax

        from ibtpo.policy import make_grade, make_sampler
        from ibtpo.sampling import SamplingParams

        problems = self.problems if problems is None else problems
        by_id = dict(enumerate(problem for problem in problems for _ in range(copies)))
        asked = [self.policy.question(n, problem, self.config.data) for n, problem in by_id.items()]
        sampling = SamplingParams.from_config(self.config.sampling)
        sampling = dataclasses.replace(sampling, top_k=1) if greedy else sampling
        sampler = make_sampler(self.policy, self.config, **tree)
        grade = make_grade(self.policy, self.grader, by_id)
        return sampler(self.policy.params, asked, grade, key=jax.random.key(seed), sampling=sampling)
