// Curves of several jobs over one another. What was told of a stage is fetched once; which figure is drawn is chosen here.
"use strict";

const held = document.getElementById("curves");
const place = document.getElementById("plot");
const stage = document.getElementById("stage");
const choice = document.getElementById("figure");
const outputs = [...held.querySelectorAll("output")];
const names = [...held.querySelectorAll(".lines span")].map((span) => span.textContent);
const COLOURS = ["--one", "--two", "--three", "--four", "--five", "--six"];
const DASHES = [[], [8, 3], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4]]; // who sees no colours tells lines by these
const ORDER = ["loss", "validation_loss", "reward_margin", "reward_accuracy", "gradient_norm"];
let lines = [], plot = null;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function written(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function drawn() {
  return uPlot.join(lines.map((line) => [line.steps, line.figures[choice.value] ?? line.steps.map(() => null)]));
}

function read(self) {
  const at = self.cursor.idx;
  outputs.forEach((output, line) => {
    const values = self.data[line + 1];
    const found = at ?? values.findLastIndex((value) => value !== null && value !== undefined);
    output.textContent = written(values[found]);
  });
}

function told(data) {
  const ends = names.map((name, line) => {
    const values = data[line + 1].filter((value) => value !== null && value !== undefined);
    return `${name} from ${written(values[0])} to ${written(values.at(-1))}`;
  });
  return `${choice.value.replaceAll("_", " ")} of stage ${stage.value}: ${ends.join("; ")}`;
}

function draw() {
  plot?.destroy();
  plot = null;
  const data = lines.length ? drawn() : [[]];
  document.getElementById("no-curves").hidden = data[0].length > 0;
  place.hidden = data[0].length === 0;
  if (place.hidden) return;
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  plot = new uPlot({
    width: Math.max(place.clientWidth, 240), height: 300, legend: { show: false }, cursor: { y: false },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 28 }, { ...axis, size: 62, values: (_, values) => values.map(written) }],
    series: [{}, ...names.map((label, line) => ({
      label, stroke: colour(COLOURS[line]), dash: DASHES[line], width: 1.8, spanGaps: true, points: { show: false },
    }))],
    hooks: { setCursor: [read] },
  }, data, place);
  place.setAttribute("aria-label", told(data));
  read(plot);
}

function figures() {
  const rank = (name) => (ORDER.indexOf(name) + ORDER.length + 1) % (ORDER.length + 1);
  const found = [...new Set(lines.flatMap((line) => Object.keys(line.figures)))];
  return found.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
}

async function load() {
  try {
    const answer = await fetch(`${held.dataset.address}stage=${encodeURIComponent(stage.value)}`);
    if (!answer.ok) throw new Error(String(answer.status));
    lines = await answer.json();
  } catch {
    tell("The curves did not come: load the page again.");
    return;
  }
  const before = choice.value;
  choice.replaceChildren(...figures().map((name) => new Option(name.replaceAll("_", " "), name)));
  if ([...choice.options].some((option) => option.value === before)) choice.value = before;
  draw();
}

stage.addEventListener("change", load);
choice.addEventListener("change", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(() => plot?.setSize({ width: Math.max(place.clientWidth, 240), height: 300 })).observe(place);
load();
