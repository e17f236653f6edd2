"""Two processes save and restore as one does, and what goes wrong on one ends both."""

import subprocess
import sys

from tests.test_multihost import run_python

KINDS = ("restored", "failed", "refused", "left")
SINGLE = """
import sys, numpy as np, jax
from ibtpo.checkpoints import load_params
like = {"w": np.zeros((8, 6), np.float32), "b": np.zeros(3, np.float32)}
found = load_params(sys.argv[1], jax.tree.map(jax.numpy.asarray, like))
rng = np.random.default_rng(3)
print(np.array_equal(found["w"], rng.standard_normal((8, 6)).astype(np.float32)), found["b"].tolist())
"""


def test_two_hosts_save_fall_back_and_fail_together(repo_root, tmp_path):
    folder = tmp_path / "run"
    command = ["-m", "tests.checkpoints.two_hosts", str(folder)]
    codes, outputs = run_python(repo_root, command, devices=2, processes=2, timeout=240)
    assert codes == [0, 0], outputs
    for process, output in enumerate(outputs):
        said = [line for line in output.splitlines() if line.startswith(KINDS)]
        assert said[0] == "restored: {'at': 1} True 1", output
        for failing in (0, 1):
            where = "" if process == failing else f" (on process {failing})"
            why = f"({'No space left on device' + where}): step 1 is complete"
            assert said[1 + failing].startswith(f"failed on {failing}: checkpoint {folder}/checkpoints/3 could not be")
            assert why in said[1 + failing]
        assert said[3] == "refused: the problems differ here" + " (on process 1)" * (process == 0)
        assert said[4] == "left: ['1', '2.damaged', '3']"
    assert outputs[0].count("Damaged checkpoint is set aside") == 1 and "Damaged" not in outputs[1]
    # One host with one device reads, and checks, what four devices of two hosts had.
    command = [sys.executable, "-c", SINGLE, str(folder)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "True [3.0, 3.0, 3.0]", done.stderr
