// Lines over time, in the colours of the theme, with a dashed line wherever a model was announced.

import { clock } from "./text.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";

const HEIGHT = 200;
const MOST_TOLD = 5; // dashed lines
const dark = matchMedia("(prefers-color-scheme: dark)");

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const seriesColour = (number) => `series-${(number % 5) + 1}`;

export class Chart {
  // `format` turns a value into text, `range` gives the ends of the axis from the least and the greatest value.
  constructor(element, { format, range }) {
    Object.assign(this, { element, format, range });
    this.names = [];
    this.data = [[]];
    this.marks = [];
    this.text = element.getAttribute("aria-label");
    this.drawn = [];
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(element);
    dark.addEventListener("change", () => this.plot && this.draw());
  }

  // `data`: times in seconds, then one list of values for each name; `marks`: { at, text } of announcements;
  // `span`: the first and the last time of the axis.
  show(names, data, marks, span) {
    const asBefore = this.plot && names.join("\n") === this.names.join("\n");
    Object.assign(this, { names, data, marks, span });
    if (asBefore) this.plot.setData(data);
    else this.draw();
  }

  // For those who do not see it: what the lines show, and the newest dashed ones.
  describe(text) {
    this.text = text;
    this.tell();
  }

  tell() {
    const newest = this.drawn.slice(-MOST_TOLD).join(", ");
    const dashed = newest ? `; dashed lines: ${newest}` : "";
    this.element.setAttribute("aria-label", this.text + dashed);
  }

  draw() {
    this.plot?.destroy();
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    const lines = this.names.map((label, number) => ({
      label,
      stroke: colour(seriesColour(number)),
      width: 2,
      spanGaps: true,
      points: { show: (plot, at) => plot.data[at].filter((value) => value !== null).length < 3, size: 6 },
      value: (_, value) => (value === null || value === undefined ? "–" : this.format(value)),
    }));
    const options = {
      ...this.size(),
      scales: { x: { range: () => this.span }, y: { range: (_, least, most) => this.range(least ?? 0, most ?? 0) } },
      axes: [{ ...axis, size: 32, space: 70, values: (_, seconds) => seconds.map(clock) }, { ...axis, size: 64, values: (_, values) => values.map(this.format) }],
      series: [{ label: "time", value: (_, seconds) => (seconds ? clock(seconds) : "–") }, ...lines],
      cursor: { y: false, drag: { x: false, y: false } },
      hooks: { draw: [(plot) => this.drawMarks(plot)] },
    };
    this.plot = new uPlot(options, this.data, this.element);
  }

  drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("soft");
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    const gap = 5 * devicePixelRatio;
    const ends = []; // of the text in each row: what would cover it goes a row down
    this.drawn = [];
    for (const { at, text } of this.marks) {
      if (at < this.span[0] || at > this.span[1]) continue;
      const x = plot.valToPos(at, "x", true);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const { width } = ctx.measureText(text);
      const fits = x + gap + width < bbox.left + bbox.width;
      const begin = fits ? x + gap : x - gap - width;
      let row = ends.findIndex((end) => end < begin);
      if (row < 0) row = ends.length;
      ends[row] = begin + width;
      ctx.fillText(text, begin, bbox.top + 12 * (row + 1) * devicePixelRatio);
      this.drawn.push(`${text} at ${clock(at)}`);
    }
    ctx.restore();
    this.tell();
  }

  size() {
    return { width: Math.max(200, this.element.clientWidth), height: HEIGHT };
  }
}
