"""Every file of the newest checkpoint truncated, emptied, deleted, replaced, and with single bits flipped.

Three checkpoints of a small state are saved, with everything that a run's have. Each damage is done to a fresh copy and
the run restored from it: it must name the step and the file, and go on from the step before with exactly what was
saved. Then once more with the limit up to which files have checksums of their own below the size of the data files, as
it is for a large model, where the sums of the arrays alone must tell: a flip that changes no array is then no damage.
Readers (evaluation, export) are tried on the same damage. At last whole processes: a damaged run that is resumed, and a
save that finds the disk full.
"""

import concurrent.futures
import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.faults import harness
from benchmarks.goals import make_goal

STEPS = (1, 2, 3)
HANGS_AFTER = 300.0  # seconds


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    """Goals: silent wrong restores and hangs 0; all named or fallen back. figures: by kind of damage."""
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    with harness.folder() as folder:
        for large in (False, True):
            trial = Trial(folder / f"run-{large}", large=large)
            cases = list(trial.cases())
            cases = cases[:: max(1, len(cases) // 25)] if quick else cases
            for number, (name, kind, damage) in enumerate(cases, 1):
                outcome = trial.outcome(name, kind, damage)
                outcomes[outcome] += 1
                kinds[kind] += 1
                if outcome not in ("fallen back", "equal"):
                    failures.append(f"{name} {kind}: {outcome}")
                    say(failures[-1])
                if number % 50 == 0 or number == len(cases):
                    say(f"{number}/{len(cases)}{' with the sums of arrays alone' * large}: {dict(outcomes)}")
        processes = whole_processes(folder, say)
    tried = sum(outcomes.values())
    good = outcomes["fallen back"] + outcomes["equal"]
    ended = sum(processes.values())
    return {
        "goals": [
            make_goal("silent wrong restores", outcomes["silent"], 0, at_least=False),
            make_goal("hangs", outcomes["hang"], 0, at_least=False),
            make_goal("named or fallen back / tried", good / tried, 1.0, at_least=True),
            make_goal("whole processes that end as said / tried", ended / len(processes), 1.0, at_least=True),
        ],
        "figures": {
            "tried": tried,
            "outcomes": dict(outcomes),
            "kinds": dict(kinds),
            "processes": processes,
            "failures": failures,
        },
    }


class Trial:
    """Three checkpoints in a folder, and what restoring says after a damage to the newest.

    large: data files have no checksum of their own.
    """

    def __init__(self, folder: pathlib.Path, *, large: bool):
        from ibtpo.checkpoints import Checkpoints, manifest

        self.folder, self.large = folder, large
        self.states = {step: small_state(step) for step in STEPS}
        most, manifest.MOST_CHECKED = manifest.MOST_CHECKED, 32 * 2**10 if large else manifest.MOST_CHECKED
        try:
            with Checkpoints(folder, keep=len(STEPS)) as store:
                for step, state in self.states.items():
                    store.save(state, {"at": step}, {"model": "small"})
        finally:
            manifest.MOST_CHECKED = most
        self.newest = folder / "checkpoints" / str(STEPS[-1])
        shutil.copytree(self.newest, folder / "whole")

    def cases(self) -> Iterator[tuple[str, str, Callable[[pathlib.Path], None]]]:
        """(file, kind of damage, what does it) of all; with `large`, of the files that have no checksum."""
        rng = np.random.default_rng(0)
        for file in sorted(path for path in self.newest.rglob("*") if path.is_file()):
            name, size = str(file.relative_to(self.newest)), file.stat().st_size
            if self.large and size <= 32 * 2**10:
                continue
            yield name, "cut in half", lambda path: os.truncate(path, path.stat().st_size // 2)
            yield name, "emptied", lambda path: os.truncate(path, 0)
            yield name, "deleted", pathlib.Path.unlink
            yield name, "replaced", lambda path: path.write_bytes(bytes(rng.bytes(path.stat().st_size)))
            flips = 40 if self.large else 6 if "/d/" in name else 3
            for place in sorted({0, size - 1, *rng.integers(0, size, flips - 2).tolist()}):
                bit = int(rng.integers(8))
                yield name, "a bit flipped", lambda path, place=place, bit=bit: flip(path, place, bit)

    def outcome(self, name: str, kind: str, damage: Callable[[pathlib.Path], None]) -> str:
        """In a word, what restoring and reading do: "fallen back", "equal" (nothing that counts was changed), or a
        fault: "silent", "hang", or what is wrong."""
        shutil.rmtree(self.newest, ignore_errors=True)
        shutil.copytree(self.folder / "whole", self.newest)
        damage(self.newest / name)
        pool = concurrent.futures.ThreadPoolExecutor(1)
        try:
            return pool.submit(self._outcome, name).result(HANGS_AFTER)
        except concurrent.futures.TimeoutError:
            return "hang"
        finally:
            pool.shutdown(wait=False)
            for aside in self.newest.parent.glob("*.damaged*"):
                shutil.rmtree(aside)

    def _outcome(self, name: str) -> str:
        from ibtpo.checkpoints import Checkpoints

        reader = self._read(name)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                with Checkpoints(self.folder, keep=len(STEPS)) as store:
                    state, position = store.restore(small_state(0))
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:200]}"
        step = int(state.step)
        if step not in STEPS or position != {"at": step} or not same(state, self.states[step]):
            return "silent"
        if step == STEPS[-1]:
            return "equal" if self.large and reader != "silent" else "not noticed"
        if step != STEPS[-2] or reader == "silent":
            return reader if reader == "silent" else f"went on from step {step}"
        item = name.split("/")[0]
        named = f" {STEPS[-1]} ({item}" in said.getvalue() and f"{STEPS[-1]}.damaged" in said.getvalue()
        return "fallen back" if named and reader == "named" else f"reader {reader}, said {said.getvalue()!r}"

    def _read(self, name: str) -> str:
        from ibtpo.checkpoints import load_params
        from ibtpo.errors import UserError

        newest = self.states[STEPS[-1]].params
        try:
            found = load_params(self.folder, newest)
        except UserError as error:
            return "named" if f"{self.newest} is damaged ({name.split('/')[0]}" in str(error) else str(error)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        # An intact item in a damaged checkpoint may be read where files have no checksums.
        return "silent" if not same(found, newest) else "named" if self.large and "params" not in name else "equal"


def flip(path: pathlib.Path, place: int, bit: int) -> None:
    """Flips one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def small_state(step: int) -> Any:
    """A training state of a few hundred kilobytes with everything a run's has; its numbers differ with the step."""
    import jax
    from flax import nnx
    from jax import numpy as jnp
    from ml_collections import ConfigDict

    from ibtpo.models.config import ModelConfig
    from ibtpo.models.decoder import Decoder
    from ibtpo.optimizer import make_optimizer
    from ibtpo.state import create_state

    sizes = dict(vocab_size=400, embed_dim=64, mlp_dim=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32)
    model = ModelConfig("qwen3", tie_embeddings=True, qk_norm=True, **sizes)
    numbers = dict(learning_rate=1e-2, warmup_steps=2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    optimizer, _ = make_optimizer(ConfigDict(numbers | dict(schedule="cosine", first_moment_dtype="float32")), 6)

    def make() -> Any:
        params = nnx.split(Decoder(model, rngs=nnx.Rngs(0)), nnx.Param)[1]
        return create_state(params, optimizer, jax.random.key(0), keep_reference=True)

    rng = np.random.default_rng(step)

    def fill(x: jax.ShapeDtypeStruct) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(step)
        return jnp.asarray(rng.standard_normal(x.shape), x.dtype)

    return jax.tree.map(fill, jax.eval_shape(make)).replace(step=jnp.asarray(step, jnp.int32))


def same(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal bit for bit."""
    import jax
    from jax import numpy as jnp

    def data(x: Any) -> bytes:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return all(data(a) == data(b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def whole_processes(folder: pathlib.Path, say: Callable[[str], None]) -> dict[str, bool]:
    """{what is done to a training process: whether it ended as it should}."""
    found = {}
    workdir = folder / "process"
    harness.run(harness.train_command(workdir, {"checkpoint.keep": 3}), 900)
    [newest] = [path for path in (workdir / "checkpoints").iterdir() if path.name == "6"]
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flip(file, file.stat().st_size // 2, 3)
    ended = harness.run(harness.train_command(workdir, {"checkpoint.keep": 3}), 900)
    found["a damaged newest checkpoint: goes on from the one before"] = (
        ended.code == 0 and "goes on from step 4" in ended.output and (newest.parent / "6.damaged").is_dir()
    )
    with full_disk(folder / "disk") as (command, place):
        began = time.monotonic()
        ended = harness.run(command(harness.train_command(folder / "full", {"checkpoint.dir": place})), 900)
        say(f"disk full: code {ended.code} after {time.monotonic() - began:.0f} s, {len(ended.lines)} lines")
        errors = [line for line in ended.lines if line.startswith("error: ")]
        found["a save finds the disk full: one line, code 1"] = (
            ended.code == 1 and len(errors) == 1 and "could not be saved" in errors[0]
            and "Traceback" not in ended.output and not any(p.name.isdigit() for p in pathlib.Path(place).iterdir())
        )
    for name, good in found.items():
        say(f"{name}: {'yes' if good else 'NO: ' + ended.output[-500:]}")
    return found


@contextlib.contextmanager
def full_disk(folder: pathlib.Path) -> Iterator[tuple[Callable[[list[str]], list[str]], pathlib.Path]]:
    """(what makes of a command one for which it is full, a folder on it): a small file system where one can be mounted,
    else a limit on the size of the process's files."""
    folder.mkdir()
    mounted = False
    if os.geteuid() == 0 and shutil.which("mount"):
        command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0

    def limited(command: list[str]) -> list[str]:
        program = (
            "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17)); "
            f"sys.argv = {command[1:]!r}; runpy.run_module({command[1]!r}, run_name='__main__', alter_sys=True)"
        )
        return ["-c", program]

    try:
        yield (list if mounted else limited), folder / "checkpoints"
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
