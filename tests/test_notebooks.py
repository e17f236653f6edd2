"""The notebooks run, in a short form, and find the checkout wherever they start."""

import pathlib
import subprocess
import sys

import nbclient
import nbformat
import pytest


def test_tiny_notebook_trains_prints_trees_and_shows_the_curve(repo_root, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("IBTPO_NOTEBOOK_STEPS", "1")
    monkeypatch.setenv("IBTPO_NOTEBOOK_QUESTIONS", "4")
    monkeypatch.setenv("IBTPO_NOTEBOOK_WORKDIR", str(tmp_path))
    notebook = nbformat.read(repo_root / "notebooks" / "tiny.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(repo_root / "notebooks")}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = "".join(output.get("text", "") for output in outputs)
    assert "J=" in text and "response 0 (round 0) reward=" in text
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "learning_curve.png").is_file()
    viewers = [page for output in outputs if "<iframe srcdoc" in (page := output.get("data", {}).get("text/html", ""))]
    assert len(viewers) == 3 and all("Content-Security-Policy" in page for page in viewers)


def test_the_notebook_of_the_score_says_what_the_library_says(repo_root):
    """Its arithmetic is asserted in it; what it keeps as outputs is what it prints now."""
    notebook = nbformat.read(repo_root / "notebooks" / "ib_score.ipynb", as_version=4)
    kept = [printed(cell) for cell in notebook.cells]
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(repo_root / "notebooks")}}
    ).execute()
    assert [printed(cell) for cell in notebook.cells] == kept
    text = "".join(kept)
    assert "J = 1 + 5 · +0.0400 = 1.200; the library says 1.200" in text
    assert "response 1 right" in text and "branches next after '12+30=42' of response 0" in text
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_notebook_of_a_real_model_trains_resumes_and_exports(repo_root, tmp_path, monkeypatch):
    """On the tiny model; the second time it goes on from the checkpoint."""
    monkeypatch.setenv("IBTPO_NOTEBOOK_CONFIG", "tiny")
    monkeypatch.setenv("IBTPO_NOTEBOOK_QUESTIONS", "4")
    monkeypatch.setenv("IBTPO_NOTEBOOK_WORKDIR", str(tmp_path))
    for steps in (1, 2):
        monkeypatch.setenv("IBTPO_NOTEBOOK_STEPS", str(steps))
        notebook = nbformat.read(repo_root / "notebooks" / "real_model.ipynb", as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(repo_root / "notebooks")}}
        ).execute()
        text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
        assert f"update {steps}: held-out avg@4" in text and "response 0 (round 0)" in text
        assert ("Continuing at update 1 of 2" in text) == (steps == 2)
        assert (tmp_path / "model" / "model.safetensors").is_file()


def printed(cell) -> str:
    """The standard output of a cell."""
    outputs = [output for output in cell.get("outputs", []) if output["output_type"] == "stream"]
    return "".join(output["text"] for output in outputs if output["name"] == "stdout")


@pytest.mark.parametrize("name", ["tiny", "ib_score", "real_model"])
@pytest.mark.parametrize(
    "files, start, root, fetched",
    [
        ([], "", "ibtpo", 2),  # Colab: the code, then its requirements
        (["ibtpo/train.py", "configs/tiny.py"], "", "", 0),
        (["ibtpo/train.py", "configs/tiny.py"], "notebooks", "", 0),
    ],
)
def test_the_first_cell_finds_the_checkout(name, files, start, root, fetched, repo_root, tmp_path, monkeypatch):
    notebook = nbformat.read(repo_root / "notebooks" / f"{name}.ipynb", as_version=4)
    cell = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    commands = []

    def make(*names):
        for path in map(pathlib.Path, names):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def fetch(command, **_):
        commands.append(command)
        if command[0] == "git":
            make("ibtpo/ibtpo/train.py", "ibtpo/configs/tiny.py")

    make(*(tmp_path / file for file in (*files, f"{start or '.'}/{name}.ipynb")))
    monkeypatch.setattr(subprocess, "run", fetch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # At first, again in the same kernel, and in a new one, which starts where the first did.
    for folder in (start, root, start):
        monkeypatch.chdir(tmp_path / folder)
        exec(cell, {})
        assert pathlib.Path.cwd() == tmp_path / root and sys.path[0] == str(tmp_path / root)
    assert len(commands) == fetched
