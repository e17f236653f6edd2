"""Pages of an evaluation: well formed, self-contained, inert whatever the texts hold; and in a browser, usable."""

import base64
import html.parser
import json
import re
import subprocess
import urllib.parse
import zlib

import numpy as np
import pytest

from ibtpo.evaluation import page as pages
from ibtpo.evaluation.results import mean_of_benchmarks
from ibtpo.whole_files import write_text
from tests import chromium
from tests.evaluation.cases import HOSTILE, make_evaluation, make_instructions

VOID = {"meta", "input", "br", "img", "link"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest; keeps what scripts, by id, and elements, by class, hold."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.scripts, self.attributes, self.data = [], [], {}, [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[self.open[-1][1]] = self.scripts.get(self.open[-1][1], "") + data
        else:
            self.data.append(data)


def unpack(block):
    return json.loads(zlib.decompress(base64.b64decode(block, validate=True)))


def make_page(evaluation, name="gsm8k", checkpoint="runs/one"):
    return pages.responses_page(evaluation, evaluation.summary(), name, checkpoint)


def test_the_page_holds_every_response_and_no_markup_of_theirs():
    evaluation = make_evaluation(np.random.default_rng(0), 12, 5)
    text = make_page(evaluation, checkpoint=HOSTILE[0])
    page = Page(text)
    assert set(page.scripts) == {"", "index", *(f"q{q}" for q in range(12))}
    assert page.tags.count("script") == 14 and "img" not in page.tags
    entries = unpack(page.scripts["index"])
    for q, entry in enumerate(entries):
        assert entry["question"] == evaluation.problems[q].question
        assert entry["correct"] == evaluation.correct[q].tolist() and entry["extracted"] == evaluation.answers[q]
        assert unpack(page.scripts[f"q{q}"])["responses"] == evaluation.texts[q]
    for hostile in filter(None, HOSTILE):
        assert hostile not in text
    assert f"gsm8k: {HOSTILE[0]}" in "".join(page.data)  # as text


def test_the_page_loads_nothing():
    page = Page(make_page(make_evaluation(np.random.default_rng(0), 3, 2)))
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "data-src")]
    assert links == ["../index.html"]
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'") and "sha256-" in policy


