"use strict";

const { results, vendors } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const KINDS = {
  map: ["▲", "mapped"],
  unmap: ["▼", "unmapped"],
  flush: ["◆", "flushed"],
  reuse: ["●", "reused"],
  dma: ["■", "DMA got through"],
  fault: ["✖", "DMA stopped"],
  log: ["▬", "kernel's log"],
  note: ["○", "note"],
};

// A time as people read it; a moment on the timeline needs more digits the closer one looks.
function duration(ns, digits = 3) {
  for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (Math.abs(ns) >= size) return `${Number((ns / size).toPrecision(digits))} ${unit}`;
  }
  return `${Number(ns.toPrecision(digits))} ns`;
}

const EXACT = 15; // digits

function moment(ns, step) {
  const digits = Math.ceil(Math.log10(Math.max(1, Math.abs(ns) / Math.max(1, step)))) + 1;
  return duration(ns, Math.min(EXACT, Math.max(3, digits)));
}

function outcome(row) {
  if (row.hung) return "host hung";
  const parts = [];
  if (row.leaked) parts.push(`${row.leaked} B leaked`);
  if (row.corrupted) parts.push(`${row.corrupted} B corrupted`);
  return parts.join(", ") || (row.refused ? "refused" : "blocked");
}

function windowText(row) {
  if (row.window_ns === "forever") return "forever";
  return row.window_ns ? duration(row.window_ns) : "none";
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
