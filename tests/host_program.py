"""A job of several processes, as `ibtpo.training_run` has them, with a sum over all in place of an update:
python -m tests.host_program MODE PHASE-FILE. Used by tests/test_hosts.py."""

import pathlib
import sys
import time

from ibtpo.interruption import GivenUp, Interruption


def main(mode: str, folder: str) -> None:
    with Interruption().listening() as interruption:
        import jax
        import numpy as np
        from jax.experimental import multihost_utils

        from ibtpo import hosts, parallel
        from ibtpo.errors import UserError

        if mode == "alone":
            parallel.CONNECT_SECONDS = 3
        interruption.grace = 0.0 if mode == "give up" else 60.0
        with hosts.connected(5.0, interruption):
            me = jax.process_index()
            step = 0
            try:
                while step < (3 if mode == "to the end" else 10**6):
                    if hosts.stop_between_updates(interruption, step):
                        raise GivenUp
                    with interruption.update():
                        for _ in range(5):
                            interruption.sampling()
                            multihost_utils.process_allgather(np.array(step))
                            time.sleep(0.02)
                        if mode == "early":
                            time.sleep(3600)
                    step += 1
                    if step == 3 and mode == f"fails on {me}":
                        raise UserError("a file that only this host lacks")
                    if step == 3 and mode == f"crashes on {me}":
                        raise ZeroDivisionError("a fault of the program")
                    if step == 3 and mode == "fails on both":
                        raise UserError("a file that all lack")
                    pathlib.Path(folder, f"{me}").write_text(str(step))
            except GivenUp:
                print(f"{interruption.reason}: stopped at {step}", flush=True)
                return
        print(f"done at {step}", flush=True)


def run() -> None:
    from ibtpo.errors import RunFailure, UserError

    try:
        main(*sys.argv[1:])
    except (UserError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
