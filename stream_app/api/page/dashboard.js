// The dashboard: figures of the last ten minutes, and the models by their online scores.

import { get } from "./api.js";
import { Chart, seriesColour } from "./charts.js";
import { byId, el, fillTable } from "./dom.js";
import { every } from "./poll.js";
import { count, milliseconds, percent, share, shortVersion, time } from "./text.js";

const MOST_MODELS = 12;
const FEWEST_PREDICTIONS = 10; // of a point in the chart
const upward = (least, most) => [0, Math.max(1, most * 1.1)];
const around = (least, most) => [Math.max(0, least - 0.05), Math.min(1, Math.max(most + 0.05, least + 0.1))];

const clicksChart = new Chart(byId("clicks-chart"), { format: count, range: upward });
const latencyChart = new Chart(byId("latency-chart"), { format: (value) => `${count(value)} ms`, range: upward });
const recallChart = new Chart(byId("recall-chart"), { format: share, range: around });

let marks = [];
let shares = {};

export function startDashboard(signal) {
  every(2, signal, async () => showOverview(await get("/v1/overview", signal)));
  every(3, signal, async () => {
    const [models, scores] = await Promise.all([
      get("/v1/models", signal),
      get("/v1/scores?by=window&last=6h", signal),
    ]);
    showModels(models, scores);
  });
}

function showOverview({ now, recent, series, models, rejected, backlog, backlog_problem, alarms }) {
  shares = models;
  const waiting = backlog.map((one) => one.clicks ?? 0).reduce((sum, clicks) => sum + clicks, 0);
  byId("clicks-now").textContent = count(recent.clicks_per_second);
  byId("p50-now").textContent = milliseconds(recent.latency_p50_ms);
  byId("p99-now").textContent = milliseconds(recent.latency_p99_ms);
  byId("waiting-now").textContent = backlog.length ? count(waiting) : "–";

  const times = series.clicks_per_second.map((_, step) => (series.since + step * series.step_ms) / 1000);
  const begun = Math.max(0, series.clicks_per_second.findIndex((value) => value > 0) - 5);
  const span = [Math.min(times[begun], now / 1000 - 60), now / 1000];
  clicksChart.show(["clicks per second"], [times, series.clicks_per_second], marks, span);
  latencyChart.show(["median", "99th percentile"], [times, series.latency_p50_ms, series.latency_p99_ms], marks, span);
  const { clicks_per_second: clicks, latency_p50_ms: p50, latency_p99_ms: p99 } = recent;
  clicksChart.describe(`Clicks per second, now ${count(clicks)}`);
  latencyChart.describe(`Latency, now ${milliseconds(p50)} in the median, ${milliseconds(p99)} at the 99th percentile`);

  const list = byId("alarms");
  const lines = alarms.map(({ name, says }) => el("li", {}, el("b", {}, name), says));
  if (list.textContent !== lines.map((line) => line.textContent).join("")) list.replaceChildren(...lines);

  fillTable(byId("backlog"), backlog.map((one) => [
    String(one.partition),
    { number: one.clicks === null ? "none acknowledged yet" : count(one.clicks) },
  ]));
  byId("backlog-problem").textContent = backlog_problem ?? "";
  const reasons = Object.entries(rejected).map(([reason, records]) => [reason, { number: count(records) }]);
  fillTable(byId("rejected"), reasons.length ? reasons : [["none", { number: "0" }]]);
}

function showModels({ alias, serving, announcements }, scores) {
  const ours = announcements.filter((one) => one.alias === alias);
  marks = ours.map((one) => ({ at: one.announced_at / 1000, text: shortVersion(one.version) }));
  byId("model-now").textContent = serving?.version ?? "none";

  const announced = new Map(announcements.map((one) => [one.version, one]));
  const versions = [...new Set([...scores.map((line) => line.model_version), ...announced.keys()])];
  versions.sort((one, other) => began(one, announced, scores) - began(other, announced, scores));
  const shown = versions.slice(-MOST_MODELS);
  const rows = shown.map((version, number) => {
    const of = scores.filter((line) => line.model_version === version);
    const predictions = sum(of, (line) => line.predictions);
    const mean = (value) => (predictions ? share(sum(of, value) / predictions) : "–");
    const { announced_at, why } = announced.get(version) ?? {};
    return [
      nameOf(version, number, version === serving?.version),
      announced_at ? time(announced_at) : "–",
      { number: percent(shares[version] ?? 0) },
      { number: count(predictions) },
      { number: mean((line) => line.hits) },
      { number: mean((line) => line.mrr * line.predictions) },
      why ?? "",
    ];
  });
  fillTable(byId("models"), rows.reverse());
  byId("no-scores").hidden = scores.length > 0;

  const windows = [...new Set(scores.map((line) => line.from))].sort((one, other) => one - other);
  const places = new Map(scores.map((line) => [`${line.model_version} ${line.from}`, line]));
  const middles = windows.map((from) => (from + (scores.find((line) => line.from === from).to - from) / 2) / 1000);
  const lines = shown.map((version) => windows.map((from) => {
    const line = places.get(`${version} ${from}`);
    return line?.predictions >= FEWEST_PREDICTIONS ? line.recall : null;
  }));
  const ends = middles.length ? [Math.min(middles[0], Date.now() / 1000 - 60), Date.now() / 1000] : [0, 1];
  recallChart.show(shown.map(shortVersion), [middles, ...lines], marks, ends);
  const newest = shown.map((version, number) => `${version} ${share(lines[number].findLast((value) => value !== null) ?? null)}`);
  recallChart.describe(`Online Recall by model, newest values: ${newest.join(", ")}`);
}

function nameOf(version, number, serves) {
  const key = el("span", { className: "key" });
  key.style.background = `var(--${seriesColour(number)})`;
  return el("span", {}, key, el("code", {}, version), serves ? el("span", { className: "badge" }, "in service") : null);
}

function began(version, announced, scores) {
  const windows = scores.filter((line) => line.model_version === version).map((line) => line.from);
  return Math.min(announced.get(version)?.announced_at ?? Infinity, ...windows);
}

const sum = (lines, value) => lines.reduce((total, line) => total + value(line), 0);
