"use strict";
// The tree viewer: what is chosen, and what follows from it. Data come packed, one block per question, and are unpacked
// when a question is opened. The state is in the page's address, so that a view can be linked to.

const byId = (id) => document.getElementById(id);
const ZOOMS = [0.04, 0.06, 0.09, 0.13, 0.18, 0.25, 0.35, 0.45, 0.55, 0.7, 0.85, 1, 1.25, 1.6];
const PLAY_MS = 1100;

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function currentTheme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen) return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

class TreeView {
  constructor(entries) {
    this.entries = entries;
    this.drawing = new TreeDrawing(byId("tree-scroll"), byId("tree-svg"));
    this.measure = "value";
    this.fold = true;
    this.node = -1; // the chosen step
    this.response = 0; // the one whose text is shown
    this.opened = 0;
    this.fillSources();
    this.listen();
  }

  // --- which tree --------------------------------------------------------------------------------------------------

  fillSources() {
    this.sources = [...new Set(this.entries.map((e) => e.source))];
    byId("tree-source").append(...this.sources.map((name) => new Option(name, name)));
  }

  async open(place, state = {}) {
    const mine = ++this.opened;
    const entry = this.entries[place];
    const data = await unpack(entry.block);
    if (mine !== this.opened) return; // another was asked for meanwhile
    this.stop();
    this.place = place;
    this.model = buildModel(data);
    this.round = Math.min(Math.max(state.round ?? this.model.rounds, 0), this.model.rounds);
    byId("tree-source").value = entry.source;
    const ofSource = this.entries.map((e, i) => [e, i]).filter(([e]) => e.source === entry.source);
    byId("tree-question").replaceChildren(...ofSource.map(([e, i]) => new Option(e.label, i)));
    byId("tree-question").value = String(place);
    byId("round").max = String(this.model.rounds);
    byId("tree-rounds").hidden = this.model.rounds === 0;
    this.node = -1;
    this.response = 0;
    this.prepare();
    this.zoom = this.firstZoom();
    const wanted = state.node ?? 0;
    this.pick(wanted < this.model.n ? wanted : 0, false);
    this.drawing.scroller.scrollTo({ left: 0, top: 0 });
    if (state.node) this.drawing.reveal(this.layout.at.get(this.node) ?? 0);
    document.documentElement.dataset.opened = String(place);
  }

  // The first question of another source: the same question where it is there too, as in evaluations.
  openSource(name) {
    const problem = this.entries[this.place].problem;
    const found = this.entries.map((e, i) => [e, i]).filter(([e]) => e.source === name);
    this.open((found.find(([e]) => e.problem === problem) ?? found[0])[1]);
  }

  step(by) {
    const place = this.place + by;
    if (place >= 0 && place < this.entries.length) this.open(place);
  }

  // --- what is drawn -----------------------------------------------------------------------------------------------

  prepare() {
    this.scores = scoresAt(this.model, this.round);
    this.layout = layOut(this.model, this.round, this.fold);
    this.range = rangeOf(this.model, this.scores, this.layout.drawn, this.measure);
  }

  firstZoom() {
    const { clientWidth, clientHeight } = this.drawing.scroller;
    const fit = TreeDrawing.fit(this.layout, clientWidth);
    if (fit >= 0.5) return Math.min(fit, Math.max(1, Math.min(1.3, clientHeight / (this.layout.rows * ROW + 2 * TOP))));
    return this.layout.columns > 16 ? Math.max(fit, ZOOMS[0]) : 0.62;
  }

  draw() {
    const path = new Set();
    const end = this.model.data.leaf[this.response];
    for (let at = this.node > 0 ? this.node : this.node === 0 ? 0 : -1; at >= 0; at = this.model.data.parent[at])
      if (this.layout.at.has(at)) path.add(this.layout.at.get(at));
    this.end = end;
    const theme = currentTheme();
    const scene = { model: this.model, layout: this.layout, scores: this.scores, measure: this.measure, range: this.range, theme, path };
    this.drawing.show({ ...scene, selected: this.layout.at.get(this.node) ?? -1 }, this.zoom);
    this.drawLegend(theme);
    this.drawCaption();
    byId("round").value = String(this.round);
    byId("round-name").textContent = `round ${this.round} of ${this.model.rounds}`;
    for (const button of byId("tree-colours").children)
      button.setAttribute("aria-pressed", String(button.dataset.measure === this.measure));
  }

