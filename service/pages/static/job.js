// One job, live: its events as they are told, its curves as they grow. What the stages are at is fetched as a part of
// the page; what is told is put in as text, never as markup.
"use strict";

const job = document.getElementById("job");
const address = job.dataset.address;

// --- curves

const MOST_POINTS = 1500;
const ORDER = ["loss", "validation_loss", "reward_margin", "reward_accuracy", "gradient_norm", "learning_rate", "tokens_per_second", "memory_bytes", "device_use"];
const curves = new Map(); // stage → {steps, figures: Map of name → values}
const drawn = new Map(); // figure → {plot, output}
const choice = document.getElementById("stage");
const held = document.getElementById("curves");
let followed = true; // the stage that was told of last, until somebody chooses one

function course(stage) {
  if (!curves.has(stage)) {
    curves.set(stage, { steps: [], figures: new Map() });
    const option = new Option(stage, stage);
    choice.add(option);
  }
  return curves.get(stage);
}

function addPoint(stage, step, figures) {
  const found = course(stage);
  while (found.steps.length && found.steps.at(-1) >= step) { // the step runs again: its last run counts
    found.steps.pop();
    for (const values of found.figures.values()) values.pop();
  }
  for (const name of Object.keys(figures)) {
    if (!found.figures.has(name)) found.figures.set(name, new Array(found.steps.length).fill(null));
  }
  found.steps.push(step);
  for (const [name, values] of found.figures) values.push(figures[name] ?? null);
  if (found.steps.length > MOST_POINTS) thinOut(found);
}

function thinOut(found) {
  const kept = (_, place, all) => place % 2 === 0 || place === all.length - 1;
  found.steps = found.steps.filter(kept);
  for (const [name, values] of found.figures) found.figures.set(name, values.filter(kept));
}

function names(found) {
  const place = (name) => (ORDER.indexOf(name) + ORDER.length + 1) % (ORDER.length + 1);
  return [...found.figures.keys()].sort((one, other) => place(one) - place(other) || one.localeCompare(other));
}

function figure(name, value) {
  if (value === null || value === undefined) return "–";
  if (name.endsWith("_bytes")) return `${(value / 1e9).toFixed(2)} GB`;
  if (name === "device_use") return `${Math.round(100 * value)} %`;
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function make(name) {
  const box = document.createElement("figure");
  box.className = "curve";
  const caption = document.createElement("figcaption");
  const title = document.createElement("span");
  const output = document.createElement("output");
  const canvas = document.createElement("div");
  title.textContent = name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
  canvas.setAttribute("role", "img");
  caption.append(title, output);
  box.append(caption, canvas);
  held.append(box);
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const plot = new uPlot({
    width: Math.max(canvas.clientWidth, 240), height: 150, legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 28 }, { ...axis, size: 62, values: (_, values) => values.map((value) => figure(name, value)) }],
    series: [{}, { stroke: colour("--accent"), width: 1.6, spanGaps: true, points: { show: false } }],
    hooks: { setCursor: [(self) => read(name, self)] },
  }, [[], []], canvas);
  drawn.set(name, { plot, output, canvas, box });
}

function read(name, plot) {
  const [steps, values] = plot.data;
  const place = plot.cursor.idx ?? values.findLastIndex((value) => value !== null);
  const { output, canvas } = drawn.get(name) ?? {};
  if (output === undefined) return;
  output.textContent = `${figure(name, values[place])} at step ${steps[place] ?? "–"}`;
  if (plot.cursor.idx === null || plot.cursor.idx === undefined) {
    canvas.setAttribute("aria-label", `${name.replaceAll("_", " ")} over ${steps.length} steps, from ${figure(name, values.find((value) => value !== null))} to ${figure(name, values[place])}`);
  }
}

function draw(anew = false) {
  const found = curves.get(choice.value);
  if (found === undefined) return;
  document.getElementById("no-curves").hidden = true;
  document.getElementById("choice").hidden = false;
  const wanted = names(found);
  if (anew || wanted.length !== drawn.size || wanted.some((name) => !drawn.has(name))) {
    for (const { plot, box } of drawn.values()) { plot.destroy(); box.remove(); }
    drawn.clear();
    wanted.forEach(make);
  }
  for (const [name, { plot }] of drawn) {
    plot.setData([found.steps, found.figures.get(name)]);
    read(name, plot);
  }
}

const drawSoon = later(300, draw);

choice.addEventListener("change", () => { followed = false; draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
new ResizeObserver(() => {
  for (const { plot, canvas } of drawn.values()) {
    const width = canvas.clientWidth;
    if (width > 0 && width !== plot.width) plot.setSize({ width, height: 150 });
  }
}).observe(held);

function later(pause, act) { // at once for the first call, and once more behind those that come meanwhile
  let waits = null, again = false;
  return function call() {
    if (waits !== null) { again = true; return; }
    act();
    waits = setTimeout(() => { waits = null; if (again) { again = false; call(); } }, pause);
  };
}

// --- events

const MOST_EVENTS = 500;
const events = document.getElementById("events");
const link = document.getElementById("link");
let last = job.dataset.last, source = null, waiting = null;

const news = later(400, () => htmx.trigger("#live", "news"));

function over() {
  return document.getElementById("live").dataset.over === "yes";
}

function take(message) {
  const event = JSON.parse(message.data);
  last = message.lastEventId;
  if (event.type === "metrics") {
    const { stage, step, steps, total, ...rest } = event.data;
    if (typeof stage !== "string" || typeof step !== "number") return;
    addPoint(stage, step, Object.fromEntries(Object.entries(rest).filter(([, value]) => typeof value === "number")));
    if (followed) choice.value = stage;
    drawSoon();
    return;
  }
  const item = document.createElement("li");
  const time = document.createElement("time");
  const text = document.createElement("span");
  item.className = ["info", "warn", "error"].includes(event.level) ? event.level : "info";
  time.dateTime = new Date(event.created_at * 1000).toISOString();
  time.textContent = inZone.format(event.created_at * 1000);
  text.textContent = event.message;
  item.append(time, " ", text);
  events.prepend(item);
  while (events.children.length > MOST_EVENTS) events.lastElementChild.remove();
  news();
}

function follow() {
  clearTimeout(waiting);
  if (source !== null || document.hidden) return;
  const opened = new EventSource(`${address}/stream${last ? `?after=${encodeURIComponent(last)}` : ""}`);
  source = opened;
  opened.onopen = () => { link.textContent = "live"; };
  opened.onmessage = take;
  opened.onerror = () => {
    if (opened.readyState !== EventSource.CLOSED) { link.textContent = "connecting again…"; return; }
    source = null; // the job is over, or the service says no: whoever retries the job is followed again
    link.textContent = over() ? "" : "connecting again…";
    if (!over()) waiting = setTimeout(follow, 3000);
  };
}

document.addEventListener("visibilitychange", () => { // a browser has few connections: a page that nobody sees needs none
  if (!document.hidden) { follow(); return; }
  source?.close();
  source = null;
});
document.addEventListener("htmx:afterSwap", () => { if (!over()) follow(); });

async function begin() {
  try {
    const answer = await fetch(`${address}/curves`);
    if (!answer.ok) throw new Error(String(answer.status));
    for (const [stage, found] of Object.entries(await answer.json())) {
      curves.set(stage, { steps: found.steps, figures: new Map(Object.entries(found.figures)) });
      choice.add(new Option(stage, stage));
      choice.value = stage;
    }
    draw();
  } catch {
    tell("The curves did not come: load the page again.");
  }
  follow();
}

begin();
