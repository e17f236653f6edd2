"""The page of runs: curves, differences, environments and trees in one file that loads nothing; and its command."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from ibtpo import report
from ibtpo.report import page
from ibtpo.saved_trees import write_file
from tests.evaluation.cases import HOSTILE
from tests.report.test_figure import make_run
from tests.saved_trees.cases import grow, make_file


def run_of(folder, seed=0, *, trees=2, **config):
    """A made-up run with metrics, configuration, environment and trees."""
    make_run(folder, steps=60, seed=seed)
    settings = {"method": "ibtpo", "train": {"seed": seed}, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "environment.json").write_text(json.dumps([{"step": 0, "jax": "0.10", "device": f"chip {seed}"}]))
    for step in range(trees):
        write_file(folder / "trees" / f"train_{10 * step:08}.json.gz", make_file([grow(step), grow(9)], step=10 * step))
    return folder


def command(capsys, *arguments, code=0):
    """What the command prints; on an error, its one line."""
    if code:
        with pytest.raises(SystemExit) as stop:
            report.main([*map(str, arguments)])
        assert stop.value.code == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error
    report.main([*map(str, arguments)])
    return capsys.readouterr().out


def test_the_page_of_two_runs(browser, tmp_path, capsys):
    run_of(tmp_path / "a"), run_of(tmp_path / "b", 1, method="grpo", tree={"beta": 3})
    out = command(capsys, tmp_path / "a", tmp_path / "b", f"--out={tmp_path / 'c.html'}")
    assert f"page: {tmp_path / 'c.html'}" in out and out.splitlines()[2].split()[0] == "a"
    browser.open(tmp_path / "c.html")
    browser.wait("document.querySelectorAll('figure.curve path').length > 10 && view?.model")
    assert browser.errors == [] and [x for x in browser.requests if not x.startswith("file:")] == []
    assert browser.run("[...document.querySelectorAll('.key-line')].map((e) => e.textContent)") == ["a", "b"]
    text = browser.run("document.body.innerText")
    for row in ("method\tibtpo\tgrpo", "tree.beta\t–\t3", "device\tchip 0\tchip 1", "jax\t0.10\t0.10"):
        assert row in text
    assert browser.run("[...document.querySelectorAll('tr.differs')].map((e) => e.cells[0].innerText)") == ["device"]
    sources = browser.run("[...document.querySelector('#tree-source').options].map((o) => o.value)")
    assert sources == ["a · update 0", "a · update 10", "b · update 0", "b · update 10"]
    # Trees of the question that is shown stay with it in another run.
    browser.run("view.openSource('a · update 0')"), browser.wait("view.place < 2")
    browser.run("view.step(1)"), browser.wait("view.place === 1")
    browser.run("view.openSource('b · update 10')"), browser.wait("view.place > 3")
    assert browser.run("[view.place, view.model.data.problem]") == [7, 1]


def test_the_curves_are_the_metrics(browser, tmp_path):
    run_of(tmp_path / "a")
    browser.open(tmp_path / page.write_report([tmp_path / "a"], tmp_path / "x.html"))
    browser.wait("document.querySelectorAll('figure.curve path').length > 10")
    drawn = browser.run("""unpack("curve-data").then((data) => {
        const panel = new CurvePanel(data, "x", "", [["eval/avg_at_k", "k"]]);
        panel.draw("tokens", true); const [line] = panel.drawn; const at = (v, i) => panel.at(line.x[i], v);
        const d = panel.svg.querySelector("path[stroke]").getAttribute("d");
        return [line.x, line.y, line.low, line.high, d, at(line.y[2], 2)]; })""")
    x, y, low, high, path, place = drawn
    assert x == [0, 10000, 20000, 30000, 40000, 50000, 60000]
    assert y == pytest.approx([0.25 + 0.5 * i / 6 for i in range(7)], abs=1e-5)
    assert [h - l for h, l in zip(high, low)] == pytest.approx([0.1] * 7, abs=1e-5)
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]
    assert len(points) == 7 and points[2] == pytest.approx(place, abs=0.06)
    browser.click("#all-metrics summary")
    browser.wait("document.querySelectorAll('#metrics figure').length > 10")
    browser.run("""(() => { const e = document.querySelector("#metric-search"); e.value = "KL";
        e.dispatchEvent(new Event("input")); })()""")
    assert browser.run("[...document.querySelectorAll('#metrics figure:not([hidden])')].length") == 1
    browser.run("""(() => { const e = document.querySelector("#curve-axis"); e.value = "seconds";
        e.dispatchEvent(new Event("change")); })()""")
    assert browser.errors == []


def test_repeats_are_drawn_with_a_band(browser, tmp_path):
    for seed in range(3):
        run_of(tmp_path / f"run_s{seed}", seed, trees=0)
    page.write_report([tmp_path / f"run_s{seed}" for seed in range(3)], tmp_path / "x.html")
    browser.open(tmp_path / "x.html")
    browser.wait("document.querySelectorAll('figure.curve path').length > 10")
    assert browser.run("[...document.querySelectorAll('.key-line')].map((e) => e.textContent)") == ["run_s (3 seeds)"]
    panel = "[...document.querySelectorAll('figure.curve')].find((e) => e.innerText.startsWith('Entropy'))"
    assert browser.run(f"{panel}.querySelectorAll('path.band').length") == 1
    assert browser.run(f"{panel}.querySelectorAll('path[stroke]').length") == 5  # smooth, raw, three seeds
    assert "None are saved" in browser.run("document.body.innerText")


def test_hostile_names_and_settings_are_text(browser, tmp_path):
    run_of(tmp_path / "a", data={"prompt": HOSTILE[0], HOSTILE[1]: HOSTILE[4]})
    run_of(tmp_path / "b", data={"prompt": HOSTILE[2]})
    page.write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "x.html", names=[HOSTILE[0], HOSTILE[1]])
    browser.open(tmp_path / "x.html")
    browser.wait("view?.model")
    assert browser.errors == [] and browser.run("document.querySelectorAll('img').length") == 0
    assert HOSTILE[0] in browser.run("document.title") and HOSTILE[4] in browser.run("document.body.textContent")


def test_damaged_trees_are_said_and_left_out(tmp_path, capsys):
    run_of(tmp_path / "a")
    (tmp_path / "a" / "trees" / "train_00000010.json.gz").write_bytes(b"garbage")
    out = command(capsys, tmp_path / "a")
    assert "note: " in out and "train_00000010.json.gz is damaged" in out
    text = (tmp_path / "a" / "report.html").read_text()
    assert "train_00000010.json.gz is damaged" in text and "2 saved questions" in text


def test_the_page_is_bounded_and_covers_the_run(tmp_path, capsys):
    run_of(tmp_path / "a", trees=10)
    assert "8 of 20 saved trees are here" in command(capsys, tmp_path / "a", "--trees=8")
    kept = re.findall(r'id="t(\d+)"', (tmp_path / "a" / "report.html").read_text())
    assert len(kept) == 8
    assert "saved trees are here" not in command(capsys, tmp_path / "a", "--trees=0")
    found, _ = page.saved_trees([report.page.load(tmp_path / "a", "a")], 8)
    assert [content.step for _, content in found] == [0, 30, 60, 90]


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
@pytest.mark.parametrize("colour", ["value", "J", "eta1", "eta2", "A"])
def test_a_tree_is_a_picture(tmp_path, capsys, ending, colour):
    run_of(tmp_path / "a")
    out = tmp_path / "new" / f"tree.{ending}"
    assert str(out) in command(capsys, tmp_path / "a", "--tree=train:10:1", f"--colour={colour}", f"--out={out}")
    data = out.read_bytes()
    assert data.startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[ending])
    if ending == "svg":
        command(capsys, tmp_path / "a", "--tree=train:10:1", f"--colour={colour}", f"--out={out}")
        assert out.read_bytes() == data and b"What is 1?" in data and b"question" in data


def test_pictures_take_any_text(tmp_path):
    for hostile in filter(None, HOSTILE):
        words = ["", "\n\n", "$x_{$ ", hostile.encode("utf-8", "replace"), b"\xff", "&<>", "_^", "\\frac"]
        content = make_file([grow(3, words=8)], words=words, questions=[hostile + "$\\bad{$"])
        content.trees[0]["stated"][0] = hostile
        ET.parse(report.draw_tree(content, content.trees[0], tmp_path / "x.svg"))
        report.draw_tree(content, content.trees[0], tmp_path / "x.png", fold=False)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], ["nowhere", "no such file", "folder of a run"]),
        ([], ["name the folder of a run"]),
        (["RUN", "--out=x.txt"], ["--out=x.txt", ".html"]),
        (["RUN", "--out=RUN"], ["is a folder"]),
        (["RUN", "--tree=train:5:0", "--out=x.svg"], ["--tree=train:5:0", "train:10:0"]),
        (["RUN", "--tree=train:10:7", "--out=x.svg"], ["has 2 trees"]),
        (["RUN", "--tree=train", "--out=x.svg"], ["--tree=train"]),
        (["RUN", "--tree=train:10:0", "--colour=red", "--out=x.svg"], ["--colour=red", "eta1"]),
        (["RUN", "--tree=train:10:0", "--out=x.html"], ["--out=x.html"]),
        (["RUN", "--trees=-1"], ["--trees=-1"]),
        (["RUN", "--name=a", "--name=b"], ["2 names for 1 runs"]),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "run")
    error = command(capsys, *(a.replace("RUN", str(tmp_path / "run")) for a in arguments), code=2)
    assert all(word in error for word in words), error


def test_a_report_needs_no_jax(tmp_path, repo_root):
    """So that it comes at once: the command, and the page itself."""
    run_of(tmp_path / "a")
    script = f"""import sys; from ibtpo import report; report.main([{str(tmp_path / "a")!r}])
