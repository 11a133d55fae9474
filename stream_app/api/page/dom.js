// Elements from what they are made of. Text becomes text, never markup: ids and titles come from anyone who may click.

export const byId = (id) => document.getElementById(id);

export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Replaces the rows of a table's body; each cell is a text, an element, or { number: text }.
export function fillTable(table, rows) {
  const cell = (value, first) => {
    const isNumber = value !== null && typeof value === "object" && "number" in value;
    const properties = { className: isNumber ? "number" : "" };
    return el(first ? "th" : "td", first ? { ...properties, scope: "row" } : properties, isNumber ? value.number : value);
  };
  const made = rows.map((cells) => el("tr", {}, ...cells.map((value, place) => cell(value, place === 0))));
  table.tBodies[0].replaceChildren(...made);
}
