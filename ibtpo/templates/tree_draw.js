"use strict";
// The tree as SVG. Only what is in sight has elements: a tree of 64 responses has thousands of nodes. Colours are
// attributes, not style sheets, so that a saved picture looks like the page.

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 150; // pixels of a step at zoom 1
const ROW = 32; // and of a response
const LEFT = 14;
const TOP = 16;
const RIGHT = 64; // room for rewards
const LABEL = 11; // font size
const INK = {
  light: { page: "#ffffff", text: "#1c1f23", soft: "#5c6570", line: "#b9bfc6", fork: "#7a3db8", path: "#1c1f23", right: "#00669c", wrong: "#b34700" },
  dark: { page: "#15181b", text: "#e6e8eb", soft: "#9aa4af", line: "#4a525a", fork: "#c39bf0", path: "#ffffff", right: "#6fbdf0", wrong: "#f0955a" },
};
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';

function svgElement(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// A text with U+FFFD for what no XML may hold, and so no SVG file: control characters and half surrogates.
const legal = (text) => (text.toWellFormed?.() ?? text).replace(/[\u0000-\u001f\u007f-\u009f\ufffe\uffff]/g, "\ufffd");

const ruler = document.createElement("canvas").getContext("2d");

// As much of a text as fits into a width, in pixels, with an ellipsis for the rest.
function fitted(text, width, size) {
  ruler.font = `${size}px ${FONT}`;
  const letters = [...text.slice(0, 200)];
  if (ruler.measureText(letters.join("")).width <= width) return letters.join("");
  let [fits, not] = [0, letters.length];
  while (not - fits > 1) {
    const middle = (fits + not) >> 1;
    if (ruler.measureText(`${letters.slice(0, middle).join("").trimEnd()}…`).width <= width) fits = middle;
    else not = middle;
  }
  return `${letters.slice(0, fits).join("").trimEnd()}…`;
}

class TreeDrawing {
  // scroller: the element that scrolls; svg: inside it.
  constructor(scroller, svg) {
    this.scroller = scroller;
    this.svg = svg;
    this.edges = svgElement("g", { fill: "none" });
    this.nodes = svgElement("g", { "font-family": FONT, "font-size": LABEL });
    svg.append(this.edges, this.nodes);
    this.elements = new Map(); // id of a drawn node -> its element
    let asked = false;
    const later = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; this.refresh(); });
    };
    scroller.addEventListener("scroll", later, { passive: true });
    new ResizeObserver(later).observe(scroller);
  }

  // scene: {model, layout, scores, measure, range, theme, path (set of drawn ids), selected (drawn id or -1)}
  show(scene, zoom) {
    const before = this.scene;
    this.scene = scene;
    const same = (name) => before[name] === scene[name];
    if (before && zoom === this.zoom && ["layout", "theme"].every(same)) {
      // The same nodes at the same places: other colours, or another choice, are drawn over them.
      const all = !["scores", "range"].every(same);
      const marked = [...before.path, ...scene.path, before.selected, scene.selected];
      for (const id of all ? this.elements.keys() : new Set(marked)) {
        const element = this.elements.get(id);
        if (element) this.paint(element, scene.layout.drawn[id]);
      }
      this.refresh();
      return;
    }
    this.zoom = zoom;
    this.column = COLUMN * zoom;
    // Rows take the height there is, within limits: a small tree need not huddle at the top.
    const room = (this.scroller.clientHeight - 2 * TOP - 4) / scene.layout.rows;
    const least = Math.max(ROW * Math.min(zoom, 1.15), 7);
    this.row = Math.max(least, Math.min(room, Math.max(1.6 * ROW * Math.min(zoom, 1.15), 11)));
    this.gap = Math.min(Math.max(this.column * 0.22, 3), 30);
    this.width = Math.max(this.column - this.gap, 3);
    this.height = Math.max(Math.min(this.row - 6, 30), 5);
    this.size = this.height >= 28 ? 12.5 : LABEL; // of labels
    this.labels = this.width >= 44 && this.height >= 13;
    const [w, h] = this.extent();
    this.svg.setAttribute("width", w);
    this.svg.setAttribute("height", h);
    this.nodes.replaceChildren();
    this.elements.clear();
    this.refresh();
  }

  extent() {
    const { layout } = this.scene;
    return [LEFT + layout.columns * this.column + RIGHT, 2 * TOP + layout.rows * this.row];
  }

  // The zoom at which all columns fit into a width.
  static fit(layout, width) {
    return (width - LEFT - RIGHT) / (layout.columns * COLUMN);
  }

  place(node) {
    return [LEFT + node.depth * this.column, TOP + (node.row + 0.5) * this.row];
  }

  refresh() {
    if (!this.scene) return;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.scroller;
    const reach = 240;
    const [x0, x1] = [scrollLeft - reach, scrollLeft + clientWidth + reach];
    const [y0, y1] = [scrollTop - reach, scrollTop + clientHeight + reach];
    const inside = (node) => {
      const [x, y] = this.place(node);
      return x + this.column >= x0 && x <= x1 && y >= y0 && y <= y1;
    };
    const { drawn } = this.scene.layout;
    const seen = new Set();
    for (const node of drawn) if (inside(node)) seen.add(node.id);
    for (const [id, element] of this.elements) {
      if (seen.has(id)) continue;
      element.remove();
      this.elements.delete(id);
    }
    const added = document.createDocumentFragment();
    for (const id of seen) {
      if (this.elements.has(id)) continue;
      const element = this.drawNode(drawn[id]);
      this.elements.set(id, element);
      added.append(element);
    }
    this.nodes.append(added);
    // An edge is in sight where it crosses the window, though both of its ends may be outside.
    const crosses = (node) => {
      const [, ay] = this.place(node);
      const [px, py] = this.place(drawn[node.parent]);
      return px <= x1 && px + 2 * this.column >= x0 && Math.min(ay, py) <= y1 && Math.max(ay, py) >= y0;
    };
    this.edges.replaceChildren(...this.drawEdges(drawn.filter((node) => node.parent >= 0 && crosses(node))));
  }

  drawEdges(nodes) {
    const { layout, path, theme } = this.scene;
    const ink = INK[theme];
    const lines = { line: [], fork: [], path: [] };
    for (const node of nodes) {
      const [px, py] = this.place(layout.drawn[node.parent]);
      const [x, y] = this.place(node);
      const from = px + this.width;
      const bend = Math.max((x - from) * 0.5, 1);
      const line = `M${from} ${py}C${from + bend} ${py} ${x - bend} ${y} ${x} ${y}`;
      const kind = path.has(node.id) ? "path" : node.forks.length ? "fork" : "line";
      lines[kind].push(line);
    }
    const widths = { line: 1.2, fork: 1.6, path: 2.6 };
    return Object.entries(lines)
      .filter(([, found]) => found.length)
      .map(([kind, found]) => svgElement("path", { d: found.join(""), stroke: ink[kind], "stroke-width": widths[kind] }));
  }

  drawNode(node) {
    const { model, layout, theme } = this.scene;
    const ink = INK[theme];
    const [x, y] = this.place(node);
    const group = svgElement("g", { transform: `translate(${x} ${y})`, class: "node" });
    group.dataset.id = node.id;
    const [w, h] = [this.width, this.height];
    group.append(svgElement("rect", { x: 0, y: -h / 2, width: w, height: h, rx: Math.min(5, h / 2.5) }));
    const folded = node.members.length > 1 ? `×${node.members.length}` : "";
    if (this.labels) this.drawLabel(group, node, folded);
    this.paint(group, node);
    if (node.forks.length && this.gap >= 11) this.drawForks(group, node, ink);
    if (!node.children.length) this.drawRewards(group, node, layout, model, ink);
    return group;
  }

  // The colours of a node's box and label.
  paint(group, node) {
    const { model, scores, measure, range, theme, path, selected } = this.scene;
    const ink = INK[theme];
    const value = measureOf(model, scores, node, measure);
    const colour = colourOf(value, range, theme);
    const chosen = node.id === selected;
    const stroke = chosen || path.has(node.id) ? ink.path : node.forked ? ink.fork : value === null ? ink.line : "none";
    const box = group.firstChild;
    box.setAttribute("fill", asCss(colour));
    box.setAttribute("stroke", stroke);
    box.setAttribute("stroke-width", chosen ? 3 : stroke === "none" ? 0 : stroke === ink.line ? 1 : 1.6);
    for (const label of group.querySelectorAll(".label")) label.setAttribute("fill", inkOn(colour));
  }

  drawLabel(group, node, folded) {
    const room = this.width - 12 - (folded ? 5 + 0.6 * this.size * folded.length : 0);
    const label = fitted(this.labelOf(node) || "(end)", room, this.size);
    group.append(svgElement("text", { x: 6, y: 4, class: "label", "font-size": this.size }, label));
    if (folded)
      group.append(svgElement("text", { x: this.width - 6, y: 4, class: "label", "font-size": this.size, "text-anchor": "end", "font-weight": 700 }, folded));
  }

  // The step's text in one line; of a response's last step the answer, where it states one.
  labelOf(node) {
    if (!node.id) return "question";
    const { model } = this.scene;
    const response = model.endsAt.get(node.members[0]);
    const stated = response === undefined ? null : model.data.stated[response];
    const text = stated === null ? nodeText(model, node.members[0]) : `→ ${stated}`;
    return legal(text.trim().replace(/\s+/g, " "));
  }

  drawForks(group, node, ink) {
    const size = Math.min(10, this.gap * 0.55);
    const wide = (text) => Math.max(size * 0.6 * text.length + 6, size + 4);
    // All rounds that forked here where there is room for them, or the first and a plus.
    const all = node.forks.join(" ");
    const text = node.forks.length === 1 || wide(all) <= this.gap - 1 ? all : `${node.forks[0]}+`;
    const width = wide(text);
    const x = -Math.max(width / 2 + 1, this.gap * 0.34);
    group.append(
      svgElement("rect", { x: x - width / 2, y: -size * 0.75, width, height: size * 1.5, rx: size * 0.6, fill: ink.fork }),
      svgElement("text", { x, y: size * 0.36, fill: ink.page, "font-size": size, "font-weight": 700, "text-anchor": "middle" }, text),
    );
  }

  drawRewards(group, node, layout, model, ink) {
    const ends = node.members.map((m) => model.endsAt.get(m)).filter((r) => r !== undefined);
    if (!ends.length) return;
    const reward = ends.reduce((sum, r) => sum + model.data.reward[r], 0) / ends.length;
    const cut = ends.some((r) => model.data.cut[r]);
    const x = this.width + 5;
    const fill = reward >= 0.5 ? ink.right : ink.wrong;
    if (this.row < 11) {
      // A full mark for right, a hollow one for wrong: legible without colour.
      const size = Math.max(this.height - 1, 4);
      group.append(svgElement("rect", { x, y: -size / 2, width: size, height: size, fill: reward >= 0.5 ? fill : "none", stroke: fill }));
      return;
    }
    const mark = reward === 1 ? "✓" : reward === 0 ? "✗" : shown(reward, 2);
    group.append(svgElement("text", { x, y: 4.5, fill, "font-size": 13, "font-weight": 700 }, mark));
    if (cut) group.append(svgElement("text", { x: x + 15, y: 4, fill: ink.soft, "font-size": 10 }, "cut off"));
  }

  // The id of the drawn node under an event; -1 for none.
  static idOf(event) {
    const group = event.target.closest?.("g.node");
    return group ? Number(group.dataset.id) : -1;
  }

  reveal(id) {
    const [x, y] = this.place(this.scene.layout.drawn[id]);
    const { scroller } = this;
    const inside = (at, size, from, length) => at >= from + 8 && at + size <= from + length - 8;
    const left = inside(x, this.width, scroller.scrollLeft, scroller.clientWidth)
      ? scroller.scrollLeft : x - scroller.clientWidth / 2 + this.width / 2;
    const top = inside(y, 20, scroller.scrollTop, scroller.clientHeight) ? scroller.scrollTop : y - scroller.clientHeight / 2;
    scroller.scrollTo({ left, top });
  }

  // The whole tree as the text of an SVG file.
  picture(caption) {
    const { layout, theme } = this.scene;
    const [w, h] = this.extent();
    const root = svgElement("svg", { xmlns: SVG, width: w, height: h + 24, viewBox: `0 0 ${w} ${h + 24}` });
    root.append(svgElement("rect", { width: w, height: h + 24, fill: INK[theme].page }));
    const edges = svgElement("g", { fill: "none" });
    edges.append(...this.drawEdges(layout.drawn.filter((node) => node.parent >= 0)));
    const nodes = svgElement("g", { "font-family": FONT, "font-size": LABEL });
    nodes.append(...layout.drawn.map((node) => this.drawNode(node)));
    const note = svgElement("text", { x: LEFT, y: h + 12, fill: INK[theme].soft, "font-family": FONT, "font-size": 11 }, caption);
    root.append(edges, nodes, note);
    return [new XMLSerializer().serializeToString(root), w, h + 24];
  }
}