heavy = {{"jax", "transformers", "matplotlib"}} & sys.modules.keys(); assert not heavy, heavy"""
    subprocess.run([sys.executable, "-c", script], cwd=repo_root, check=True, stdout=subprocess.DEVNULL)


def test_the_viewer_in_a_notebook(browser, tmp_path):
    """A cell's value is a frame that holds the whole page; it works inside another document."""
    run_of(tmp_path / "a")
    shown = report.show_trees(tmp_path / "a", height=700, title='"quoted" <b>')
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><body><h1>cell</h1>{shown.data}</body>", encoding="utf-8")
    browser.open(path)
    inside = "document.querySelector('iframe').contentDocument"
    browser.wait(f"{inside}?.documentElement.dataset.opened !== undefined")
    assert browser.errors == []
    assert browser.run(f"{inside}.querySelectorAll('g.node').length") > 3
    browser.run(f"{inside}.querySelector('[data-measure=J]').click()")
    assert browser.run(f"{inside}.querySelector('[aria-pressed=true]').dataset.measure") == "J"
    content = make_file([grow(2)])
    for given in (content, [content, content], tmp_path / "a" / "trees" / "train_00000000.json.gz"):
        assert "iframe" in report.show_trees(given).data
    with pytest.raises(ValueError, match="no saved trees"):
        report.show_trees(tmp_path)
