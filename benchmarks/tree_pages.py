"""Size of the report's tree pages, and how long a browser takes over them (docs/report.md).

    python -m benchmarks.tree_pages                # headless Chromium; --quick: small trees; --json=FILE

Made-up trees of random tokens, which compress worse than text: 100 of twelve responses of 1,000 tokens, and one of 64
responses of 2,048 tokens, forked or side by side. Times are from navigation to the first tree drawn, and from an action
to the next frame, in milliseconds: the median of three pages.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

import numpy as np

from ibtpo.report.page import trees_page
from ibtpo.tree import Response
from ibtpo.whole_files import write_text
from tests.chromium import Browser
from tests.saved_trees.cases import END, SEPARATOR, make_file, step_ends

VOCABULARY = ["", "\n\n", *(f"word{i} " for i in range(3000))]
MEASURE = """(async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => done(performance.now())));
  const time = async (act) => { const start = performance.now(); act(); return (await frame()) - start; };
  const scroller = document.getElementById("tree-scroll");
  const found = { open: performance.now(), nodes: view.layout.drawn.length };
  found.choose = await time(() => view.pick(view.model.data.leaf[5]));
  found.colour = await time(() => view.colourBy("J"));
  found.round = await time(() => view.setRound(Math.max(view.model.rounds - 1, 0)));
  found.zoom = await time(() => view.setZoom(1));
  const frames = [];
  let last = await frame();
  for (let i = 0; i < 60; i++) {
    scroller.scrollBy(60, 25);
    const now = await frame();
    frames.push(now - last);
    last = now;
  }
  found.frame = frames.sort((a, b) => a - b)[30];
  return found;
})()"""


def random_responses(rng, number: int, length: int, initial: int, step: int) -> list[Response]:
    """Responses of `length` tokens in steps of `step`; those after the first `initial` are forked from earlier ones."""
    responses: list[Response] = []
    for index in range(number):
        parent = int(rng.integers(index)) if index >= initial else -1
        fork = int(rng.choice(step_ends(responses[parent].tokens)[:-1])) if parent >= 0 else 0
        own = rng.integers(2, len(VOCABULARY), length - fork).astype(np.int32)
        own[step - 1 :: step], own[-1] = SEPARATOR, END
        log_probs = -rng.exponential(0.3, len(own)).astype(np.float32)
        if fork:
            own = np.concatenate([responses[parent].tokens[:fork], own])
            log_probs = np.concatenate([responses[parent].log_probs[:fork], log_probs])
        made = 0 if index < initial else 1 + (index - initial) // 6
        reward = float(rng.integers(2))
        responses.append(Response(index, parent, fork, made, own, log_probs, "stop", reward))
    return responses


def pages(quick: bool) -> dict[str, list]:
    """{name: lists of responses of each tree}."""
    rng = np.random.default_rng(0)
    count, short, long = (4, 100, 200) if quick else (100, 1000, 2048)
    return {
        f"{count} trees of 12 x {short}": [random_responses(rng, 12, short, 4, 50) for _ in range(count)],
        f"64 x {long}, forked": [random_responses(rng, 64, long, 16, 50)],
        f"64 x {long}, independent": [random_responses(rng, 64, long, 64, 50)],
    }


def measure(quick: bool) -> dict[str, dict[str, float]]:
    """{page: its size in MB and the browser's times}."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(pathlib.Path(folder) / "profile")
        try:
            for name, trees in pages(quick).items():
                path = pathlib.Path(folder) / "page.html"
                write_text(path, trees_page([(name, make_file(trees, words=VOCABULARY))], name))
                runs = []
                for _ in range(3):
                    browser.open(path)
                    browser.wait("document.documentElement.dataset.opened !== undefined")
                    runs.append(browser.run(MEASURE))
                results[name] = {"megabytes": path.stat().st_size / 1e6}
                results[name] |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        finally:
            browser.close()
    return results


def main(argv=None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args(argv)
    results = measure(arguments.quick)
    for name, found in results.items():
        print(f"{name:28}" + "  ".join(f"{key} {value:.3g}" for key, value in found.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
