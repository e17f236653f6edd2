"""What docs/design.md and CONTRIBUTING.md say of the code's form: short files and functions, and rooms that do not know
what they must not. Read off the source with `ast`; nothing is imported."""

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MOST_LINES, MOST_FUNCTION_LINES = 400, 60
# build_tree: one walk fills the lists that the arrays are then made of; its parts would hand all of them on.
LONG_FUNCTIONS = {"ibtpo/tree.py:build_tree"}


def python_files(*folders: str) -> list[pathlib.Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


@functools.cache
def parse(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text())


def documentation_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(function) is None:
        return 0
    return function.body[0].end_lineno - function.body[0].lineno + 1


def is_long(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    lines = function.end_lineno - function.lineno + 1
    return lines > MOST_FUNCTION_LINES and 2 * documentation_lines(function) < lines


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """{name of a module of ibtpo: its file}."""
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in python_files("ibtpo")}
    return {".".join(name[:-1] if name[-1] == "__init__" else name): file for file, name in parts.items()}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Names that a module imports, wherever in it: modules, those of packages around them, and what may be either a
    module or a name of one (`absl.flags`, `ibtpo.tree.Tree`)."""
    found = set()
    for node in ast.walk(parse(modules()[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(".".join(name.split(".")[:n]) for name in found for n in range(1, name.count(".") + 2))


def all_imports(module: str) -> frozenset[str]:
    """`imports` of a module and of the modules of ibtpo that it loads."""
    seen, ahead = set(), [module]
    while ahead:
        for name in imports(ahead.pop()) - seen:
            seen.add(name)
            if name in modules():
                ahead.append(name)
    return frozenset(seen)


def of_rooms(rooms: tuple[str, ...]) -> Iterator[str]:
    """The modules of rooms: a module, or a package and all in it."""
    for module in modules():
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            yield module


def test_no_file_is_long():
    files = python_files("ibtpo", "benchmarks", "configs", "tests")
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert len(lines) > 200
    assert {file: n for file, n in lines.items() if n > MOST_LINES} == {}


def test_no_function_is_long_unless_half_of_it_is_documentation():
    long = {
        f"{file.relative_to(ROOT)}:{node.name}"
        for file in python_files("ibtpo", "benchmarks")
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_long(node)
    }
    assert long == LONG_FUNCTIONS


JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
TRAINING = ("ibtpo.losses", "ibtpo.objectives", "ibtpo.optimizer", "ibtpo.state", "ibtpo.trainer", "optax")


@pytest.mark.parametrize(
    "rooms, forbidden",
    [
        (("ibtpo.config", "ibtpo.choices"), JAX),
        (("ibtpo.rewards",), JAX),
        (("ibtpo.sampling",), TRAINING),
        (("ibtpo.models", "ibtpo.kernels"), ("ibtpo.tree", "ibtpo.rewards", "ibtpo.sampling")),
        (("ibtpo.tree", "ibtpo.ib_score", "ibtpo.advantages"), ("ibtpo.models", "ibtpo.kernels", "ibtpo.sampling")),
        (("ibtpo.token_weights", "ibtpo.packing", "ibtpo.losses", "ibtpo.objectives"), ("ibtpo.sampling",)),
    ],
    ids=lambda names: names[0],
)
def test_rooms_do_not_load(rooms, forbidden):
    """Neither themselves nor through another module of ibtpo."""
    inside = list(of_rooms(rooms))
    assert len(inside) >= len(rooms)
    assert {m: found for m in inside if (found := sorted(all_imports(m) & set(forbidden)))} == {}


def test_the_trainer_names_no_kernel_no_grader_and_no_flags():
    """What it calls may: the trainer is the algorithm."""
    known = imports("ibtpo.trainer")
    assert "ibtpo.packing" in known
    forbidden = {"ibtpo.kernels", "ibtpo.models", "ibtpo.rewards.math", "sympy", "math_verify", "absl.flags"}
    assert known & forbidden == set()


# Not report: it is a library too, of the curves that a run ends with and of the tables that evaluations are shown in.
@pytest.mark.parametrize("command", ["train", "evaluate", "filter", "sft", "export", "compile_check"])
def test_nothing_imports_a_command(command):
    assert f"ibtpo.{command}" in modules()
    assert [module for module in modules() if f"ibtpo.{command}" in imports(module)] == []
