"""Compiles a run's programs for a TPU topology that is not there, and says whether they fit and what they cost.

    python -m ibtpo.compile_check --config=configs/qwen7b.py --topology=v5e:4x4

The real update and the real programs of the sampler go through the real TPU compiler (pip install -r
requirements-tpu.txt; any x86 Linux machine). No weights are read: config.model.path needs its config.json at most.
Everything is per chip. FLOPs and bytes are counted in the compiled programs (ibtpo/compiler/costs.py), times are what
the chip's published peaks allow at best, and memory is the compiler's own. A whole step is the scheduler on a
simulated device, each program at its price, beside the step of 8 and of 12 independent responses; lengths are those of
the paper's figures, or with --lengths=RUN those of an earlier run. --search tries other sizes and names the fastest
that fit. Goals are at the end; with --json the last line holds everything. The exit code is 0 if everything fits, 1 if
not.
"""

import json
import sys

from absl import flags

from ibtpo import config as config_lib

_TOPOLOGY = flags.DEFINE_string("topology", None, "chips to compile for, by JAX's name, e.g. v5e:4x4 or v5p:2x2x2")
_PROGRAMS = flags.DEFINE_list("programs", [], "compile only these of the programs, e.g. decode,update")
_LENGTHS = flags.DEFINE_string("lengths", "", "workdir of a run whose response lengths the simulated step has")
_SEARCH = flags.DEFINE_bool(
    "search", False, "also find the fastest slots, questions in flight and rows at a time, and compare tree shapes"
)
_JSON = flags.DEFINE_bool("json", False, "print one JSON object with everything as the last line, and no table")


def main(config, workdir: str | None = None) -> int:
    """Exit code 0 if everything fits, 1 if not."""
    chips = _TOPOLOGY.value
    if not chips:
        raise config_lib.ConfigError("--topology is missing: name the chips, e.g. --topology=v5e:4x4")
    import jax

    # The program itself runs on the CPU: nothing here may look for an accelerator.
    jax.config.update("jax_platforms", "cpu")

    from ibtpo.compiler.check import check_config
    from ibtpo.compiler.conclusions import advice
    from ibtpo.compiler.search import Searcher
    from ibtpo.compiler.show import as_json, show, show_half, show_search, show_steps
    from ibtpo.compiler.step import can_price, half_the_pages, process_of, step_of

    def log(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    process = process_of(config, _LENGTHS.value)
    check = check_config(config, chips, _PROGRAMS.value, log)
    steps, tight, search = [], None, None
    if can_price(check):
        log("simulating a step\n")
        steps = step_of(check, process)
        tight = half_the_pages(check, process, steps[0])
    if steps and _SEARCH.value:
        search = Searcher(check, process, lambda c, names: check_config(c, chips, names, log), log).run()
    if _JSON.value:
        print(json.dumps(as_json(check, steps, tight, search)))
    else:
        print(show(check))
        if tight:
            print(f"\n{show_steps(steps)}\n{show_half(tight, steps[0])}")
        if search:
            print(f"\n{show_search(search)}")
        elif _SEARCH.value:
            print("\nNothing was searched: it begins with sizes that fit, and with all programs compiled.")
    return 1 if advice(check) else 0


if __name__ == "__main__":
    config_lib.run(main, needs_workdir=False, writes_workdir=False)
