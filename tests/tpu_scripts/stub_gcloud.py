"""A stand-in for gcloud: records its arguments and plays a small world kept in the folder $STUB.

calls.jsonl: the arguments of every call. queued, node: states that `describe` gives, one a line; the last one stays;
no file, no resource; "ERROR" makes the call fail; "ACTIVE until PATH" stays until gs/PATH exists. after_create: the
states of a new queued resource. refuse: words; a call whose arguments hold one of them fails. gs/: the buckets.
workers/N: the workers' home folders; ssh runs its command there if the file `execute` exists, and else prints `answer`.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

STUB = pathlib.Path(os.environ["STUB"])


def error(message: str):
    sys.exit(f"ERROR: (gcloud) {message}")


def lines(name: str, default: str = "") -> list[str]:
    path = STUB / name
    return (path.read_text() if path.exists() else default).splitlines()


def describe(name: str) -> str:
    states = lines(name)
    if not states:
        error("NOT_FOUND: Resource was not found.")
    state, _, until = states[0].partition(" until ")
    if len(states) > 1 and (not until or (STUB / "gs" / until).exists()):
        (STUB / name).write_text("\n".join(states[1:]))
    if state == "ERROR":
        error("UNAVAILABLE: try again")
    return state


def delete(name: str):
    if not (STUB / name).exists():
        error("NOT_FOUND: Resource was not found.")
    (STUB / name).unlink()


def wipe_workers():
    """The machines of the pod go away, with their processes and disks."""
    for pid in (STUB / "workers").glob("*/ibtpo/jobs/*/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(STUB / "workers", ignore_errors=True)


def local(path: str) -> pathlib.Path:
    return STUB / "gs" / path.removeprefix("gs://") if path.startswith("gs://") else pathlib.Path(path)


def storage(verb: str, args: list[str]):
    paths = [a for a in args if not a.startswith("--")]
    source = local(paths[0])
    if verb == "ls" and not source.exists():
        error("One or more URLs matched no objects.")
    elif verb == "du":
        print(4096, paths[0])
    elif verb == "rsync":
        if not source.is_dir():
            error(f"Did not find existing container at: {paths[0]}")
        if not paths[1].startswith("gs://") and not local(paths[1]).is_dir():
            error(f"no folder {paths[1]}")
        shutil.copytree(source, local(paths[1]), dirs_exist_ok=True)
    elif verb == "cp" and paths[1] == "-":
        sys.stdout.buffer.write(source.read_bytes())
    elif verb == "cp":
        local(paths[1]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, local(paths[1]))


def ssh(flags: dict[str, str]) -> int:
    if not (STUB / "execute").exists():
        print((STUB / "answer").read_text() if (STUB / "answer").exists() else "", end="")
        return 0
    count = int((STUB / "workers_count").read_text())
    chosen = range(count) if flags["--worker"] == "all" else [int(flags["--worker"])]
    codes = []
    for worker in chosen:
        home = STUB / "workers" / str(worker)
        home.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"HOME": str(home), "IBTPO_WORKER": str(worker)}
        result = subprocess.run(["bash", "-c", flags["--command"]], cwd=home, env=env, capture_output=True, text=True)
        if "--output-directory" in flags:
            (pathlib.Path(flags["--output-directory"]) / f"{worker}.log").write_text(result.stdout)
        else:
            print(result.stdout, end="", flush=True)
        print(result.stderr, end="", file=sys.stderr, flush=True)
        codes.append(result.returncode)
    return next((code for code in codes if code), 0)


def main(argv: list[str]) -> int:
    with (STUB / "calls.jsonl").open("a") as file:
        file.write(json.dumps(argv) + "\n")
    if any(word in " ".join(argv) for word in lines("refuse")):
        error("PERMISSION_DENIED: no")
    flags = dict(a.split("=", 1) for a in argv if a.startswith("--") and "=" in a)
    match argv:
        case ["storage", verb, *args]:
            storage(verb, args)
        case ["compute", "tpus", _, "list", *_]:
            pass
        case ["compute", "tpus", "queued-resources", "create", *_]:
            (STUB / "queued").write_text("\n".join(lines("after_create", "ACTIVE")))
            (STUB / "node").write_text("READY")
        case ["compute", "tpus", "queued-resources", "describe", *_]:
            print("state: shown" if "yaml" in flags["--format"] else describe("queued"))
        case ["compute", "tpus", "queued-resources", "delete", *_]:
            delete("queued")
            wipe_workers()
            if not (STUB / "node_stays").exists():
                (STUB / "node").unlink(missing_ok=True)
        case ["compute", "tpus", "tpu-vm", "describe", *_]:
            if "len()" in flags["--format"]:
                print((STUB / "workers_count").read_text())
            else:
                print(describe("node"))
        case ["compute", "tpus", "tpu-vm", "delete", *_]:
            delete("node")
        case ["compute", "tpus", "tpu-vm", "ssh", *_]:
            return ssh(flags)
        case ["compute", "tpus", "tpu-vm", "scp", source, *_]:
            (STUB / "copied").write_text(pathlib.Path(source).read_text())
            (STUB / "copied_mode").write_text(oct(pathlib.Path(source).stat().st_mode & 0o777))
        case _:
            error(f"the stub does not know {argv}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
