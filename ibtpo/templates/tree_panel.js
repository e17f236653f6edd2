"use strict";
// What stands beside the tree: the chosen step with its tokens, the arithmetic of its score, and a response's text.

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  // Lone surrogates, which JSON may hold and no document should, become U+FFFD where the browser can do that.
  if (text !== undefined) element.textContent = String(text).toWellFormed?.() ?? text;
  return element;
}

const percent = (x) => (x >= 0.9995 ? "100 %" : x < 0.01 && x > 0 ? `${(100 * x).toPrecision(1)} %` : `${(100 * x).toFixed(1)} %`);

// Tokens with a background for what the policy did not expect: nothing at 1, full at 1 in 20 and below.
function drawTokens(model, node) {
  const box = make("div", "tokens");
  const first = model.start[node];
  const note = make("p", "token-note", "A token's shade: how unlikely it was. Point at one for its probability.");
  const texts = tokenTexts(model, node);
  texts.forEach((token, i) => {
    const last = texts.slice(i + 1).every((later) => later.special);
    // The line breaks that end a step are signs, not empty lines.
    const span = make("span", token.special ? "token special" : "token", last ? token.text.replace(/\n/g, "⏎") : token.text);
    if (node) {
      const p = probability(model, first + i);
      const heat = Math.min(-Math.log(p) / Math.log(20), 1);
      if (heat > 0.02) span.style.setProperty("--heat", `${Math.round(100 * heat)}%`);
      span.dataset.p = percent(p);
    }
    span.dataset.id = token.id;
    box.append(span);
  });
  const tell = (event) => {
    const span = event.target.closest(".token");
    if (!span || !span.dataset.p) return;
    note.textContent = `“${span.textContent.replace(/\n/g, "⏎")}” (token ${span.dataset.id}): probability ${span.dataset.p}`;
  };
  box.addEventListener("pointerover", tell);
  box.addEventListener("click", tell);
  const holder = make("div", "heat");
  holder.append(box);
  if (node) holder.append(note);
  return holder;
}

function drawRow(cells, tag = "td") {
  const row = make("tr");
  row.append(...cells.map((cell) => (cell instanceof Node ? cell : make(tag, "", cell))));
  return row;
}

function nodeLink(node, pick) {
  const cell = make("td");
  const button = make("button", "node-link", `[${node}]`);
  button.type = "button";
  button.addEventListener("click", () => pick(node));
  cell.append(button);
  return cell;
}

// J of a node as a sum over its children; the numbers are those of `scores`.
function drawScore(model, scores, node, round, pick) {
  const { data, children, birth, through } = model;
  const option = data.options.score;
  const box = make("div", "score");
  const kids = children[node].filter((kid) => birth[kid] <= round);
  const rights = through[node].filter((r) => data.round[r] <= round);
  const sum = rights.reduce((total, r) => total + data.reward[r], 0);
  const lines = [];
  if (option.root === "initial" && node === 0) lines.push(`p̂ = ${shown(scores.value[0])}, the mean reward of the unguided responses`);
  else if (option.branch_value === "backup") lines.push(`p̂ = ${shown(scores.value[node])}, the mean over its children of theirs`);
  else lines.push(`p̂ = ${shown(sum, Number.isInteger(sum) ? 0 : 3)} / ${rights.length} = ${shown(scores.value[node])}   rewards of the responses through it`);
  if (node) {
    const parent = data.parent[node];
    const nats = data.log_probs.slice(model.start[node], model.start[node] + data.length[node]).reduce((a, b) => a + b, 0) * LOG_PROB_UNIT;
    const mean = option.confidence === "geometric_mean";
    lines.push(mean
      ? `η2 = exp(−${shown(nats)} / ${data.length[node]}) = ${shown(scores.eta2[node], 4)}   mean over its tokens`
      : `η2 = exp(−${shown(nats)}) = ${shown(scores.eta2[node], 4)}   all of its tokens`);
    const power = option.ratio_power === 1 ? "" : `^${option.ratio_power}`;
    const known = scores.value[parent] >= SMALLEST_VALUE;
    const ratio = known ? `(${shown(scores.value[node])} / ${shown(scores.value[parent])})${power}` : "1";
    lines.push(`η1 = ${ratio} − (1 + 1/${option.beta}) = ${shown(scores.eta1[node], 4)}${known ? "" : "   (p̂ of the parent is 0: ratio 1)"}`);
  }
  box.append(make("pre", "sums", lines.join("\n")));
  if (!kids.length) {
    box.append(make("p", "soft", "No step follows it, so it has no J."));
  } else {
    const table = make("table", "children");
    table.append(drawRow(["child", "p̂", "weight w", "η1", "η2", "w·η1·η2"], "th"));
    let total = 0;
    for (const kid of kids) {
      const product = scores.weight[kid] * scores.eta1[kid] * scores.eta2[kid];
      total += product;
      table.append(drawRow([nodeLink(kid, pick), shown(scores.value[kid]), shown(scores.weight[kid]), shown(scores.eta1[kid], 4), shown(scores.eta2[kid], 4), shown(product, 4)]));
    }
    table.append(drawRow(["sum", "", "", "", "", shown(total, 4)], "th"));
    const holder = make("div", "scroll");
    holder.append(table);
    box.append(holder);
    const sums = make("pre", "sums total", `J = 1 + β·sum = 1 + ${option.beta} · (${shown(total, 4)}) = ${shown(scores.J[node], 4)}`);
    sums.dataset.j = scores.J[node];
    sums.dataset.sum = 1 + option.beta * total;
    box.append(sums);
  }
  if (node) box.append(make("pre", "sums", advantageLines(model, scores, node).join("\n")));
  return box;
}

