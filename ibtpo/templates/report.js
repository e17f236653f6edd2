"use strict";
// The page's beginning: theme, curves, trees.

const THEMES = ["system", "light", "dark"];

function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme").textContent = `theme: ${name}`;
  view?.redraw();
}

function fail(id, error) {
  const place = byId(id) ?? document.querySelector("header");
  const note = make("p", "note problem", `This browser cannot show the page's data (${error}): use a newer one.`);
  place.after(note);
}

byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
const asked = new URLSearchParams(location.hash.slice(1)).get("theme");
if (THEMES.includes(asked)) setTheme(asked);
if (byId("curve-data")) unpack("curve-data").then(beginCurves).catch((error) => fail("curves", error));
if (byId("tree-data")) unpack("tree-data").then(beginTrees).catch((error) => fail("trees", error));
