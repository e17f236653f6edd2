"""A hook of mkdocs (mkdocs.yml): the pages of the site that are no files of docs/.

README.md becomes the first page, and the other texts at the root pages of their own, with their links led there. The
pages of the code name modules, whose docstrings mkdocstrings reads without importing them.
"""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# {page of the site: file of the repository}
TEXTS = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "golden.md": "tests/golden/README.md",
    "js/math_view.js": "ibtpo/templates/math_view.js",
    "LICENSE.txt": "LICENSE",
    "CITATION.txt": "CITATION.cff",
}
# {page: (its title, its modules)}
CODE = {
    "method": (
        "Trees, scores, advantages and the loss",
        ("tree", "ib_score", "advantages", "advantages.options", "advantages.flat", "advantages.trees",
         "advantages.information", "advantages.tokens", "token_weights", "packing.flat", "packing.rows", "losses",
         "objectives", "shaping", "vocabulary"),
    ),
    "sampling": (
        "Sampling",
        ("sampling.interface", "sampling.sampler", "sampling.strategies", "sampling.codec", "sampling.logits",
         "sampling.stops", "sampling.growth", "sampling.engine", "sampling.simulated", "sampling.process", "policy"),
    ),
    "training": (
        "Training",
        ("trainer", "training_run", "supervised", "run_plan", "state", "optimizer", "parallel", "checkpoints.store",
         "checkpoints.find", "metrics.writers", "metrics.sinks", "metrics.cost", "profiling", "config.resolve",
         "config.files", "hub"),
    ),
    "models": (
        "Models and kernels",
        ("models.config", "models.decoder", "models.lora", "models.hf.importing", "models.hf.exporting",
         "models.hf.adapter", "kernels.tree_attention", "kernels.paged_attention"),
    ),
    "data": (
        "Problems",
        ("data.problems", "data.datasets", "data.published", "data.published_problems", "data.hub_sets",
         "data.procedural", "data.navigation", "data.arithmetic", "data.decontaminate", "data.iterator", "data.prompts",
         "data.tokenizer"),
    ),
    "rewards": (
        "Rewards",
        ("rewards", "rewards.pool", "rewards.math", "rewards.multiple_choice", "rewards.instructions",
         "rewards.navigation", "rewards.reasoning_gym", "rewards.terms", "own_code"),
    ),
    "evaluation": (
        "Evaluation and reports",
        ("evaluation.estimators", "evaluation.results", "evaluation.run", "evaluation.suite", "evaluation.compare",
         "report", "report.runs", "report.picture", "saved_trees.files"),
    ),
}  # fmt: skip
# Formulas of a page, which the extension arithmatex has marked, drawn by math_view.js.
MATH = """
for (const formula of document.querySelectorAll(".arithmatex")) {
  const source = formula.textContent;
  formula.textContent = "";
  formula.append(renderMath(source));
}
"""
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_PAGE_OF = {file: page for page, file in TEXTS.items()}


def place(target: str, source: str) -> str:
    """Where a link of a text leads on the site.

    Args:
      target: as it is written in the text, relative to it.
      source: the text's file in the repository.
    """
    if re.match(r"[a-z]+:", target) or target.startswith("#"):
        return target
    path, hash_, anchor = target.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    return _PAGE_OF.get(file, file.removeprefix("docs/")) + hash_ + anchor


def page_of(source: str) -> str:
    """The text of a file of the repository with its links led to the site's pages; code stays as it is."""
    text = (ROOT / source).read_text(encoding="utf-8")
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("`") else _LINK.sub(lambda m: m[1] + place(m[2], source) + m[3], part)
        for part in parts
    )


def code_page(name: str) -> str:
    """The page of some modules."""
    title, modules = CODE[name]
    listed = "".join(f"\n::: ibtpo.{module}\n" for module in modules)
    return f"# {title}\n{listed}"


def on_files(files, config):
    """Adds the pages to those that mkdocs has found."""
    from mkdocs.structure.files import File

    for page, source in TEXTS.items():
        content = page_of(source) if page.endswith(".md") else (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    files.append(File.generated(config, "js/math.js", content=MATH))
    for name in CODE:
        files.append(File.generated(config, f"api/{name}.md", content=code_page(name)))
    return files