// A as A_GL + λ·A_IB where the saved numbers are just that; otherwise as it is.
function advantageLines(model, scores, node) {
  const { data } = model;
  const options = data.options;
  const A = data.A[node];
  const spread = data.A_low && data.A_high[node] - data.A_low[node] > 1e-6
    ? `   mean of its responses' (${shown(data.A_low[node])} to ${shown(data.A_high[node])})` : "";
  const plain = [`A = ${shown(A, 4)}   of ${options.advantage}, as the loss takes it${spread}`];
  const same = options.score.value === options.score.branch_value;
  if (options.advantage !== "ibtpo" || options.deviation === "bernoulli" || !same) return plain;
  const n = data.reward.length;
  const mean = data.reward.reduce((a, b) => a + b, 0) / n;
  const squares = data.reward.reduce((a, b) => a + (b - mean) ** 2, 0);
  const deviation = Math.sqrt(squares / Math.max(n - (options.deviation === "sample" ? 1 : 0), 1));
  const outcome = deviation > 0 ? (data.value[node] - data.value[0]) / deviation : 0;
  const information = data.eta1[node] * data.eta2[node];
  if (Math.abs(outcome + options.ib_weight * information - A) > 1e-4 * (1 + Math.abs(A))) return plain;
  return [
    deviation > 0
      ? `A_GL = (${shown(data.value[node])} − ${shown(data.value[0])}) / ${shown(deviation)} = ${shown(outcome, 4)}`
      : "A_GL = 0   all rewards are equal",
    `A_IB = η1·η2 = ${shown(information, 4)}`,
    `A = A_GL + ${options.ib_weight}·A_IB = ${shown(A, 4)}`,
  ];
}

// The text of a response, step by step, with those up to the chosen one marked.
function drawResponse(model, scores, range, measure, theme, node, response, pick) {
  const { data } = model;
  const path = [];
  for (let at = data.leaf[response]; at >= 0; at = data.parent[at]) path.unshift(at);
  const box = make("ol", "response");
  for (const at of path) {
    const step = make("li", at === node ? "chosen" : at > node && node >= 0 ? "after" : "before");
    const name = at === 0 ? "value" : measure;
    const x = at === 0 && measure !== "value" && measure !== "J" ? null : scores[name]?.[at] ?? null;
    step.style.setProperty("--bar", asCss(colourOf(at === 0 && measure !== "J" ? null : x, range, theme)));
    step.dataset.node = at;
    const body = make("div", "step-text");
    const text = at === 0 ? data.question : nodeText(model, at);
    body.append(renderMath(text.replace(/^\n+|\n+$/g, "").toWellFormed?.() ?? text));
    step.append(body);
    step.addEventListener("click", () => pick(at));
    box.append(step);
  }
  return box;
}
