// Pictures of items: the shop's own, or a drawing that is the same for an item every time.

import { el } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

export function picture(item) {
  if (item.image) return el("img", { className: "picture", src: item.image, alt: "", loading: "lazy" });
  const kind = item.categories?.[0] ?? item.item_id.replace(/[-_ ]?\d+$/, "");
  const hue = hash(kind) % 360;
  const drawing = svg("svg", { class: "picture", viewBox: "0 0 80 60", "aria-hidden": "true" });
  drawing.append(svg("rect", { width: 80, height: 60, fill: `hsl(${hue} 45% 42%)` }));
  for (let number = 0, seed = hash(item.item_id); number < 3; number += 1, seed = hash(String(seed))) {
    const place = { cx: seed % 90, cy: (seed >>> 8) % 60, r: 9 + ((seed >>> 16) % 16) };
    drawing.append(svg("circle", { ...place, fill: `hsl(${(hue + 25) % 360} 55% 58% / 55%)` }));
  }
  const letters = svg("text", { x: 40, y: 37, "text-anchor": "middle", "font-size": 20, "font-weight": 600, fill: "#fff" });
  letters.textContent = initials(kind);
  drawing.append(letters);
  return drawing;
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function initials(text) {
  const words = text.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  return words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join("") || "?";
}

// FNV-1a, 32 bits.
function hash(text) {
  let value = 2166136261;
  for (const letter of text) value = Math.imul(value ^ letter.codePointAt(0), 16777619);
  return value >>> 0;
}