  drawLegend(theme) {
    const { low, high, centre } = this.range;
    const legend = byId("tree-legend");
    const stops = Array.from({ length: 9 }, (_, i) => asCss(colourOf(low + ((high - low) * i) / 8, this.range, theme)));
    legend.querySelector(".low").textContent = shown(Math.abs(low) < 0.005 ? 0 : low, 2);
    legend.querySelector(".high").textContent = shown(Math.abs(high) < 0.005 ? 0 : high, 2);
    legend.querySelector("i").style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    legend.querySelector("i").title = centre === undefined ? "" : `neutral: ${shown(centre, 2)}`;
    legend.querySelector(".what").textContent = MEASURES[this.measure].title;
  }

  // What the round did: where it forked, and how that node's J stood among the others before it.
  drawCaption() {
    const { model, round } = this;
    const caption = byId("tree-caption");
    const count = model.data.round.filter((r) => r <= round).length;
    const rewards = model.data.reward.filter((_, r) => model.data.round[r] <= round);
    const right = rewards.filter((x) => x === 1).length;
    caption.replaceChildren(make("b", "", `${count} response${count === 1 ? "" : "s"}, ${right} right. `));
    if (!round) {
      caption.append("Round 0: independent responses.");
      return;
    }
    const before = scoresAt(model, round - 1);
    const known = before.J.filter((j) => j !== null);
    const forks = new Map(); // node forked from -> new responses
    model.data.leaf.forEach((leaf, r) => {
      if (model.data.round[r] !== round) return;
      let at = leaf;
      while (at > 0 && model.birth[model.data.parent[at]] === round) at = model.data.parent[at];
      const from = model.data.parent[at];
      forks.set(from, (forks.get(from) ?? 0) + 1);
    });
    caption.append(`Round ${round}: `);
    for (const [node, number] of forks) {
      const j = before.J[node];
      const button = make("button", "node-link", node ? `step [${node}]` : "the question");
      button.type = "button";
      button.addEventListener("click", () => this.pick(node));
      const rank = j === null ? "" : `, J = ${shown(j)} before it (place ${1 + known.filter((x) => x > j + 1e-9).length} of ${known.length})`;
      caption.append(`${number} response${number === 1 ? "" : "s"} from `, button, `${rank}. `);
    }
  }

  // --- what is chosen ----------------------------------------------------------------------------------------------

  pick(node, reveal = true) {
    this.node = node;
    const seen = (r) => this.model.data.round[r] <= this.round;
    if (node >= 0 && !(this.model.through[node].includes(this.response) && seen(this.response)))
      this.response = this.model.through[node].find(seen) ?? this.model.through[node][0];
    this.draw();
    this.drawPanel();
    if (reveal && node >= 0 && this.layout.at.has(node)) this.drawing.reveal(this.layout.at.get(node));
    writeState();
  }

  drawPanel() {
    const { model, scores, node } = this;
    const detail = byId("tree-detail");
    const reading = byId("tree-reading");
    const pick = (x) => this.pick(x);
    if (node < 0) {
      detail.replaceChildren(make("p", "soft", "Choose a step: click it, or use the arrow keys."));
      reading.replaceChildren();
      return;
    }
    const head = make("h3", "", node ? `Step [${node}]` : "Question");
    const facts = make("p", "facts");
    const chips = { "p̂": scores.value[node], J: scores.J[node], ...(node ? { "η1": scores.eta1[node], "η2": scores.eta2[node], A: scores.A[node] } : {}) };
    for (const [name, x] of Object.entries(chips)) facts.append(make("span", "chip", `${name} ${shown(x)}`));
    const about = make("p", "soft");
    const rounds = model.birth[node] ? `made in round ${model.birth[node]}` : "made in round 0";
    if (node) about.append(`${model.data.length[node]} token${model.data.length[node] === 1 ? "" : "s"}, ${rounds}, ${model.through[node].length} of ${model.data.leaf.length} responses. `);
    else about.append(`Reference answer: ${model.data.answer.slice(0, 200)}`);
    const same = this.layout.drawn[this.layout.at.get(node)]?.members ?? [];
    if (same.length > 1) {
      about.append(`One of ${same.length} equal samples: `);
      same.forEach((m) => {
        const button = make("button", "node-link", `[${m}]`);
        button.type = "button";
        button.disabled = m === node;
        button.addEventListener("click", () => this.pick(m));
        about.append(button, " ");
      });
    }
    const late = this.round < model.rounds ? make("p", "soft", `Numbers as of round ${this.round}; A is of the whole tree.`) : "";
    detail.replaceChildren(head, facts, about, late, drawTokens(model, node), make("h4", "", "Score"), drawScore(model, scores, node, this.round, pick));
    this.drawReading(reading, pick);
  }

