"use strict";
// Mathematics in text: the LaTeX that answers use, as MathML, which browsers draw by themselves. What is not known here
// stays as its source. Everything is made of elements and text nodes, so no text can become markup.

const MATHML = "http://www.w3.org/1998/Math/MathML";
const DEEPEST = 40; // nested groups; deeper ones stay source

const SYMBOLS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ",
  vartheta: "ϑ", iota: "ι", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ",
  tau: "τ", upsilon: "υ", phi: "ϕ", varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ",
  Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω", infty: "∞", partial: "∂", nabla: "∇",
  ell: "ℓ", hbar: "ℏ", emptyset: "∅", varnothing: "∅", angle: "∠", triangle: "△", degree: "°", ldots: "…", cdots: "⋯",
  dots: "…", vdots: "⋮", ddots: "⋱", aleph: "ℵ", Re: "ℜ", Im: "ℑ", prime: "′", "%": "%", "$": "$", "#": "#", "&": "&",
  _: "_",
};
const OPERATORS = {
  times: "×", cdot: "⋅", div: "÷", pm: "±", mp: "∓", ast: "∗", star: "⋆", circ: "∘", bullet: "•", le: "≤", leq: "≤",
  ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈", equiv: "≡", cong: "≅", sim: "∼", simeq: "≃", propto: "∝", ll: "≪",
  gg: "≫", to: "→", rightarrow: "→", leftarrow: "←", Rightarrow: "⇒", Leftarrow: "⇐", implies: "⟹", iff: "⟺",
  Leftrightarrow: "⇔", leftrightarrow: "↔", mapsto: "↦", longrightarrow: "⟶", in: "∈", notin: "∉", ni: "∋",
  subset: "⊂", subseteq: "⊆", supset: "⊃", supseteq: "⊇", cup: "∪", cap: "∩", setminus: "∖", land: "∧", wedge: "∧",
  lor: "∨", vee: "∨", neg: "¬", lnot: "¬", forall: "∀", exists: "∃", mid: "∣", parallel: "∥", perp: "⊥", nmid: "∤",
  therefore: "∴", because: "∵", oplus: "⊕", otimes: "⊗", colon: ":", vert: "|", Vert: "‖", lvert: "|", rvert: "|",
  lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", langle: "⟨", rangle: "⟩", "{": "{", "}": "}", "|": "‖",
  lbrace: "{", rbrace: "}", lbrack: "[", rbrack: "]", models: "⊨", vdash: "⊢", square: "□", blacksquare: "■",
};
const LARGE = { sum: "∑", prod: "∏", int: "∫", iint: "∬", oint: "∮", bigcup: "⋃", bigcap: "⋂", coprod: "∐" };
const FUNCTIONS = new Set(
  "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf gcd lcm det dim deg ker arg Pr hom limsup liminf".split(" "),
);
const UNDER = new Set(["lim", "max", "min", "sup", "inf", "limsup", "liminf", "sum", "prod", "bigcup", "bigcap", "coprod"]);
const ACCENTS = { hat: "^", widehat: "^", bar: "¯", overline: "¯", vec: "→", overrightarrow: "→", dot: "˙", ddot: "¨", tilde: "~", widetilde: "~" };
const SPACES = { ",": 0.167, ":": 0.222, ";": 0.278, "!": -0.167, " ": 0.25, quad: 1, qquad: 2, "~": 0.25 };
const FONTS = { mathbb: "double-struck", mathbf: "bold", boldsymbol: "bold", bm: "bold", mathcal: "script", mathscr: "script", mathfrak: "fraktur" };
const IGNORED = new Set(["displaystyle", "textstyle", "limits", "nolimits", "left.", "right.", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "nonumber", "notag", "hline"]);
const TABLES = { matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"], Bmatrix: ["{", "}"], cases: ["{", ""], aligned: ["", ""], align: ["", ""], "align*": ["", ""], gathered: ["", ""], gather: ["", ""], "gather*": ["", ""], array: ["", ""], equation: ["", ""], "equation*": ["", ""], split: ["", ""], smallmatrix: ["", ""] };
const ALIGNED = new Set(["aligned", "align", "align*", "split"]);
// Letters of the fonts, where Unicode has them in a block of its own; MathML's core has no fonts any more.
const BLOCKS = { "double-struck": [0x1d538, 0x1d552, 0x1d7d8], bold: [0x1d400, 0x1d41a, 0x1d7ce], script: [0x1d49c, 0x1d4b6, 0], fraktur: [0x1d504, 0x1d51e, 0] };
const HOLES = { "double-struckC": "ℂ", "double-struckH": "ℍ", "double-struckN": "ℕ", "double-struckP": "ℙ", "double-struckQ": "ℚ", "double-struckR": "ℝ", "double-struckZ": "ℤ", scriptB: "ℬ", scriptE: "ℰ", scriptF: "ℱ", scriptH: "ℋ", scriptI: "ℐ", scriptL: "ℒ", scriptM: "ℳ", scriptR: "ℛ", scripte: "ℯ", scriptg: "ℊ", scripto: "ℴ", frakturC: "ℭ", frakturH: "ℌ", frakturI: "ℑ", frakturR: "ℜ", frakturZ: "ℨ" };

function inFont(letter, font) {
  if (HOLES[font + letter]) return HOLES[font + letter];
  const [upper, lower, digit] = BLOCKS[font];
  if (/[A-Z]/.test(letter)) return String.fromCodePoint(upper + letter.charCodeAt(0) - 65);
  if (/[a-z]/.test(letter)) return String.fromCodePoint(lower + letter.charCodeAt(0) - 97);
  return /[0-9]/.test(letter) && digit ? String.fromCodePoint(digit + letter.charCodeAt(0) - 48) : letter;
}

function el(tag, children = [], attributes = {}) {
  const element = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...[].concat(children));
  return element;
}

class Unknown extends Error {}

// A reader of LaTeX by recursive descent; throws Unknown for what it does not know.
class LatexReader {
  constructor(source) {
    this.parts = source.match(/\\[a-zA-Z]+\*?|\\[^]|%[^\n]*\n?|\s+|[0-9]+(?:[.,][0-9]+)*|[^]/gu) ?? [];
    this.at = 0;
    this.depth = 0;
  }

  peek() {
    while (this.at < this.parts.length && /^(\s|%)/.test(this.parts[this.at])) this.at++;
    return this.parts[this.at];
  }

  take() {
    const part = this.peek();
    this.at++;
    return part;
  }

  // Elements until one of the parts `ends`, which is taken; undefined among them: the end of the text.
  row(ends, font) {
    if (++this.depth > DEEPEST) throw new Unknown("too deep");
    const found = [];
    for (;;) {
      const part = this.peek();
      if (ends.includes(part)) break;
      if (part === undefined || ["}", "&", "\\\\", "\\right", "\\end"].includes(part)) throw new Unknown(part ?? "end");
      const atom = this.scripted(found, font);
      if (atom) found.push(atom);
    }
    this.last = this.take();
    this.depth--;
    return found;
  }

  // One atom with its sub- and superscripts.
  scripted(before, font) {
    const first = this.peek();
    const base = first === "^" || first === "_" ? (before.pop() ?? el("mrow")) : this.atom(font);
    let sub, sup;
    for (let part; (part = this.peek()) === "^" || part === "_" || part === "'"; ) {
      this.take();
      if (part === "'") sup = el("mrow", sup ? [sup, el("mo", "′")] : el("mo", "′"));
      else if (part === "^") sup = el("mrow", sup ? [sup, this.argument(font)] : [this.argument(font)]);
      else if (sub) throw new Unknown("two subscripts");
      else sub = this.argument(font);
    }
    if (!base || (!sub && !sup)) return base;
    const under = base.dataset?.under;
    if (sub && sup) return el(under ? "munderover" : "msubsup", [base, sub, sup]);
    return sub ? el(under ? "munder" : "msub", [base, sub]) : el(under ? "mover" : "msup", [base, sup]);
  }

  argument(font) {
    const part = this.peek();
    if (part === "{") {
      this.take();
      return el("mrow", this.row(["}"], font));
    }
    if (part === undefined || part === "}") throw new Unknown("no argument");
    if (/^[0-9]/.test(part) && part.length > 1) {
      this.parts[this.at] = part.slice(1); // x^23 is x^2 3
      return el("mn", part[0]);
    }
    return this.atom(font) ?? el("mrow");
  }

  // The text between braces, as it is.
  plain() {
    if (this.take() !== "{") throw new Unknown("no text");
    let text = "";
    for (let open = 1; ; ) {
      const part = this.parts[this.at++];
      if (part === undefined) throw new Unknown("no end of a text");
      open += (part === "{") - (part === "}");
      if (!open) return text.replaceAll("\\ ", " ").replace(/\\([%$#&_{}])/g, "$1");
      text += part;
    }
  }

  atom(font) {
    const part = this.take();
    if (part === "{") return el("mrow", this.row(["}"], font));
    if (/^[0-9]/.test(part)) return el("mn", font ? [...part].map((c) => inFont(c, font)).join("") : part);
    if (/^\p{L}$/u.test(part)) return font ? el("mi", inFont(part, font), { mathvariant: "normal" }) : el("mi", part);
    if (part[0] !== "\\") return part === "~" ? this.space(0.25) : el("mo", part === "-" ? "−" : part, { stretchy: "false" });
    return this.command(part.slice(1), font);
  }

  space(width) {
    return el("mspace", [], { width: `${width}em` });
  }

  command(name, font) {
    if (Object.hasOwn(SYMBOLS, name)) return el(/^[a-zA-Z]/.test(name) ? "mi" : "mo", SYMBOLS[name], { mathvariant: "normal" });
    if (Object.hasOwn(OPERATORS, name)) return el("mo", OPERATORS[name], { stretchy: "false" });
    if (Object.hasOwn(SPACES, name)) return this.space(SPACES[name]);
    if (IGNORED.has(name)) return null;
    if (Object.hasOwn(LARGE, name) || FUNCTIONS.has(name)) {
      const large = Object.hasOwn(LARGE, name);
      const found = el(large ? "mo" : "mi", large ? LARGE[name] : name);
      if (UNDER.has(name)) found.dataset.under = "1";
      return found;
    }
    if (Object.hasOwn(FONTS, name)) return this.argument(FONTS[name]);
    if (Object.hasOwn(ACCENTS, name)) return el("mover", [this.argument(font), el("mo", ACCENTS[name])], { accent: "true" });
    switch (name) {
      case "frac": case "dfrac": case "tfrac": case "cfrac":
        return el("mfrac", [this.argument(font), this.argument(font)]);
      case "binom": case "dbinom": case "tbinom":
        return this.fenced("(", el("mfrac", [this.argument(font), this.argument(font)], { linethickness: "0" }), ")");
      case "sqrt": {
        if (this.peek() !== "[") return el("msqrt", this.argument(font));
        this.take();
        const degree = el("mrow", this.row(["]"], font));
        return el("mroot", [this.argument(font), degree]);
      }
      case "text": case "textbf": case "textit": case "mbox": case "textrm": case "texttt":
        return el("mtext", this.plain().replaceAll(" ", "\u00a0"));
      case "mathrm": case "operatorname": case "operatorname*": case "mathsf": case "mathtt":
        return el("mi", this.plain(), { mathvariant: "normal" });
      case "boxed": case "fbox":
        return el("mrow", this.argument(font), { class: "boxed" });
      case "underline": return el("munder", [this.argument(font), el("mo", "_")]);
      case "underbrace": case "overbrace": {
        const [tag, brace] = name === "underbrace" ? ["munder", "⏟"] : ["mover", "⏞"];
        const braced = el(tag, [this.argument(font), el("mo", brace, { stretchy: "true" })]);
        braced.dataset.under = "1";
        return braced;
      }
      case "overset": case "stackrel": {
        const above = this.argument(font);
        return el("mover", [this.argument(font), above]);
      }
      case "underset": {
        const below = this.argument(font);
        return el("munder", [this.argument(font), below]);
      }
      case "pmod": return el("mrow", [el("mo", "("), el("mi", "mod"), this.space(0.3), this.argument(font), el("mo", ")")]);
      case "bmod": case "mod": return el("mo", "mod", { lspace: "0.3em", rspace: "0.3em" });
      case "left": return this.leftRight(font);
      case "begin": return this.table(font);
      case "not": return el("mo", { "=": "≠", "<": "≮", ">": "≯" }[this.take()] ?? this.unknown(name));
      default: return this.unknown(name);
    }
  }

  unknown(name) {
    throw new Unknown(name);
  }

  fence() {
    const part = this.take();
    if (part === undefined) throw new Unknown("no fence");
    if (part === ".") return "";
    if (part[0] !== "\\") return part;
    return OPERATORS[part.slice(1)] ?? this.unknown(part);
  }

  fenced(open, inside, close) {
    const fence = (text) => (text ? [el("mo", text, { stretchy: "true", fence: "true" })] : []);
    return el("mrow", [...fence(open), inside, ...fence(close)]);
  }

  leftRight(font) {
    const open = this.fence();
    const inside = el("mrow", this.row(["\\right"], font));
    return this.fenced(open, inside, this.fence());
  }

  table(font) {
    const name = this.plain();
    if (!Object.hasOwn(TABLES, name)) throw new Unknown(name);
    if (name === "array") this.plain();
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(el("mtd", el("mrow", this.row(["&", "\\\\", "\\end"], font))));
      if (this.last === "\\\\") rows.push([]);
      if (this.last === "\\end") break;
    }
    if (this.plain() !== name) throw new Unknown("ends of different tables");
    if (rows.at(-1).length === 1 && !rows.at(-1)[0].textContent) rows.pop(); // behind a last line break
    const table = el("mtable", rows.map((cells) => el("mtr", cells)), { class: ALIGNED.has(name) ? "aligned" : name });
    return this.fenced(TABLES[name][0], table, TABLES[name][1]);
  }
}

// <math> of a LaTeX source; null where something in it is not known.
function latexToMath(source, display) {
  try {
    const reader = new LatexReader(source);
    const row = reader.row([undefined]);
    return el("math", el("mrow", row), display ? { display: "block" } : {});
  } catch (error) {
    if (error instanceof Unknown || error instanceof RangeError) return null;
    throw error;
  }
}

// Where mathematics begins and ends. A dollar opens where no space follows, and closes where none is before it and no
// digit follows, so that sums of money stay text. A \boxed{} may stand alone.
const MATH = /\$\$([^]+?)\$\$|\\\[([^]+?)\\\]|\\\(([^]+?)\\\)|(?<![\\$\w])\$(?=[^\s$])((?:\\[^]|[^$\\\n])*?)(?<=[^\s\\])\$(?!\d)|(\\begin\{(align\*?|equation\*?|gather\*?|[pbvBV]?matrix|cases)\}[^]+?\\end\{\6\})|(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/g;

// A text as nodes: mathematics drawn, all else and what is not known as it is.
function renderMath(text) {
  const fragment = document.createDocumentFragment();
  let last = 0;
  for (const match of text.matchAll(MATH)) {
    const [whole, dollars, brackets, parentheses, dollar, environment, , boxed] = match;
    const display = dollars ?? brackets ?? environment;
    const math = latexToMath(display ?? parentheses ?? dollar ?? boxed, display !== undefined);
    if (!math) continue;
    math.setAttribute("title", whole);
    fragment.append(text.slice(last, match.index), math);
    last = match.index + whole.length;
  }
  fragment.append(text.slice(last));
  return fragment;
}