def test_the_overview_names_links_and_escapes(tmp_path):
    rng = np.random.default_rng(1)
    evaluations = {"gsm8k": make_evaluation(rng, 8, 2), "ifeval": make_instructions(rng)[0]}
    mean = mean_of_benchmarks({name: e.metrics() for name, e in evaluations.items()})
    summaries = {name: e.summary() for name, e in evaluations.items()}
    path = tmp_path / "index.html"
    write_text(path, pages.index_page(summaries, mean, "a<b>\udcff", {"data.prompt": HOSTILE[1]}))
    page = Page(path.read_text(encoding="utf-8"))
    links = [value for name, value in page.attributes if name == "href"]
    assert links == ["gsm8k/responses.html", "ifeval/responses.html"]
    assert "img" not in page.tags and "b" not in page.tags and HOSTILE[1] in page.data
    assert "instruction, strict" in page.data and "mean" in page.data


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """browse(path, **state): the document that a browser shows for a page, its filters set by the address."""
    browser = chromium.find()
    options = [
        *chromium.OPTIONS,
        "--virtual-time-budget=20000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
        "--dump-dom",
    ]

    def show(path, **state):
        address = path.as_uri() + "#" + urllib.parse.urlencode(state)
        done = subprocess.run([browser, *options, address], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8", errors="replace")

    return show


def shown(document):
    """Ids of the questions in the list, in order."""
    return [int(x) for x in re.findall(r'<details class="question" data-id="(\d+)"', document)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    evaluation = make_evaluation(np.random.default_rng(2), 40, 3)
    path = tmp_path_factory.mktemp("page") / "responses.html"
    write_text(path, make_page(evaluation))
    return evaluation, path


def test_filters_search_and_order(browse, page):
    evaluation, path = page
    right, cut = evaluation.correct.astype(bool), evaluation.truncated
    document = browse(path)
    assert shown(document) == list(range(40)) and "40 of 40 questions" in document
    assert shown(browse(path, show="wrong")) == np.flatnonzero(~right.all(axis=1)).tolist()
    assert shown(browse(path, show="truncated")) == np.flatnonzero(cut.any(axis=1)).tolist()
    hard = np.argsort(right.sum(axis=1), kind="stable")
    assert shown(browse(path, sort="hard", show="right")) == [q for q in hard if right[q].any()]
    assert shown(browse(path, search="what is 17?")) == [17]
    needle = "IMG SRC"
    inside = [q for q, texts in enumerate(evaluation.texts) if any(needle.lower() in x for x in texts)]
    in_question = [q for q, p in enumerate(evaluation.problems) if needle.lower() in p.question]
    assert shown(browse(path, search=needle)) == in_question
    assert shown(browse(path, search=needle, inside="true")) == sorted({*inside, *in_question}) != in_question


def test_the_controls_do_what_the_address_does(browse, page, tmp_path):
    evaluation, path = page
    right = evaluation.correct.astype(bool)
    # A user made of a script, which the page's policy would refuse.
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
    user = """<script>setTimeout(() => {
      const pick = (selector) => document.querySelector(selector);
      pick("[data-show=wrong] i").click();
      pick("#sort").value = "easy";
      pick("#sort").dispatchEvent(new Event("change"));
      pick("#search").value = "what is 1";
      pick("#search").dispatchEvent(new Event("input"));
      setTimeout(() => pick("details.question summary").click(), 2000);
    }, 2000)</script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace("</body>", user), encoding="utf-8")
    document = browse(driven)
    wanted = [q for q in range(40) if str(q).startswith("1") and not right[q].all()]
    assert shown(document) == sorted(wanted, key=lambda q: -right[q].sum())
    assert f"{len(wanted)} of 40 questions" in document and '<details class="question" data-id="1' in document
    assert len(re.findall('class="response"', document)) == (~right[shown(document)[0]]).sum()


def test_the_address_keeps_every_search(browse, page, tmp_path):
    _, path = page
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
    teller = "<script>setTimeout(() => { document.title = location.hash; }, 5000)</script></body>"
    told = tmp_path / "told.html"
    told.write_text(text.replace("</body>", teller), encoding="utf-8")
    # Words that are other keys' defaults, and values left out as their own key's default.
    for state, kept in (
        (dict(search="all"), "#search=all"),
        (dict(search="order", show="wrong", sort="hard"), "#show=wrong&amp;sort=hard&amp;search=order"),
        (dict(show="all", sort="order", inside="false"), "#"),
        (dict(inside="true", open=3), "#inside=true&amp;open=3"),
    ):
        title = re.search("<title>(.*?)</title>", browse(told, **state))[1]
        assert title == ("" if kept == "#" else kept)


def test_an_opened_question_shows_its_responses_as_text(browse, tmp_path):
    evaluation = make_evaluation(np.random.default_rng(3), len(HOSTILE), 1)
    path = tmp_path / "responses.html"
    write_text(path, make_page(evaluation))
    for q, hostile in enumerate(HOSTILE):
        document = browse(path, open=q)
        assert "<title>gsm8k: runs/one</title>" in document and "<img" not in document
        # One response is opened with its question; nothing of it became an element.
        content = re.search(r'<pre class="text">(.*?)</pre>', document, re.DOTALL)[1]
        assert "<" not in content
        visible = hostile.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        plain = [part for part in re.split(r"[\ud800-\udfff\0]", visible) if part]
        assert all(part in content for part in plain)
        assert ("✓ right" if evaluation.correct[q, 0] else "✗ wrong") in document


def test_instructions_show_which_were_followed(browse, tmp_path):
    evaluation, _ = make_instructions(np.random.default_rng(4), 12, 1)
    path = tmp_path / "responses.html"
    write_text(path, make_page(evaluation, "ifeval"))
    q = next(q for q in range(12) if (evaluation.followed["strict"][q] != evaluation.followed["loose"][q]).any())
    document = browse(path, open=q)
    lines = re.findall(r"<li>strict (.)  loose (.)  ([\w:]+)", document)
    expected = json.loads(evaluation.problems[q].answer)["instruction_id_list"]
    assert [name for *_, name in lines] == expected
    for i, mode in enumerate(("strict", "loose")):
        assert [line[i] == "✓" for line in lines] == evaluation.followed[mode][q][0].tolist()
    assert "no answer</button>" not in document