  drawReading(reading, pick) {
    const { model, node, response } = this;
    const { data } = model;
    const through = model.through[node].filter((r) => data.round[r] <= this.round);
    const at = through.indexOf(response);
    const title = make("h4", "", `Response ${response}`);
    const facts = make("span", "soft", ` round ${data.round[response]}, reward ${shown(data.reward[response], Number.isInteger(data.reward[response]) ? 0 : 2)}${data.cut[response] ? ", cut off" : ""}${data.stated[response] === null ? "" : `, answer ${data.stated[response].slice(0, 80)}`}`);
    title.append(facts);
    const bar = make("div", "buttons");
    for (const [text, by] of [["‹", -1], ["›", 1]]) {
      const button = make("button", "", text);
      button.type = "button";
      button.disabled = !(at + by in through);
      button.title = by < 0 ? "the response before, through this step" : "the next response through this step";
      button.addEventListener("click", () => { this.response = through[at + by]; this.draw(); this.drawPanel(); });
      bar.append(button);
    }
    bar.append(make("span", "soft", `${at + 1} of ${through.length} through this step`));
    const text = drawResponse(model, this.scores, this.range, this.measure, currentTheme(), node, response, pick);
    reading.replaceChildren(title, bar, text);
    const chosen = text.querySelector(".chosen");
    // Within the reading pane only: the page itself must not jump.
    if (chosen && reading.scrollHeight > reading.clientHeight)
      reading.scrollTop = Math.max(chosen.offsetTop - reading.offsetTop - reading.clientHeight / 3, 0);
  }

  setRound(round) {
    this.round = Math.min(Math.max(round, 0), this.model.rounds);
    this.prepare();
    if (this.node >= 0 && this.model.birth[this.node] > this.round) this.node = 0;
    this.pick(this.node, false);
  }

  play() {
    if (this.timer) return this.stop();
    if (this.round >= this.model.rounds) this.setRound(0);
    this.timer = setInterval(() => {
      this.setRound(this.round + 1);
      if (this.round >= this.model.rounds) this.stop();
    }, PLAY_MS);
    byId("round-play").textContent = "❚❚ stop";
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    byId("round-play").textContent = "▶ play";
  }

  zoomBy(direction) {
    const next = direction > 0 ? ZOOMS.find((z) => z > this.zoom + 1e-6) : ZOOMS.findLast((z) => z < this.zoom - 1e-6);
    if (next) this.setZoom(next);
  }

  setZoom(zoom) {
    const { scroller } = this.drawing;
    const share = [scroller.scrollLeft / Math.max(scroller.scrollWidth, 1), scroller.scrollTop / Math.max(scroller.scrollHeight, 1)];
    this.zoom = zoom;
    this.draw();
    scroller.scrollTo({ left: share[0] * scroller.scrollWidth, top: share[1] * scroller.scrollHeight });
  }

  move(key) {
    const { drawn, at } = this.layout;
    const here = drawn[at.get(this.node) ?? 0];
    if (key === "ArrowLeft" && here.parent >= 0) return this.pick(drawn[here.parent].members[0]);
    if (key === "ArrowRight" && here.children.length) return this.pick(drawn[here.children[0]].members[0]);
    if (key !== "ArrowUp" && key !== "ArrowDown") return;
    const level = drawn.filter((node) => node.depth === here.depth).sort((a, b) => a.row - b.row);
    const next = level[level.indexOf(here) + (key === "ArrowUp" ? -1 : 1)];
    if (next) this.pick(next.members[0]);
  }

  // --- hands -------------------------------------------------------------------------------------------------------

