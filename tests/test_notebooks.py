"""The notebooks run, in a short form."""

import nbclient
import nbformat


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
