"""The workloads of our sampler in benchmarks/sampler.py, run in a process of its own.

    echo '[{...}]' | PYTHONPATH=. python benchmarks/workload.py
"""

import functools
import json
import statistics
import sys
import time
import types
import zlib

SMALL = dict(vocab_size=512, embed_dim=256, mlp_dim=768, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64)
LARGE = dict(vocab_size=8192, embed_dim=512, mlp_dim=1536, num_layers=12, num_heads=8, num_kv_heads=4, head_dim=64)
SHAPES = dict(small=SMALL, large=LARGE)
CHUNK = 32
STOPS = range(4)
SEPARATORS = range(16, 48)
FIRST_PROMPT_TOKEN = 48
MISTAKES = 14


def grade(question, tokens) -> float:
    """1.0 unless a step is a mistake: one in MISTAKES, by a hash of the question and all tokens up to its end. So what
    follows a mistake is wrong too, whichever way it goes on."""
    state, start = question.id, 0
    for end in step_ends(tokens):
        state, start = zlib.crc32(tokens[start:end].tobytes(), state), end
        if state % MISTAKES == 0:
            return 0.0
    return 1.0


@functools.cache
def _is_separator():
    import numpy as np

    table = np.zeros(max(shape["vocab_size"] for shape in SHAPES.values()), bool)
    table[list(SEPARATORS)] = True
    return table


def step_ends(tokens) -> list[int]:
    """Exclusive ends of the steps: behind each separator, and at the end."""
    ends = (_is_separator()[tokens].nonzero()[0] + 1).tolist()
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]


class Workload:
    """One job of our engine: a sampler, its parameters and its questions."""

    def __init__(self, job: dict):
        import numpy as np
        from flax import nnx

        from benchmarks.lengths import timed_decoder
        from ibtpo import parallel
        from ibtpo.models.config import ModelConfig
        from ibtpo.models.decoder import Decoder
        from ibtpo.sampling import Codec, Question, SamplerOptions, TreeOptions, TreeSampler

        self.job, self.seconds, self.stats, self.lengths = job, [], [], []
        model = ModelConfig(family="qwen3", qk_norm=True, tie_embeddings=True, **job["model"])
        if median := job.get("median_tokens"):
            lengths = dict(prompt_tokens=job["prompt_tokens"], median=median, longest=job["new_tokens"])
            graphdef, params = timed_decoder(model, stops=STOPS, **lengths)
        else:
            graphdef, params = nnx.split(Decoder(model, rngs=nnx.Rngs(0)), nnx.Param)
        mesh = parallel.use_mesh(types.SimpleNamespace(data=-1, fsdp=1, tensor=job.get("tensor", 1)))
        self.params = parallel.shard_params(params, mesh)
        tree = TreeOptions(**dict(top_k=1, branch=1, max_new_tokens=job["new_tokens"]) | job["tree"])
        options = SamplerOptions(
            slots=job["slots"],
            pages=job.get("pool_tokens", 0) // job["page_size"],
            page_size=job["page_size"],
            chunk=CHUNK,
            max_prompt_tokens=job["prompt_tokens"],
            questions_in_flight=job.get("questions_in_flight", 0),
        )
        codec = Codec(model.vocab_size, stop_ids=list(STOPS) if median else [], cut_steps=step_ends)
        self.sampler = TreeSampler(graphdef, model, options, tree, codec)
        rng = np.random.default_rng(0)
        size = (job["questions"], job["prompt_tokens"])
        prompts = rng.integers(FIRST_PROMPT_TOKEN, job["model"]["vocab_size"], size).tolist()
        self.questions = [Question(i, prompt) for i, prompt in enumerate(prompts)]

    def run(self, questions: list | None = None) -> tuple[float, list, object]:
        """(seconds, trees, stats) of these questions, or all."""
        import jax

        from ibtpo.sampling.logits import SamplingParams

        start = time.perf_counter()
        trees, stats = self.sampler(
            self.params, questions or self.questions, grade, key=jax.random.key(0), sampling=SamplingParams()
        )
        return time.perf_counter() - start, trees, stats

    def warm_up(self) -> None:
        self.run(self.questions[: self.job.get("warm_questions")])

    def unfinished(self) -> bool:
        return len(self.seconds) < self.job["repeats"] and sum(self.seconds) < self.job["budget_s"]

    def measure(self) -> None:
        seconds, trees, stats = self.run()
        self.seconds.append(seconds)
        self.stats.append({name: value for name, value in vars(stats).items() if name != "seconds"})
        self.lengths = sorted(len(response.tokens) for tree in trees for response in tree.responses)
        if not self.job.get("median_tokens"):
            assert set(self.lengths) == {self.job["new_tokens"]}

    def result(self) -> dict:
        from benchmarks.peers.measure import peak_rss_mb

        at = {f"p{p}": self.lengths[min(len(self.lengths) - 1, p * len(self.lengths) // 100)] for p in (10, 50, 90)}
        return dict(
            name=self.job["name"],
            seconds=self.seconds,
            tokens=self.stats[0]["generated_tokens"],
            peak_rss_mb=peak_rss_mb(),
            stats={name: statistics.median(stats[name] for stats in self.stats) for name in self.stats[0]},
            lengths=dict(mean=statistics.fmean(self.lengths), **at),
        )


def work() -> None:
    """Reads a JSON list of jobs, warms all up, runs them in turn, and prints one JSON line per job."""
    import jax

    from benchmarks.peers.measure import forget_peak_rss

    workloads = [Workload(job) for job in json.load(sys.stdin)]
    for workload in workloads:
        workload.warm_up()
    forget_peak_rss()
    while any(workload.unfinished() for workload in workloads):
        for workload in workloads:
            if workload.unfinished():
                workload.measure()
    for workload in workloads:
        print(json.dumps(workload.result() | dict(versions=dict(jax=jax.__version__))), flush=True)


if __name__ == "__main__":
    work()
