"use strict";
// The curves of runs, as small SVG panels. One colour for a group of runs (Okabe and Ito's, which the common forms of
// colour blindness tell apart), solid for a panel's first metric and dashed for its second, a band for the interval.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a"];
const AXES = { steps: "updates", tokens: "tokens generated for training", seconds: "seconds" };
const BOX = { width: 340, height: 190, left: 46, right: 10, top: 10, bottom: 26 };
const SMOOTHED = 40; // points from which a training curve is smoothed

function niceTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const ticks = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step) ticks.push(Number(x.toPrecision(12)));
  return ticks;
}

function short(x) {
  const size = Math.abs(x);
  if (size >= 1e9) return `${+(x / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(x / 1e3).toPrecision(3)}k`;
  if (size && size < 1e-3) return x.toExponential(1).replace("e-", "e−");
  return String(+x.toPrecision(4)).replace("-", "−");
}

// Centred mean over at most `window` neighbours, narrower at both ends.
function smoothed(values, window) {
  const half = window >> 1;
  return values.map((_, i) => {
    const reach = Math.min(half, i, values.length - 1 - i);
    const known = values.slice(i - reach, i + reach + 1).filter((x) => x !== null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  });
}

// Values of an axis at steps: of the last update at or before each, 0 before the first.
function axisOf(group, axis, steps) {
  if (axis === "steps") return steps;
  const known = group.axes[axis];
  if (!known) return null;
  let at = -1;
  return steps.map((step) => {
    while (at + 1 < known[0].length && known[0][at + 1] <= step) at++;
    return at < 0 ? 0 : known[1][at];
  });
}

class CurvePanel {
  constructor(data, title, unit, metrics) {
    Object.assign(this, { data, title, unit, metrics });
    this.element = make("figure", "curve");
    this.element.append(make("figcaption", "", title));
    this.svg = svgElement("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": title });
    this.readout = make("div", "readout");
    this.element.append(this.svg, this.readout);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  // {group, colour, dashed, label, x, y, low, high, raw} of everything there is to draw.
  lines(axis, smooth) {
    const found = [];
    this.metrics.forEach(([name, label], place) => {
      this.data.groups.forEach((group, g) => {
        const curve = group.curves[name];
        const x = curve && axisOf(group, axis, curve[0]);
        if (!x || !curve[1].some((v) => v !== null)) return;
        const many = smooth && name.startsWith("train/") && x.length > SMOOTHED;
        const change = (v) => (many ? smoothed(v, Math.max(Math.floor(x.length / 10), 3)) : v);
        const colour = COLOURS[g % COLOURS.length];
        const own = group.runs.length > 1 ? group.runs.map((r) => this.data.runs[r].curves[name]).filter(Boolean) : [];
        found.push({
          group, colour, dashed: place > 0, label, x, y: change(curve[1]), low: change(curve[2]), high: change(curve[3]),
          raw: many ? curve[1] : null, own: place ? [] : own.map((c) => [axisOf(group, axis, c[0]), change(c[1])]),
        });
      });
    });
    return found;
  }

  draw(axis, smooth) {
    this.drawn = this.lines(axis, smooth);
    this.svg.replaceChildren();
    this.readout.textContent = this.unit;
    this.element.classList.toggle("empty", !this.drawn.length);
    if (!this.drawn.length) return;
    const all = this.drawn.flatMap((l) => [...l.y, ...l.low, ...l.high].filter((v) => v !== null));
    let [low, high] = [Math.min(...all), Math.max(...all)];
    if (high - low < 1e-9 * Math.max(Math.abs(high), 1e-9)) [low, high] = [low - Math.max(Math.abs(low) * 0.1, 1e-3), high + Math.max(Math.abs(high) * 0.1, 1e-3)];
    const pad = (high - low) * 0.06;
    const xs = this.drawn.flatMap((l) => [l.x[0], l.x.at(-1)]);
    this.scale = { low: low - pad, high: high + pad, x0: Math.min(...xs), x1: Math.max(...xs, Math.min(...xs) + 1e-9) };
    this.drawFrame();
    for (const line of this.drawn) this.drawLine(line);
    this.cursor = svgElement("g", {});
    this.svg.append(this.cursor);
  }

  at(x, y) {
    const { low, high, x0, x1 } = this.scale;
    const px = BOX.left + ((x - x0) / (x1 - x0 || 1)) * (BOX.width - BOX.left - BOX.right);
    return [px, BOX.height - BOX.bottom - ((y - low) / (high - low)) * (BOX.height - BOX.top - BOX.bottom)];
  }

  drawFrame() {
    const { low, high, x0, x1 } = this.scale;
    const text = (x, y, label, anchor) => svgElement("text", { x, y, "text-anchor": anchor, class: "tick" }, label);
    for (const y of niceTicks(low, high, 6)) {
      const [, py] = this.at(x0, y);
      this.svg.append(svgElement("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: py, y2: py, class: "grid" }));
      this.svg.append(text(BOX.left - 6, py + 3.5, short(y), "end"));
    }
    for (const x of niceTicks(x0, x1, 5)) {
      const [px] = this.at(x, low);
      this.svg.append(text(px, BOX.height - BOX.bottom + 16, short(x), "middle"));
    }
    this.svg.append(svgElement("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: BOX.height - BOX.bottom, y2: BOX.height - BOX.bottom, class: "axis" }));
  }

  trace(x, y) {
    let path = "";
    let open = false;
    y.forEach((v, i) => {
      if (v === null) { open = false; return; }
      const [px, py] = this.at(x[i], v);
      path += `${open ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
      open = true;
    });
    return path;
  }

  drawLine({ colour, dashed, x, y, low, high, raw, own }) {
    const known = x.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null);
    if (known.length > 1 && !dashed) {
      const points = [...known.map((i) => this.at(x[i], high[i])), ...known.reverse().map((i) => this.at(x[i], low[i]))];
      this.svg.append(svgElement("path", { d: `M${points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L")}Z`, fill: colour, opacity: 0.16, class: "band" }));
    }
    const thin = (d) => this.svg.append(svgElement("path", { d, fill: "none", stroke: colour, "stroke-width": 0.8, opacity: 0.4 }));
    if (raw && !dashed) thin(this.clipped(x, raw));
    own.forEach(([ox, oy]) => ox && thin(this.clipped(ox, oy)));
    this.svg.append(svgElement("path", { d: this.trace(x, y), fill: "none", stroke: colour, "stroke-width": dashed ? 1.4 : 2, "stroke-linejoin": "round", ...(dashed ? { "stroke-dasharray": "4 3" } : {}) }));
    if (x.length <= SMOOTHED && !dashed)
      y.forEach((v, i) => {
        if (v === null) return;
        const [cx, cy] = this.at(x[i], v);
        this.svg.append(svgElement("circle", { cx, cy, r: 2, fill: colour }));
      });
  }

  // Thin lines may leave the frame that the others set; they end at it.
  clipped(x, y) {
    const { low, high } = this.scale;
    return this.trace(x, y.map((v) => (v === null ? null : Math.min(Math.max(v, low), high))));
  }

  point(event) {
    if (!this.drawn?.length) return;
    this.cursor.replaceChildren();
    this.readout.replaceChildren(this.unit);
    if (!event) return;
    const box = this.svg.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * BOX.width - BOX.left) / (BOX.width - BOX.left - BOX.right);
    const wanted = this.scale.x0 + Math.min(Math.max(share, 0), 1) * (this.scale.x1 - this.scale.x0);
    this.readout.replaceChildren();
    for (const line of this.drawn) {
      let best = -1;
      line.x.forEach((x, i) => {
        if (line.y[i] !== null && (best < 0 || Math.abs(x - wanted) < Math.abs(line.x[best] - wanted))) best = i;
      });
      if (best < 0) continue;
      const [cx, cy] = this.at(line.x[best], line.y[best]);
      this.cursor.append(svgElement("circle", { cx, cy, r: 3.5, fill: "none", stroke: line.colour, "stroke-width": 1.5 }));
      if (!this.readout.childNodes.length) this.readout.append(`at ${short(line.x[best])}: `);
      const range = line.low[best] === null || line.dashed ? "" : ` (${short(line.low[best])}…${short(line.high[best])})`;
      const value = make("span", "", `${this.metrics.length > 1 ? `${line.label} ` : ""}${short(line.y[best])}${range} `);
      value.style.color = line.colour;
      this.readout.append(value);
    }
  }
}

function beginCurves(data) {
  const keys = byId("curve-keys");
  data.groups.forEach((group, g) => {
    const key = make("span", "key-line", group.name);
    key.style.setProperty("--colour", COLOURS[g % COLOURS.length]);
    key.title = `band: ${group.spread}`;
    keys.append(key);
  });
  for (const axis of ["tokens", "seconds"])
    if (data.groups.some((group) => group.axes[axis])) byId("curve-axis").append(new Option(AXES[axis], axis));
  const panels = data.panels.map(({ title, unit, metrics }) => {
    const named = metrics.filter(([name]) => data.groups.some((group) => group.curves[name]));
    const labels = named.map(([, label], i) => (i ? `dashed: ${label}` : label)).join(", ");
    return new CurvePanel(data, title, named.length > 1 ? `${unit} — ${labels}` : unit, named);
  });
  byId("panels").append(...panels.map((panel) => panel.element));
  const names = [...new Set(data.groups.flatMap((group) => Object.keys(group.curves)))].sort();
  byId("metric-count").textContent = `(${names.length})`;
  let others = null; // made when they are asked for
  const redraw = () => {
    const [axis, smooth] = [byId("curve-axis").value, byId("curve-smooth").checked];
    [...panels, ...(others ?? [])].forEach((panel) => panel.draw(axis, smooth));
  };
  byId("all-metrics").addEventListener("toggle", () => {
    if (others) return;
    others = names.map((name) => new CurvePanel(data, name, "", [[name, name]]));
    byId("metrics").append(...others.map((panel) => panel.element));
    redraw();
  });
  byId("metric-search").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    others?.forEach((panel) => { panel.element.hidden = !panel.title.toLowerCase().includes(wanted); });
  });
  byId("curve-axis").addEventListener("change", redraw);
  byId("curve-smooth").addEventListener("change", redraw);
  redraw();
}
