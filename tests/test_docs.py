"""The documents: links that lead somewhere, commands that their programs understand, and a site without warnings.

A command of ibtpo is parsed as the program does it, in the folder of the checkout: config, keys, values, flags. What is
another program's is known here by name: with files, targets, scripts and extras that have to be there. Commands for a
pod are those of gcloud and of `tpu_scripts/`, which run dry in tests/tpu_scripts.
"""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/golden/README.md"]
TEXTS += [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]
# Other programs: what they are for is their own affair.
FOREIGN = {"tensorboard", "wandb", "trackio", "hf", "gcloud", "cp", "import", "from"}
POD = re.compile(r"(HF_TOKEN=\S+ )?tpu_scripts/(\w+)\.sh")


def site():
    """The module of the hook that makes the site's other pages."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "assets" / "docs_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def slug(heading: str) -> str:
    """The anchor of a heading, as the web's Markdown makes it."""
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", heading.strip()).replace("`", "").lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|^    .*?$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_within_the_repository_leads_to_a_file_and_a_heading(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.is_file(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ +(.+)$", re.sub(r"(?ms)^```.*?^```", "", file.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name}: {target}"


def commands(name: str) -> list[str]:
    """The command lines of a text: those of indented blocks and of blocks in bash, continuations joined."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"(?ms)^```(?!bash)\w*$.*?^```$", "", text)
    blocks = re.findall(r"(?m)^    (\S.*)$", text) + "".join(re.findall(r"(?ms)^```bash\n(.*?)^```", text)).splitlines()
    program = r"(?:[A-Z_]+=\S+ )*(?:\S*python|ibtpo [a-z-]+|make|pip|tensorboard|wandb|hf|gcloud|tpu_scripts/\S+) "
    return [line.strip() for line in blocks if re.match(rf"{program}|\.\.\. --|--config\.", f"{line.strip()} ")]


def split(command: str) -> list[str]:
    """Its words without settings of the environment; <names> and the rest of a pipe are none of its own."""
    words = shlex.split(re.sub(r"<(\w+)>", r"\1", command), comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words[: words.index("|")] if "|" in words else words


# Reads [module, arguments] as the program would, up to what it does with them, and says what is wrong.
PARSE = """
import functools, importlib, io, contextlib, json, sys
from absl import flags
from ibtpo import config
from ibtpo.errors import UserError
from ibtpo.profiling import Profile
NAMES = ("train", "evaluate", "export", "sft", "compile_check")
MODULES = {name: importlib.import_module("ibtpo." + name) for name in NAMES}
sft = config.resolve_by(config.SFT_RULES, "x")
RESOLVE = {"sft": sft, "evaluate": functools.partial(config.resolve, training=False)}
for name, arguments in json.load(sys.stdin):
    try:
        if name in MODULES:
            flags.FLAGS.unparse_flags()
            resolve = RESOLVE.get(name, config.resolve)
            config.parse_flags(["x", *arguments], resolve=resolve, needs_workdir=False, command=f"ibtpo.{name}")
        elif name == "report":
            from ibtpo.report import command
            command._write = command.check_runs = command.run_names = lambda *_: "x"
            with contextlib.redirect_stdout(io.StringIO()):
                command.main(arguments)
        print("ok")
    except UserError as error:
        print(f"{name} {arguments}: {error}")
    except SystemExit as error:
        print(f"{name} {arguments}: ends with {error.code}")
"""


def program_of(words: list[str]) -> tuple[str, list[str]] | None:
    """(module of ibtpo without "ibtpo.", arguments) of a command; None of another program."""
    if words[0] == "ibtpo":
        return words[1].replace("-", "_"), words[2:]
    if words[0].endswith("python") and words[1:2] == ["-m"] and words[2].startswith("ibtpo."):
        return words[2].removeprefix("ibtpo."), words[3:]
    if words[0] == "..." or words[0].startswith("--config."):  # what a command of the text before has more
        source = [] if any("data.source" in word for word in words) else ["--config.data.source=tfds:gsm8k"]
        return "train", ["--config=base", "--config.model.path=x", *source, *words[words[0] == "..." :]]
    return None


def test_every_command_of_ibtpo_is_understood(tmp_path):
    """Beside mine.py of docs/extending.md, which some of them name."""
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text(code[1])
    found = {}
    for name in TEXTS:
        for command in commands(name):
            words = split(command)
            program = program_of(words)
            # A comparison of evaluations and the pages of keys have parsers of their own.
            if program and not any(word.startswith("--compare") for word in words) and program[0] != "reference":
                found[f"{name}: {command}"] = program
    assert len(found) > 30
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    line = [sys.executable, "-c", PARSE]
    asked = json.dumps(list(found.values()))
    done = subprocess.run(line, cwd=ROOT, env=environment, input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if line]
    wrong = {command: said for command, said in zip(found, answers, strict=True) if said != "ok"}
    assert wrong == {}


def check_foreign(words: list[str]) -> str:
    """What is wrong with a command of another program, "" where nothing is known to be."""
    makefile = (ROOT / "Makefile").read_text()
    program, rest = words[0], words[1:]
    if program == "make":
        targets = [word for word in rest if "=" not in word and not word.startswith("-")]
        return "".join(f"no target {t}" for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE))
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [part for word in rest for part in re.findall(r"\[([\w,-]+)\]", word)]
        missing = [word for word in rest if word.endswith(".txt") and not (ROOT / word).is_file()]
        return " ".join([*missing, *(name for part in named for name in part.split(",") if name not in extras)])
    if program.endswith("python"):
        if rest[0] == "-m":
            own = rest[1].split(".")[0]
            known = (ROOT / own).is_dir() or own in ("pytest", "ruff", "mypy", "mkdocs", "venv", "pip")
            files = [word.partition("::")[0] for word in rest[2:] if word.startswith("tests/")]
            return "" if known and all((ROOT / file).exists() for file in files) else "no such module or file"
        script = ROOT / rest[0]
        if not script.is_file():
            return f"no script {rest[0]}"
        options = [re.match(r"--([\w-]+)", word)[1] for word in rest[1:] if word.startswith("--")]
        return " ".join(option for option in options if f'"--{option}"' not in script.read_text())
    if POD.match(" ".join(words)):
        return "" if (ROOT / POD.match(" ".join(words))[0].split()[-1]).is_file() else "no such script"
    return "" if program in FOREIGN else "unknown program"


@pytest.mark.parametrize("name", TEXTS)
def test_every_other_command_is_known(name):
    others = {command: split(command) for command in commands(name)}
    wrong = {c: said for c, words in others.items() if program_of(words) is None and (said := check_foreign(words))}
    assert wrong == {}


def test_commands_are_found_and_faults_among_them():
    assert "make demo      # sets up .venv, trains the tiny model with the whole method, draws its learning curve" in (
        commands("README.md")
    )
    assert any(POD.match(command) for command in commands("docs/tpu.md"))
    assert check_foreign(["make", "dmeo"]) == "no target dmeo" and check_foreign(["make", "demo", "X=1"]) == ""
    assert check_foreign(["pip", "install", "-e", ".[wnadb]"]) == "wnadb"
    assert check_foreign(["python", "benchmarks/exact.py", "--no_such"]) == "no_such"
    assert check_foreign(["python", "benchmarks/no_such.py"]) == "no script benchmarks/no_such.py"
    assert check_foreign(["rm", "-rf", "x"]) == "unknown program"


def test_the_grader_alone_is_three_lines(capsys):
    """Of docs/extending.md, as they stand there, in a program of their own."""
    text = (ROOT / "docs" / "extending.md").read_text()
    [code] = re.findall(r"^## The grader alone$.*?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) == 3
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[1.0, 0.0]\n", done.stderr


def test_the_site_has_every_page_and_their_links():
    made = site()
    nav = re.findall(r"- (?:[\w ]+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    texts = {page for page in made.TEXTS if page.endswith(".md")}
    pages = {file.name for file in (ROOT / "docs").glob("*.md")}
    assert sorted(nav) == sorted(pages | texts | {f"api/{name}.md" for name in made.CODE})
    for title, modules in made.CODE.values():
        assert title
        for module in modules:
            file = ROOT / "ibtpo" / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__init__.py").is_file(), module
    assert made.place("docs/design.md#dependencies", "README.md") == "design.md#dependencies"
    assert made.place("tests/golden/README.md", "CONTRIBUTING.md") == "golden.md"
    assert made.place("README.md#map-of-the-code", "CONTRIBUTING.md") == "index.md#map-of-the-code"
    assert made.place("https://arxiv.org", "README.md") == "https://arxiv.org"
    assert "](design.md)" in made.page_of("README.md") and "](docs/" not in made.page_of("README.md")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("docs") / "site"
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.mark.slow
def test_mathematics_of_the_site_is_drawn(built, browser):
    browser.open(built / "method.html")
    number, left = browser.run(
        """((all) => [all.length, all.filter((e) => !e.querySelector("math")).map((e) => e.textContent)])(
        [...document.querySelectorAll(".arithmatex")])"""
    )
    assert number > 100 and left == []


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(built):
    start = (built / "index.html").read_text()
    assert "images/tree.png" in start and (built / "images" / "tree.png").is_file()
    assert "ibtpo.ib_score.ib_score" in (built / "api" / "method.html").read_text()
    # Nothing is loaded from elsewhere.
    for page in built.rglob("*.html"):
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?://(?!www\.sitemaps)", page.read_text()), page
