"""The tree viewer in a browser: what it computes is what ib_score.py does, and what it shows is what is saved."""

import itertools
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from ibtpo.ib_score import ScoreOptions, ib_score
from ibtpo.report.page import trees_page
from ibtpo.tree import build_tree
from ibtpo.whole_files import write_text
from tests.evaluation.cases import HOSTILE
from tests.saved_trees.cases import END, SEPARATOR, WORDS, grow, make_file, step_ends

OPENED = "document.documentElement.dataset.opened !== undefined"


@pytest.fixture
def show(browser, tmp_path):
    """show(file of trees, ...): the page of it, opened and ready."""

    def show(*files, state="", **options):
        path = tmp_path / "trees.html"
        write_text(path, trees_page([(f"update {content.step}", content) for content in files], "Trees"))
        browser.open(path, state, **options)
        browser.wait(OPENED)
        assert browser.errors == []
        return path

    return show


OPTIONS = {
    "as it is": {},
    "backup": {"tree__branch_value": "backup"},
    "unguided root": {"tree__root": "initial"},
    "uniform": {"tree__child_weight": "uniform"},
    "printed": {"tree__child_weight": "uniform", "tree__ratio_power": 2, "tree__beta": 3.0},
    "joint": {"tree__confidence": "joint", "tree__branch_value": "backup", "tree__root": "initial"},
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", [3, 4])
def test_scores_are_those_of_ib_score_in_every_round(browser, show, seed, changes):
    """As of a round: those of the tree of the responses until then."""
    responses = grow(seed, rounds=6, branch=2, steps=4, rewards=(0.0, 0.5, 1.0))
    content = make_file([responses], **changes)
    show(content)
    options = ScoreOptions(**{key.removeprefix("tree__"): value for key, value in changes.items()})
    for last in range(6):
        # One round more than there are, so that the last is computed too and not taken from the file.
        found = browser.run(f"""(() => {{ view.model.rounds = 6; const s = scoresAt(view.model, {last});
            view.model.rounds = 5; const there = view.model.birth.map((b) => b <= {last});
            const at = (x) => x.filter((_, i) => there[i]);
            return Object.fromEntries(["value", "eta1", "weight", "J"].map((name) => [name, at(s[name])])); }})()""")
        score = ib_score(build_tree([4, 5, 6], [r for r in responses if r.round <= last], step_ends), options)
        close = dict(rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(found["value"], score.values[0], **close)
        np.testing.assert_allclose(found["eta1"], score.eta1[0], **close)
        np.testing.assert_allclose([j or 0 for j in found["J"]], score.J[0], **close)


def test_the_arithmetic_beside_the_tree_gives_the_saved_score(browser, show):
    content = make_file([grow(5, rounds=6)], loss__ib_weight=0.3)
    show(content)
    [tree] = content.trees
    for node, j in enumerate(tree["J"]):
        browser.run(f"view.pick({node})")
        text = browser.run("document.querySelector('#tree-detail').innerText").replace("−", "-")
        if j is None:
            assert "has no J" in text
        else:
            shown = browser.run("({...document.querySelector('pre.total').dataset})")
            assert float(shown["sum"]) == pytest.approx(j, abs=1e-5) and float(shown["j"]) == j
            assert f"= {j:.4f}" in text
        if node:
            assert f"= {tree['eta2'][node]:.4f}" in text and f"= {tree['eta1'][node]:.4f}" in text
            assert f"A = A_GL + 0.3·A_IB = {tree['A'][node]:.4f}" in text


@pytest.mark.parametrize("method", ["grpo", "treerl"])
def test_an_advantage_of_another_method_is_not_explained_as_ours(browser, show, method):
    show(make_file([grow(5)], method=method), state="node=1")
    text = browser.run("document.querySelector('#tree-detail').innerText")
    assert f"of {method}, as the loss takes it" in text and "A_GL" not in text


def drawn(browser):
    """{members of a drawn node: its colour}."""
    return dict(
        browser.run("""view.layout.drawn.map((node) => [node.members.join(" "),
            view.drawing.elements.get(node.id).querySelector("rect").getAttribute("fill")])""")
    )


def test_a_click_chooses_a_step_and_its_path(browser, show):
    content = make_file([grow(6, rounds=5)])
    show(content)
    leaf = content.trees[0]["leaf"][-1]
    browser.click(f"g.node[data-id='{browser.run(f'view.layout.at.get({leaf})')}'] rect")
    assert browser.run("view.layout.drawn[view.layout.at.get(view.node)].members").count(leaf) == 1
    path, node = [], browser.run("view.node")
    while node >= 0:
        path.append(node)
        node = content.trees[0]["parent"][node]
    marked = browser.run("[...view.drawing.scene.path].flatMap((id) => view.layout.drawn[id].members)")
    assert set(path) <= set(marked)
    assert browser.run("document.querySelector('h3').textContent") == f"Step [{path[0]}]"
    steps = browser.run("[...document.querySelectorAll('ol.response li')].map((e) => Number(e.dataset.node))")
    assert steps == path[::-1] and browser.run("document.querySelector('li.chosen').dataset.node") == str(path[0])
    browser.click("ol.response li:nth-child(2)")
    assert browser.run("view.node") == steps[1] and f"node={steps[1]}" in browser.run("location.hash")


def test_colours_follow_the_measure(browser, show):
    content = make_file([grow(6, rounds=5)])
    show(content)
    seen = {}
    for name in ("value", "J", "eta1", "eta2", "A"):
        browser.click(f"[data-measure={name}]")
        seen[name] = drawn(browser)
        assert browser.run("document.querySelector('[aria-pressed=true]').dataset.measure") == name
    assert len({json.dumps(colours) for colours in seen.values()}) == 5
    [tree] = content.trees
    for members, colour in seen["value"].items():
        # Blue where most responses end right, orange where most do not.
        value = np.mean([tree["value"][int(m)] for m in members.split()])
        red, _, blue = map(int, colour.removeprefix("rgb(").rstrip(")").split(","))
        assert value == pytest.approx(0.5, abs=0.2) or (blue > red) == (value > 0.5)


def test_rounds_are_played_back(browser, show):
    responses = grow(7, rounds=5, steps=4)
    content = make_file([responses])
    show(content)
    browser.click("#tree-fold")  # every node for itself
    for last in (4, 3, 2, 1, 0):
        expected = build_tree([4, 5, 6], [r for r in responses if r.round <= last], step_ends)
        assert browser.run("document.querySelectorAll('g.node').length") == expected.node_parent.shape[1]
        assert browser.run("document.querySelector('#round-name').textContent") == f"round {last} of 4"
        shown = browser.run("document.querySelector('#tree-caption').textContent")
        assert f"{expected.rewards.shape[1]} response" in shown and f"Round {last}:" in shown
        if last:
            browser.click("#round-before")
    browser.click("#round-play")
    browser.wait("view.round === 4 && !view.timer")
    numbers = browser.run("view.layout.drawn.flatMap((n) => n.forks)")
    # A response that starts at the question anew, as a fork there does, is numbered too.
    assert sorted(numbers) == [1, 2, 3, 4]


def test_where_there_is_one_round_there_is_nothing_to_play(browser, show):
    show(make_file([grow(7, rounds=1)], kind="eval"), make_file([grow(7, rounds=2)]), state="tree=0")
    visible = "document.querySelector('#tree-rounds').getBoundingClientRect().width > 0"
    assert not browser.run(visible)
    browser.run("view.open(1)")
    assert browser.run(visible)


def test_equal_siblings_are_one(browser, show):
    responses = grow(8, initial=4, rounds=2, words=3, tokens=1, steps=2)  # one word: only lengths differ
    content = make_file([responses])
    show(content)
    [tree] = content.trees
    folded, whole = drawn(browser), len(tree["parent"])
    assert sum(len(members.split()) for members in folded) == whole > len(folded)
    assert "×" in browser.run("document.querySelector('#tree-svg').textContent")
    browser.click("#tree-fold")
    assert len(drawn(browser)) == whole
    browser.click("#tree-fold")
    several = next(members for members in folded if len(members.split()) > 1)
    browser.run(f"view.pick({several.split()[1]})")
    detail = browser.run("document.querySelector('#tree-detail').innerText")
    assert f"One of {len(several.split())} equal samples" in detail


def test_the_keyboard_moves_plays_and_leaves(browser, show):
    show(make_file([grow(9, rounds=4, steps=3), grow(10)]), state="tree=0")
    browser.run("document.getElementById('tree-scroll').focus()")
    browser.key("Home")
    assert browser.run("view.node") == 0
    browser.key("ArrowRight")
    assert browser.run("view.model.data.parent[view.node]") == 0
    first = browser.run("view.layout.at.get(view.node)")
    browser.key("ArrowDown")
    assert browser.run("view.layout.drawn[view.layout.at.get(view.node)].depth") == 1
    assert browser.run("view.layout.at.get(view.node)") != first
    browser.key("ArrowUp"), browser.key("ArrowLeft")
    assert browser.run("view.node") == 0
    browser.key("[")
    assert browser.run("view.round") == 2
    browser.key("3")
    assert browser.run("view.measure") == "eta1"
    browser.key("Escape")
    assert browser.run("view.node") == -1
    assert "Choose a step" in browser.run("document.querySelector('#tree-detail').innerText")
    browser.key("n")
    browser.wait("view.place === 1")
    browser.key(" ")
    assert browser.run("!!view.timer")
    browser.key("Escape")
    assert not browser.run("!!view.timer")


@pytest.mark.parametrize("hostile", [text for text in HOSTILE if text])
def test_hostile_text_stays_text(browser, show, hostile):
    words = ["", "\n\n", hostile.encode("utf-8", "surrogatepass"), hostile.encode("utf-8", "replace"), *WORDS[4:]]
    responses = grow(11, rounds=3, words=len(words))
    content = make_file([responses], words=words, questions=[hostile], answer=hostile)
    for tree in content.trees:
        tree["stated"] = [hostile] * len(tree["stated"])
    show(content)
    for node in range(len(content.trees[0]["parent"])):
        browser.run(f"view.pick({node})")
    assert browser.errors == [] and browser.run("document.title") == "Trees"
    assert browser.run("document.querySelectorAll('img, #trees script, .panel a').length") == 0
    assert [x for x in browser.requests if not x.startswith("file:")] == []
    ET.fromstring(browser.run("view.drawing.picture('caption')")[0])
    plain = "".join(c for c in hostile if c.isalnum() and c.isascii())[:12]
    letters = "".join(c for c in browser.run("document.querySelector('.panel').textContent") if c.isalnum())
    assert plain in letters


def test_a_policy_forbids_other_scripts_and_every_request(browser, show):
    show(make_file([grow(1)]))
    browser.run("""(() => { const s = document.createElement("script"); s.textContent = "document.title = 'x'";
        document.body.append(s); })()""")
    assert browser.run("document.title") == "Trees"
    assert browser.run("fetch('data:text/plain,x').then(() => 'got it', () => 'refused')") == "refused"


def test_a_tree_too_large_for_the_screen_has_few_elements(browser, show):
    rng = np.random.default_rng(0)
    responses = grow(0, initial=64, rounds=1, steps=1)
    for r in responses:
        r.tokens = np.tile([2, 3, 4, SEPARATOR], 60).astype(np.int32)
        r.tokens[::4] = rng.integers(2, 10, 60)
        r.tokens[-1], r.log_probs = END, -rng.exponential(size=240).astype(np.float32)
    show(make_file([responses]))
    assert browser.run("view.layout.drawn.length") > 3000
    browser.run("view.setZoom(1)")
    count = "document.querySelectorAll('g.node').length"
    assert browser.run(count) < 400
    browser.run("view.drawing.scroller.scrollTo(3000, 900)")
    right = "Math.max(...[...view.drawing.elements.keys()].map((id) => view.layout.drawn[id].depth))"
    browser.wait(f"{right} > 20")
    assert browser.run(count) < 400
    # What is drawn is all that is in sight.
    missing = browser.run("""(() => { const d = view.drawing, s = d.scroller; return view.layout.drawn.filter((n) => {
        const [x, y] = d.place(n); return x + d.width > s.scrollLeft && x < s.scrollLeft + s.clientWidth
          && y > s.scrollTop && y < s.scrollTop + s.clientHeight && !d.elements.has(n.id); }).length; })()""")
    assert missing == 0


@pytest.mark.parametrize("size", [(390, 844), (820, 1100), (1400, 950), (2200, 1200)])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overlaps_or_leaves_the_page(browser, show, size, dark, tmp_path):
    show(make_file([grow(12, rounds=6, branch=2, steps=4)]), size=size, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    data = browser.picture(tmp_path / "page.png")
    assert int.from_bytes(data[16:20], "big") == size[0]
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
    boxes = browser.run("""[...document.querySelectorAll("g.node")].map((g) => {
        const box = g.querySelector("rect").getBoundingClientRect();
        const inside = (t) => t.getAttribute("x") > 0 && t.getAttribute("x") < view.drawing.width;
        const texts = [...g.querySelectorAll("text")].filter(inside).map((t) => t.getBoundingClientRect());
        return [box.x, box.y, box.right, box.bottom, texts.map((b) => [b.x, b.right])]; })""")
    assert len(boxes) > 10
    for i, (x0, y0, x1, y1, texts) in enumerate(boxes):
        for a, b in texts:
            assert a >= x0 - 0.5 and b <= x1 + 0.5
        for first, second in itertools.pairwise(texts):
            assert first[1] <= second[0] + 0.5
        for u0, v0, u1, v1, _ in boxes[i + 1 :]:
            assert x1 <= u0 + 0.1 or u1 <= x0 + 0.1 or y1 <= v0 + 0.1 or v1 <= y0 + 0.1
    bars = browser.run("""[...document.querySelectorAll(".viewer > .bar > *")].filter((e) => !e.hidden).map((e) => {
        const b = e.getBoundingClientRect(); return [b.x, b.y, b.right, b.bottom]; })""")
    for i, (x0, y0, x1, y1) in enumerate(bars):
        assert x1 <= size[0]
        for u0, v0, u1, v1 in bars[i + 1 :]:
            assert x1 <= u0 + 0.5 or u1 <= x0 + 0.5 or y1 <= v0 + 0.5 or v1 <= y0 + 0.5


def test_the_whole_tree_is_a_picture(browser, show):
    content = make_file([grow(13, rounds=6, branch=2)])
    show(content)
    text, width, height = browser.run("view.drawing.picture('caption')")
    root = ET.fromstring(text)
    assert (root.get("width"), root.get("height")) == (str(width), str(height))
    assert len(root.findall(".//{*}g[@class='node']")) == browser.run("view.layout.drawn.length")
    assert "caption" in text and "style=" not in text


def test_the_address_leads_back(browser, show):
    content = make_file([grow(1), grow(14, rounds=5)])
    path = show(content, state="tree=1&node=2&round=3&colour=A")
    state = browser.run("[view.place, view.node, view.round, view.measure]")
    assert state[0] == 1 and state[2:] == [3, "A"]
    for wrong in ("tree=99&node=-1&round=x&colour=constructor", "node=99999999&round=99", "&&&=%"):
        browser.open(path, wrong)
        browser.wait(OPENED)
        assert browser.errors == []


def test_probabilities_are_the_tokens_shades(browser, show):
    responses = grow(15, initial=2, rounds=1, steps=1)
    responses[0].tokens = np.array([2, 4, 7, END], np.int32)
    responses[0].log_probs = np.log(np.array([1.0, 0.5, 0.05, 0.9], np.float32))
    show(make_file([responses]), state="node=1")
    tokens = browser.run("""[...document.querySelectorAll(".token")].map((t) =>
        [t.textContent, t.dataset.p, t.style.getPropertyValue("--heat")])""")
    assert [t[0] for t in tokens] == ["a ", "7", "é", "<|0|>"]
    assert [t[1] for t in tokens] == ["100 %", "50.0 %", "5.0 %", "90.0 %"]
    assert [t[2] for t in tokens] == ["", "23%", "100%", "4%"]
    browser.click(".token:nth-child(3)")
    assert "probability 5.0 %" in browser.run("document.querySelector('.token-note').textContent")
