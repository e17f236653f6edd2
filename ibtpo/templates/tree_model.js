"use strict";
// A saved tree as the viewer uses it: who is whose child, the scores as of any round, equal siblings folded, colours.
// Pure functions of the data that ibtpo/saved_trees/files.py describes; no element of the page is touched here.

const SMALLEST_VALUE = 1e-6; // ib_score.SMALLEST_VALUE: below it a parent's p̂ says nothing
const LOG_PROB_UNIT = 1e-4;

// What nodes can be coloured by. centre: the number drawn neutral, of a scale with two ends; low, high: fixed ends.
const MEASURES = {
  value: { name: "p̂", title: "share that ends right", low: 0, high: 1, centre: () => 0.5 },
  J: { name: "J", title: "IB-Score: where trees branch" },
  eta1: { name: "η1", title: "information gain", centre: (s) => -1 / s.beta },
  eta2: { name: "η2", title: "confidence of the policy", low: 0, high: 1 },
  A: { name: "A", title: "advantage in the loss", centre: () => 0 },
};

function buildModel(data) {
  const n = data.parent.length;
  const children = Array.from({ length: n }, () => []);
  const start = new Array(n).fill(0); // of a node's tokens
  const depth = new Array(n).fill(0);
  for (let i = 1, at = 0; i < n; i++) {
    children[data.parent[i]].push(i);
    depth[i] = depth[data.parent[i]] + 1;
    start[i] = at;
    at += data.length[i];
  }
  const through = Array.from({ length: n }, () => []); // responses of each node
  const endsAt = new Map(); // leaf -> response
  data.leaf.forEach((leaf, r) => {
    endsAt.set(leaf, r);
    for (let node = leaf; node >= 0; node = data.parent[node]) through[node].push(r);
  });
  const birth = through.map((rs) => Math.min(...rs.map((r) => data.round[r]))); // the round that made each node
  const model = { data, n, children, start, depth, through, endsAt, birth, rounds: Math.max(...data.round) };
  model.texts = new Array(n);
  return model;
}

// The text of each of a node's tokens. A character that spans tokens belongs to the one that completes it.
function tokenTexts(model, node) {
  const { data, start } = model;
  const ids = node ? data.tokens.slice(start[node], start[node] + data.length[node]) : data.prompt;
  const decoder = new TextDecoder("utf-8");
  return ids.map((id, i) => {
    const spelled = data.vocabulary[id];
    const bytes = Uint8Array.from(spelled, (c) => c.charCodeAt(0));
    if (bytes[0] === 0) return { id, special: true, text: new TextDecoder().decode(bytes.slice(1)) };
    return { id, special: false, text: decoder.decode(bytes, { stream: i + 1 < ids.length }) };
  });
}

function nodeText(model, node) {
  model.texts[node] ??= tokenTexts(model, node).filter((t) => !t.special).map((t) => t.text).join("");
  return model.texts[node];
}

const probability = (model, token) => Math.exp(-LOG_PROB_UNIT * model.data.log_probs[token]);

// p̂, η1, η2, weights and J of the responses of rounds up to `round`: ib_score.py, with numbers of 53 bits. At the last
// round these are the saved ones.
function scoresAt(model, round) {
  const { data, n, children, through } = model;
  const option = data.options.score;
  if (round >= model.rounds)
    return { value: data.value, eta1: data.eta1, eta2: data.eta2, weight: data.weight, J: data.J, A: data.A };
  const seen = through.map((rs) => rs.filter((r) => data.round[r] <= round));
  const mean = (rs) => rs.reduce((sum, r) => sum + data.reward[r], 0) / Math.max(rs.length, 1);
  const value = seen.map(mean);
  const there = (node) => seen[node].length > 0;
  if (option.branch_value === "backup") {
    for (let node = n - 1; node >= 0; node--) {
      const kids = children[node].filter(there);
      if (kids.length) value[node] = kids.reduce((sum, kid) => sum + value[kid], 0) / kids.length;
    }
  }
  if (option.root === "initial") value[0] = mean(seen[0].filter((r) => data.round[r] === 0));
  const eta1 = new Array(n).fill(0);
  const weight = new Array(n).fill(0);
  const J = new Array(n).fill(null);
  for (let node = 0; node < n; node++) {
    const kids = children[node].filter(there);
    if (!kids.length) continue;
    const share = (kid) => (option.child_weight === "uniform" ? 1 : seen[kid].length);
    const total = kids.reduce((sum, kid) => sum + share(kid), 0);
    let sum = 0;
    for (const kid of kids) {
      const ratio = value[node] >= SMALLEST_VALUE ? value[kid] / value[node] : 1;
      eta1[kid] = ratio ** option.ratio_power - (1 + 1 / option.beta);
      weight[kid] = share(kid) / total;
      sum += weight[kid] * eta1[kid] * data.eta2[kid];
    }
    J[node] = 1 + option.beta * sum;
  }
  return { value, eta1, eta2: data.eta2, weight, J, A: data.A };
}

