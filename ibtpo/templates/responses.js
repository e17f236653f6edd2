"use strict";
// Responses are hostile text: they reach the page by textContent only, out of compressed blocks.
const PAGE_SIZE = 200; // questions drawn at a time
const SHOWN = {
  all: () => true,
  right: (q, i) => q.correct[i],
  wrong: (q, i) => !q.correct[i],
  truncated: (q, i) => q.truncated[i],
  unanswered: (q, i) => q.extracted[i] === null,
};
const SORTS = {
  order: null,
  hard: (a, b) => a.right - b.right,
  easy: (a, b) => b.right - a.right,
  long: (a, b) => b.length - a.length,
};
const statesAnswers = document.querySelector("[data-show=unanswered]") !== null;
const byId = (id) => document.getElementById(id);
// What the address holds, where it differs; open: id of the question opened last.
const DEFAULTS = { show: "all", sort: "order", search: "", inside: false, open: "" };
const state = { ...DEFAULTS };
let questions = [];
let shown = [];
let drawn = 0;
let request = 0; // of the newest filtering; an older one that is still searching stops

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  // Lone surrogates, which JSON may hold and no document should, become U+FFFD where the browser can do that.
  if (text !== undefined) element.textContent = String(text).toWellFormed?.() ?? text;
  return element;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function drawBar(q) {
  const bar = make("span", "bar");
  const cut = q.truncated.filter((t, i) => t && !q.correct[i]).length;
  const parts = { right: q.right, wrong: q.correct.length - q.right - cut, truncated: cut };
  for (const [name, count] of Object.entries(parts)) {
    const part = make("i", name);
    part.style.width = `${(100 * count) / q.correct.length}%`;
    bar.append(part);
  }
  bar.title = `${parts.right} right, ${parts.wrong} wrong, ${cut} wrong and truncated`;
  return bar;
}

function drawQuestion(q) {
  const details = make("details", "question");
  details.dataset.id = q.id;
  const summary = make("summary");
  summary.append(
    make("span", "id", q.id),
    make("span", "line", q.question.slice(0, 300)),
    drawBar(q),
    make("span", "share", `${q.right} / ${q.correct.length} right`),
  );
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) fill(details, q);
    state.open = details.open ? String(q.id) : "";
    writeHash();
  });
  return details;
}

async function fill(details, q) {
  const body = make("div", "body");
  details.append(body);
  body.append(make("div", "heading", "question"), make("pre", "", q.question));
  body.append(make("div", "heading", q.instructions ? "instructions" : "reference answer"));
  body.append(make("pre", "reference", q.instructions ? q.instructions.join("\n") : q.answer));
  const chosen = q.correct.map((_, i) => i).filter((i) => SHOWN[state.show](q, i));
  const some = chosen.length === q.correct.length ? "" : ` (${chosen.length} of ${q.correct.length})`;
  body.append(make("div", "heading", `responses${some}`));
  const content = await unpack(`q${q.place}`);
  for (const i of chosen) body.append(drawResponse(q, i, content, chosen.length === 1));
}

function drawResponse(q, i, content, open) {
  const details = make("details", "response");
  const summary = make("summary");
  const verdict = q.correct[i] ? "right" : "wrong";
  const facts = make("span", "facts", `${q.tokens[i].toLocaleString("en")} tokens`);
  if (q.truncated[i]) facts.append(", ", make("span", "cut", "truncated"));
  let found = q.extracted[i]?.slice(0, 300) ?? (statesAnswers ? "no answer" : "");
  if (q.instructions) found = `${content.strict[i].filter(Boolean).length} of ${q.instructions.length} followed`;
  summary.append(
    make("span", "id", `#${i}`),
    make("span", `verdict ${verdict}`, `${q.correct[i] ? "✓" : "✗"} ${verdict}`),
    make("span", "line extracted", found),
    facts,
  );
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    if (q.instructions) {
      const list = make("ul", "instructions");
      q.instructions.forEach((name, j) => {
        const mark = (ok) => (ok ? "✓" : "✗");
        list.append(make("li", "", `strict ${mark(content.strict[i][j])}  loose ${mark(content.loose[i][j])}  ${name}`));
      });
      details.append(list);
    }
    details.append(make("pre", "text", content.responses[i]));
  });
  details.open = open;
  return details;
}

function drawMore() {
  const fragment = document.createDocumentFragment();
  for (const q of shown.slice(drawn, drawn + PAGE_SIZE)) fragment.append(drawQuestion(q));
  byId("questions").append(fragment);
  drawn = Math.min(drawn + PAGE_SIZE, shown.length);
  byId("more").hidden = drawn === shown.length;
}

async function filter() {
  const mine = ++request;
  const wanted = state.search.toLowerCase();
  const found = [];
  for (const q of questions) {
    if (!q.correct.some((_, i) => SHOWN[state.show](q, i))) continue;
    let hit = !wanted || q.haystack.includes(wanted);
    if (!hit && state.inside) {
      const { responses } = await unpack(`q${q.place}`);
      if (mine !== request) return;
      hit = responses.some((text, i) => SHOWN[state.show](q, i) && text.toLowerCase().includes(wanted));
    }
    if (hit) found.push(q);
  }
  shown = SORTS[state.sort] ? found.sort(SORTS[state.sort]) : found;
  drawn = 0;
  byId("questions").replaceChildren();
  drawMore();
  byId("count").textContent = `${shown.length} of ${questions.length} questions`;
}

function openQuestion(id) {
  const at = shown.findIndex((q) => String(q.id) === id);
  if (at < 0) return;
  while (drawn <= at) drawMore();
  const details = byId("questions").children[at];
  details.open = true;
  details.scrollIntoView();
}

function writeHash() {
  const parts = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  const hash = parts.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
  history.replaceState(null, "", `#${hash}`);
}

function changed() {
  for (const button of document.querySelectorAll("[data-show]"))
    button.setAttribute("aria-pressed", String(button.dataset.show === state.show));
  writeHash();
  return filter();
}

function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  state.show = Object.hasOwn(SHOWN, hash.get("show") ?? "") ? hash.get("show") : DEFAULTS.show;
  state.sort = Object.hasOwn(SORTS, hash.get("sort") ?? "") ? hash.get("sort") : DEFAULTS.sort;
  state.search = hash.get("search") ?? "";
  state.inside = hash.get("inside") === "true";
  state.open = hash.get("open") ?? "";
  byId("sort").value = state.sort;
  byId("search").value = state.search;
  byId("inside").checked = state.inside;
}

async function followHash() {
  readHash();
  await changed();
  openQuestion(state.open);
}

async function begin() {
  questions = await unpack("index");
  questions.forEach((q, place) => {
    q.place = place;
    q.right = q.correct.filter(Boolean).length;
    q.length = q.tokens.reduce((sum, x) => sum + x, 0) / q.tokens.length;
    q.haystack = [q.id, q.question, q.answer, ...q.extracted].join("\n").toLowerCase();
  });
  await followHash();
  window.addEventListener("hashchange", followHash);
}

let typing;
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("click", (event) => {
  const button = event.target.closest("[data-show]");
  if (!button) return;
  state.show = button.dataset.show;
  changed();
});
byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; changed(); });
byId("inside").addEventListener("change", (event) => { state.inside = event.target.checked; changed(); });
byId("search").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => { state.search = event.target.value; changed(); }, 200);
});
byId("more").addEventListener("click", drawMore);
begin().catch((error) => {
  byId("failure").textContent = `This browser cannot unpack the responses (${error}); responses.jsonl holds the same.`;
  byId("failure").hidden = false;
});
