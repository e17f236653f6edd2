"""The command that compiles for absent chips: its arithmetic here, the TPU compiler where libtpu is installed."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import tiny
from ibtpo import compile_check, hlo, parallel
from ibtpo.config import ConfigError, resolve
from ibtpo.kernels.tree_attention_tpu import Blocks
from ibtpo.models.config import ModelConfig
from ibtpo.sampling.strategies import TreeOptions
from ibtpo.state import make_log_probs

ROOT = pathlib.Path(__file__).resolve().parent.parent
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
MODEL = ModelConfig("qwen3", 256, 64, 128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, qk_norm=True)


# --- a tree and what is visible in it -------------------------------------------------------------------------------


def visible(subtree_end):
    i = np.arange(len(subtree_end))
    return (i[None, :] <= i[:, None]) & (i[:, None] < subtree_end[None, :])


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5), st.integers(1, 40))
def test_visible_pairs_and_blocks_are_those_of_the_mask(seed, initial, rounds, prompt):
    options = TreeOptions(initial=initial, rounds=rounds, max_new_tokens=200, min_new_tokens=1)
    end = compile_check.representative_tree(options, prompt, seed).subtree_end[0]
    mask = visible(end)
    assert compile_check.visible_pairs(end) == mask.sum()
    num_key = -(-len(end) // 128)
    blocks = Blocks(query=64, key=128, num_query=2 * num_key, num_key=num_key)
    padded = np.zeros((blocks.num_tokens,) * 2, bool)
    padded[: len(end), : len(end)] = mask
    seen = padded.reshape(blocks.num_query, 64, num_key, 128).any(axis=(1, 3))
    causal = np.tri(blocks.num_tokens, dtype=bool).reshape(blocks.num_query, 64, num_key, 128).any(axis=(1, 3))
    # On the diagonal the kernel visits every block, also where all of it is padding.
    seen |= np.arange(blocks.num_query)[:, None] // 2 == np.arange(num_key)
    causal |= np.arange(blocks.num_query)[:, None] // 2 == np.arange(num_key)
    assert compile_check.visible_blocks(end, blocks) == (seen.sum(), causal.sum())


def test_the_representative_tree_is_the_papers():
    options = TreeOptions(initial=4, rounds=9, top_k=1, branch=1, max_new_tokens=2048, min_new_tokens=16)
    tree = compile_check.representative_tree(options, 100)
    assert tree.response_node.shape == (1, 12)
    assert (tree.response_length == 2048).all()
    assert np.bincount(tree.response_round[0]).tolist() == [4, 1, 1, 1, 1, 1, 1, 1, 1]
    tokens = tree.tokens.shape[1]
    # Four whole responses, and of each later one what lies behind its fork: half of it on average.
    assert 100 + 4 * 2048 + 8 * 2048 * 0.3 < tokens < 100 + 4 * 2048 + 8 * 2048 * 0.7
    again = compile_check.representative_tree(options, 100)
    np.testing.assert_array_equal(tree.subtree_end, again.subtree_end)


def test_independent_responses_share_the_prompt_alone():
    options = TreeOptions(strategy="independent", initial=3, rounds=1, max_new_tokens=50)
    tree = compile_check.representative_tree(options, 10)
    assert tree.tokens.shape == (1, 10 + 3 * 50)
    expected = 10 * 11 // 2 + 3 * (50 * 10 + 50 * 51 // 2)
    assert compile_check.visible_pairs(tree.subtree_end[0]) == expected


# --- the model's own FLOPs ------------------------------------------------------------------------------------------


def small(**changes):
    """tiny.py with sizes that compile in seconds."""
    config = tiny.get_config()
    config.data.max_prompt_tokens = 16
    config.sampling.max_new_tokens = 16
    config.sampling.slots, config.sampling.page_size, config.sampling.chunk = 4, 16, 4
    config.sampling.questions_in_flight = 2
    config.train.row_tokens = 0
    config.train.questions_per_step, config.train.rows_per_step = 4, 2
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return resolve(config)


def test_rows_shorter_than_a_tree_hold_pieces_of_it():
    whole, pieces = (compile_check.make_work(small(train__row_tokens=n), MODEL) for n in (0, 32))
    assert pieces.row_tokens == 32 < pieces.tree_tokens == whole.tree_tokens
    assert pieces.rows % 2 == 0 and pieces.rows >= 4 * pieces.tree_tokens / 32
    # Of four trees; means are rounded down, and rows up to whole microbatches.
    real = 4 * pieces.tree_tokens
    assert 0.9 * real <= pieces.rows * pieces.unique_tokens <= 1.2 * real
    assert len(pieces.subtree_end) == 32 and compile_check.visible_pairs(pieces.subtree_end) >= pieces.pairs


@pytest.fixture
def check(monkeypatch):
    """Builds a Check of a small config on the CPU, told to be a chip."""

    def build(limit=1e9, **changes):
        chip = hlo.Chip("test", flops=1e12, hbm_bytes=1e9, hbm_bandwidth=1e11, ici_bandwidth=1e10)
        monkeypatch.setitem(hlo.CHIPS, jax.devices()[0].device_kind, chip)
        monkeypatch.setattr(compile_check, "load_model_config", lambda config: MODEL)
        config = small(**changes)
        return compile_check.Check(config, parallel.make_mesh(config.mesh, jax.devices()[:1]), limit)

    return build


def test_own_flops_are_those_of_the_compiled_forward_pass(check):
    made = check()
    rows, tokens = 2, 128  # one block of queries: attention computes all pairs of it
    shape = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    batch = dataclasses.replace(made.batch(), **{f.name: shape for f in dataclasses.fields(made.batch())})
    forward = make_log_probs(made.graphdef, temperature=1.0, rows_per_step=rows, token_block=128)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.params)
    total = hlo.analyse(forward.lower(params, batch).compile().as_text()).total
    # A third of an update's: the backward pass costs twice the forward pass.
    own = compile_check.own_flops(MODEL, rows * tokens, rows * tokens**2) / 3
    assert total.flops == pytest.approx(own, rel=0.01)


def test_matmul_params_are_the_matrices_of_the_decoder(check):
    params = check().params
    flat = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    matrices = sum(x.size for name, x in flat.items() if not any(w in name for w in ("norm", "bias", "embedding")))
    assert compile_check.matmul_params(MODEL) == matrices


# --- the whole report, with this machine's compiler -----------------------------------------------------------------


@pytest.fixture
def reported(check):
    made = check()
    for name, lower in made.lowered().items():
        made.compile(name, lower)
    return made


def test_the_whole_report(reported):
    made = reported
    assert list(made.reports) == ["serve", "prefill", "start", "decode", "release", "recompute", "reference", "update"]
    assert made.advice() == []

    update = made.update_flops()
    # Rows hold the tree's tokens once, and nothing is recomputed but blocks of attention and logits. Of XLA's attention
    # the most pairs count that a block may see, since how many it does see is known at run time only.
    assert 1.0 < update["ratio"] < 2.5
    step = made.decode_step()
    assert step["ratio"] >= 1.0
    assert step["weights"] == 4 * (compile_check.matmul_params(MODEL)) + norm_bytes(made)

    report = compile_check.as_json(made)
    assert json.loads(json.dumps(report))["programs"]["update"]["fits"]
    assert {"name", "value", "goal", "met"} == set(report["goals"][0])
    text = compile_check.show(made)
    assert "Everything fits." in text and "kernels: none" in text
    assert [line for line in text.splitlines() if len(line) > 100] == []


def norm_bytes(made):
    flat = jax.tree_util.tree_leaves_with_path(made.params)
    return 4 * sum(x.size for path, x in flat if "norm" in jax.tree_util.keystr(path))


def test_a_larger_pool_costs_its_pages(check):
    """Pool bytes are linear in the pages, which is what the largest pool is computed from."""
    needs, rooms = [], []
    for pages in (48, 96):
        made = check(sampling__pages=pages)
        made.compile("decode", made.lowered()["decode"])
        needs.append(made.need(made.reports["decode"]))
        rooms.append(made.capacity())
    page = rooms[0]["page_bytes"]
    assert page == 2 * MODEL.num_kv_heads * MODEL.num_layers * 16 * MODEL.head_dim * 4
    assert needs[1] - needs[0] >= 48 * page
    assert rooms[0]["pages"] > 96


def test_what_does_not_fit_says_by_how_much_and_which_knob(check):
    made = check(model__remat="none")
    made.compile("update", made.lowered()["update"])
    need, state = made.need(made.reports["update"]), compile_check.chip_bytes(made.state)
    assert made.advice() == [] and need > state

    made.limit = 0.9 * state  # not even the state fits: only what splits it, or leaves some of it out, helps
    (line,) = made.advice()
    assert line.startswith(f"update needs {need / 2**30:.2f} GiB per chip, {(need - made.limit) / 2**30:.2f} too many")
    assert "mesh.fsdp=1" in line and "loss.kl=0" in line and "remat" not in line
    assert not made.goals()[0]["met"]

    made.limit = state + 0.3 * (need - state)  # the activations do not
    (line,) = made.advice()
    assert "model.remat=full (now none)" in line and "train.rows_per_step=1 (now 2)" in line


def test_a_pool_that_does_not_fit_names_the_one_that_does(check):
    made = check()
    made.compile("decode", made.lowered()["decode"])
    made.limit = made.need(made.reports["decode"]) - 10 * made.capacity()["page_bytes"]
    pages = made.sampler.num_pages - 10
    assert made.capacity()["pages"] == pages
    (line,) = made.advice()
    assert f"sampling.pages={pages} or fewer (now {pages + 10})" in line


def test_a_program_that_the_compiler_refuses_is_reported(check):
    made = check()

    def refuse():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (24.12G) "
            "exceeds available HBM (15.75G)."
        )

    report = made.compile("decode", refuse)
    assert report.exceeded == pytest.approx((24.12 - 15.75) * 2**30)
    assert made.decode_step() is None and not made.goals()[0]["met"]
    (line,) = made.advice()
    assert line.startswith("decode needs ")
    assert compile_check.show(made)


def test_other_compiler_errors_are_not_hidden(check):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed")

    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic"):
        check().compile("update", fail)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("required for HLO temporaries (1.56T) exceeds available HBM (15.75G).", (1.56 * 2**40, 15.75 * 2**30)),
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", (20.5 * 2**30, 15.75 * 2**30)),
        ("INTERNAL: something else", None),
    ],
)
def test_the_compilers_complaint_is_read(message, expected):
    assert compile_check._exceeded(message) == expected


# --- what a user sees -----------------------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ibtpo.compile_check", "--config=configs/tiny.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
    result = command("--topology=v5e:2x2")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error:") and "requirements-tpu.txt" in line


def test_libtpu_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"-r requirements-tpu\.txt"):
        compile_check.get_devices("v5e:2x2")


def test_a_missing_topology_is_asked_for():
    result = command()
    assert result.returncode == 2 and "--topology is missing" in result.stderr and "v5e:4x4" in result.stderr


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu (requirements-tpu.txt)")
@pytest.mark.parametrize("name", ["v9:2x2", "nonsense", "v5e:3x5"])
def test_an_unknown_topology_is_one_line_with_examples(name):
    with pytest.raises(ConfigError, match="v5p:2x2x2") as error:
        compile_check.get_devices(name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu (requirements-tpu.txt)")
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v5e:1x1"])
def test_every_generation_has_one_device_per_chip(name):
    devices = compile_check.get_devices(name)
    assert len(devices) == np.prod([int(n) for n in name.split(":")[1].split("x")])
    chip = hlo.CHIPS[devices[0].device_kind]
    assert chip.name == name.split(":")[0]
    assert 0.9 * chip.hbm_bytes < compile_check.usable_hbm(devices[0]) < 1.01 * chip.hbm_bytes


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu (requirements-tpu.txt)")
def test_the_command_compiles_for_a_tpu():
    result = command(
        "--topology=v5e:2x2",
        "--json",
        "--programs=serve,start,decode",
        "--config.mesh.data=-1",
        "--config.mesh.tensor=2",
        "--config.sampling.pages=512",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert report["chips"] == 4 and report["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
    assert set(report["programs"]) == {"serve", "start", "decode"}
    assert report["decode_step"]["bytes"] > 0 and report["capacity"]["pages"] > 512
    assert {"name", "value", "goal", "met"} == set(report["goals"][0])