// The nodes as they are drawn: those made by rounds up to `round`, siblings with the same tokens as one where `fold`.
// Places are in columns (depth) and rows (leaves in order, a parent half-way between its first and last child).
function layOut(model, round, fold) {
  const { data, children, birth, start } = model;
  const drawn = [];
  let rows = 0;
  let columns = 0;
  const key = (node) => data.tokens.slice(start[node], start[node] + data.length[node]).join(" ");
  const stack = [{ members: [0], parent: -1, depth: 0 }];
  while (stack.length) {
    const next = stack.pop();
    const id = drawn.length;
    const forks = next.members.filter((m) => m && birth[m] > birth[data.parent[m]]).map((m) => birth[m]);
    drawn.push({ ...next, id, children: [], row: 0, forks: [...new Set(forks)].sort((a, b) => a - b) });
    if (next.parent >= 0) drawn[next.parent].children.push(id);
    columns = Math.max(columns, next.depth + 1);
    const kids = next.members.flatMap((m) => children[m]).filter((kid) => birth[kid] <= round);
    const groups = new Map();
    kids.forEach((kid) => {
      const name = fold ? key(kid) : kid;
      groups.has(name) ? groups.get(name).push(kid) : groups.set(name, [kid]);
    });
    for (const members of [...groups.values()].reverse()) stack.push({ members, parent: id, depth: next.depth + 1 });
  }
  for (const node of drawn) if (!node.children.length) node.row = rows++;
  for (let i = drawn.length - 1; i >= 0; i--) {
    const kids = drawn[i].children;
    if (kids.length) drawn[i].row = (drawn[kids[0]].row + drawn[kids.at(-1)].row) / 2;
  }
  const at = new Map(); // node -> the drawn one that shows it
  drawn.forEach((node) => node.members.forEach((m) => at.set(m, node.id)));
  // The parent that later rounds forked from is marked.
  drawn.forEach((node) => { if (node.forks.length) drawn[node.parent].forked = true; });
  return { drawn, at, rows: Math.max(rows, 1), columns };
}

// A measure of a drawn node: the mean over its members, weighted by their responses; null where none has it.
function measureOf(model, scores, node, name) {
  let sum = 0;
  let total = 0;
  for (const m of node.members) {
    const x = scores[name][m];
    if (x === null || (m === 0 && name !== "value" && name !== "J")) continue;
    sum += x * model.through[m].length;
    total += model.through[m].length;
  }
  return total ? sum / total : null;
}

// --- colours: blue and orange, which every common form of colour blindness tells apart ---------------------------------

const PALETTES = {
  light: { low: [228, 128, 56], middle: [226, 226, 219], high: [26, 111, 168], none: [255, 255, 255] },
  dark: { low: [224, 118, 40], middle: [66, 70, 76], high: [64, 156, 222], none: [21, 24, 27] },
};

function mix(a, b, t) {
  return a.map((x, i) => Math.round(x + (b[i] - x) * t));
}

// {low, high, centre?} of a measure over the drawn nodes.
function rangeOf(model, scores, drawn, name) {
  const measure = MEASURES[name];
  const all = drawn.map((node) => measureOf(model, scores, node, name)).filter((x) => x !== null);
  let low = measure.low ?? Math.min(...all, Infinity);
  let high = measure.high ?? Math.max(...all, -Infinity);
  if (!all.length && low > high) [low, high] = [0, 1];
  const centre = measure.centre?.(model.data.options.score);
  if (centre !== undefined && measure.low === undefined) {
    const reach = Math.max(high - centre, centre - low, 1e-3); // the same to both sides: equal colours, equal sizes
    [low, high] = [centre - reach, centre + reach];
  }
  return { low, high, centre };
}

function colourOf(x, range, theme) {
  const colours = PALETTES[theme];
  if (x === null) return colours.none;
  const clamp = (t) => Math.min(Math.max(t, 0), 1);
  if (range.centre === undefined)
    return mix(colours.middle, colours.high, range.high > range.low ? clamp((x - range.low) / (range.high - range.low)) : 0.5);
  return x >= range.centre
    ? mix(colours.middle, colours.high, clamp((x - range.centre) / (range.high - range.centre || 1)))
    : mix(colours.middle, colours.low, clamp((range.centre - x) / (range.centre - range.low || 1)));
}

const asCss = (colour) => `rgb(${colour.join(",")})`;

// Black or white, whichever is easier to read on a colour (relative luminance of the web's contrast rules).
function inkOn(colour) {
  const [r, g, b] = colour.map((x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) ? "#14171a" : "#ffffff";
}

function shown(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  const text = Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-4) ? x.toExponential(2) : x.toFixed(digits);
  return text.replace("-", "−");
}
