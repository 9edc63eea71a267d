"use strict";
// Helpers: elements, numbers as text, colours that colour-blind readers can tell apart (Okabe and Ito).

const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"];
const DARK = new Set(["#0072B2", "#009E73", "#D55E00"]);
const INK = { prefill: "#0072B2", decode: "#E69F00", used: "#4D5A6A", cached: "#B9C4D0", waiting: "#D55E00",
  preempt: "#A4003C", line: "#D5D9DE", soft: "#5A616B", ink: "#1C1F24", free: "#F5F6F8" };

function byId(id) {
  return document.getElementById(id);
}

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  return filled(made, attributes, children);
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  return filled(made, attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") Object.assign(made.style, value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function count(value) {
  return String(value).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (Math.abs(value) >= 1) return value.toFixed(3) + " s";
  return (value * 1000).toFixed(2) + " ms";
}

function share(part, whole) {
  return whole ? (100 * part / whole).toFixed(1) + " %" : "-";
}

function plural(number, word) {
  return count(number) + " " + word + (number === 1 ? "" : "s");
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, value), 0);
}

// One row of a table. The test reads the text by its name.
function row(label, name, text) {
  return element("tr", {}, element("th", { scope: "row" }, label),
    element("td", { "data-name": name }, text));
}

function fillTable(id, rows) {
  byId(id).tBodies[0].replaceChildren(...rows.map((cells) => row(...cells)));
}

function colourOf(request) {
  return request < 0 ? "#8A919B" : COLOURS[request % COLOURS.length];
}

function onColour(colour) {
  return DARK.has(colour) ? "#FFFFFF" : "#1C1F24";
}

function nameOf(request) {
  return request < 0 ? "not listed" : "r" + (request + 1);
}

// A small picture and its meaning.
function legendItem(text, draw) {
  const picture = svg("svg", { width: 16, height: 12, "aria-hidden": "true" });
  draw(picture);
  return element("span", {}, picture, text);
}

function swatch(fill, stroke) {
  return (picture) => picture.append(svg("rect", { x: 1, y: 0.5, width: 14, height: 11, fill: fill,
    stroke: stroke || "none" }));
}