  listen() {
    const on = (id, type, act) => byId(id).addEventListener(type, act);
    on("tree-source", "change", (event) => this.openSource(event.target.value));
    on("tree-question", "change", (event) => this.open(Number(event.target.value)));
    on("tree-before", "click", () => this.step(-1));
    on("tree-next", "click", () => this.step(1));
    on("tree-colours", "click", (event) => {
      const button = event.target.closest("[data-measure]");
      if (button) this.colourBy(button.dataset.measure);
    });
    on("round", "input", (event) => { this.stop(); this.setRound(Number(event.target.value)); });
    on("round-play", "click", () => this.play());
    on("round-before", "click", () => { this.stop(); this.setRound(this.round - 1); });
    on("round-next", "click", () => { this.stop(); this.setRound(this.round + 1); });
    on("zoom-in", "click", () => this.zoomBy(1));
    on("zoom-out", "click", () => this.zoomBy(-1));
    on("zoom-fit", "click", () => this.setZoom(Math.max(TreeDrawing.fit(this.layout, this.drawing.scroller.clientWidth), ZOOMS[0])));
    on("tree-fold", "change", (event) => { this.fold = event.target.checked; this.prepare(); this.pick(this.node, false); });
    on("save-svg", "click", () => saveTree(this, "svg"));
    on("save-png", "click", () => saveTree(this, "png"));
    on("tree-svg", "click", (event) => {
      const id = TreeDrawing.idOf(event);
      if (id >= 0) this.pick(this.layout.drawn[id].members[0], false);
    });
    on("tree-svg", "pointermove", (event) => this.point(event));
    on("tree-svg", "pointerleave", () => { byId("tree-tip").hidden = true; });
    byId("tree-scroll").addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  redraw() {
    if (this.model) { this.draw(); this.drawPanel(); }
  }

  colourBy(measure) {
    this.measure = measure;
    this.range = rangeOf(this.model, this.scores, this.layout.drawn, measure);
    this.pick(this.node, false);
  }

  point(event) {
    const id = TreeDrawing.idOf(event);
    const tip = byId("tree-tip");
    tip.hidden = id < 0 || event.pointerType === "touch";
    if (tip.hidden) return;
    const node = this.layout.drawn[id];
    const text = id ? nodeText(this.model, node.members[0]).trim().slice(0, 240) || "(end)" : this.model.data.question.slice(0, 240);
    const x = measureOf(this.model, this.scores, node, this.measure);
    tip.textContent = `${text.toWellFormed?.() ?? text}\n${MEASURES[this.measure].name} = ${shown(x)}`;
    const box = tip.parentElement.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - 270)}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.model) return;
    const acts = {
      " ": () => this.play(), "[": () => this.setRound(this.round - 1), "]": () => this.setRound(this.round + 1),
      Escape: () => { this.stop(); this.pick(-1, false); }, Home: () => this.pick(0),
      "+": () => this.zoomBy(1), "=": () => this.zoomBy(1), "-": () => this.zoomBy(-1), 0: () => byId("zoom-fit").click(),
      n: () => this.step(1), p: () => this.step(-1),
    };
    Object.keys(MEASURES).forEach((name, i) => { acts[i + 1] = () => this.colourBy(name); });
    if (event.key.startsWith("Arrow")) this.move(event.key);
    else if (acts[event.key]) acts[event.key]();
    else return;
    event.preventDefault();
  }
}

// --- the address -------------------------------------------------------------------------------------------------------

let view = null;

function writeState() {
  if (!view?.model) return;
  const state = { tree: view.place, node: view.node, round: view.round, colour: view.measure };
  try {
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  } catch {
    // A page inside another one, as in a notebook, has no address of its own.
  }
}

async function beginTrees(entries) {
  view = new TreeView(entries);
  const state = new URLSearchParams(location.hash.slice(1));
  const whole = (name) => (/^\d{1,9}$/.test(state.get(name) ?? "") ? Number(state.get(name)) : undefined);
  if (Object.hasOwn(MEASURES, state.get("colour") ?? "")) view.measure = state.get("colour");
  const place = whole("tree") ?? view.entries.findIndex((e) => e.first);
  await view.open(place >= 0 && place < entries.length ? place : 0, { node: whole("node"), round: whole("round") });
}
