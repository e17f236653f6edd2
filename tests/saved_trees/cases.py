"""Saved trees for tests: grown by rounds as the sampler grows them, with a policy that needs no model."""

import types

import numpy as np

from ibtpo.config import resolve
from ibtpo.data.problems import Problem
from ibtpo.sampling import Codec
from ibtpo.saved_trees.record import tree_file
from ibtpo.tree import Response, build_tree
from tests.config_cases import runnable

END = 0  # the end-of-sequence token, which is no text
SEPARATOR = 1
WORDS = ["", "\n\n", "a ", "bc ", "7", "+", "=", "é", "x", "the "]


def step_ends(tokens):
    """A step ends with each separator, and at the end."""
    ends = [i + 1 for i, token in enumerate(tokens) if token == SEPARATOR]
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]


def grow(seed, *, initial=3, rounds=4, branch=1, steps=3, tokens=4, words=10, rewards=(0.0, 1.0)):
    """Responses of a tree: `initial` ones, then `branch` more in each round, forked where a step of an earlier one
    ends. steps: of a response at most. tokens: of a step. words: of the vocabulary."""
    rng = np.random.default_rng(seed)
    responses = []
    for index in range(initial + branch * (rounds - 1)):
        made = 0 if index < initial else 1 + (index - initial) // branch
        parent, shared = -1, []
        if made:
            known = [r for r in responses if r.round < made]
            chosen = known[rng.integers(len(known))]
            places = [0, *step_ends(chosen.tokens)[:-1]]
            fork = int(places[rng.integers(len(places))])
            parent, shared = (chosen.index, list(range(fork))) if fork else (-1, [])
        own = []
        for _ in range(int(rng.integers(1, steps + 1))):
            own += [*rng.integers(2, words, int(rng.integers(1, tokens + 1))).tolist(), SEPARATOR]
        own[-1] = END
        before = responses[parent] if shared else None
        log_probs = -rng.exponential(size=len(own)).astype(np.float32)
        responses.append(
            Response(
                index=index,
                parent=parent,
                fork=len(shared),
                round=made,
                tokens=np.array([*(before.tokens[: len(shared)] if before else ()), *own], np.int32),
                log_probs=np.concatenate([before.log_probs[: len(shared)], log_probs]) if before else log_probs,
                finish="stop",
                reward=float(rng.choice(rewards)),
            )
        )
    return responses


def make_policy(words=WORDS):
    """What `tree_file` needs of a policy, for tokens that are these words; "" has a name instead."""
    table = [word if isinstance(word, bytes) else word.encode() for word in words]
    codec = Codec(len(words), stop_ids=[END], token_bytes=table, separator=b"\n\n")
    tokenizer = types.SimpleNamespace(convert_ids_to_tokens=lambda token: f"<|{token}|>")
    return types.SimpleNamespace(codec=codec, text=codec.text, tokenizer=tokenizer)


def make_tree(responses, prompt=(4, 5, 6)):
    return build_tree(list(prompt), responses, step_ends)


def make_file(
    all_responses, *, kind="train", step=20, words=WORDS, questions=None, answer="7", prompt=(4, 5, 6), **changes
):
    """The file of the trees of lists of responses. changes: of the configuration, {"section__key": value}."""
    trees = [make_tree(responses, prompt) for responses in all_responses]
    questions = questions or [f"What is {i}?" for i in range(len(trees))]
    problems = [Problem(i, question, answer, "math") for i, question in enumerate(questions)]
    return tree_file(kind, step, trees, problems, make_policy(words), resolve(runnable(**changes)))
