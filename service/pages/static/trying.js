// Models are asked side by side, and their answers grow. Conversations live here, and nowhere else.
"use strict";

const form = document.getElementById("try");
const { ask, stop, anew } = form.elements;
const talks = new Map(); // a model's name → { column, said }
let leaving = null; // ends the answers under way

function put(parent, tag, kind, text) {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  parent.append(made);
  return made;
}

function talkWith(model) {
  const column = document.createElement("section");
  column.className = "talk";
  column.setAttribute("aria-label", model);
  const kind = [...document.getElementById("models").options].find((one) => one.value === model)?.getAttribute("label");
  put(column, "h2", "", kind ? `${kind} · ${model}` : model);
  return { column, said: [] };
}

// What server-sent events say, one after the other.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = "", part; !(part = await reader.read()).done;) {
    const whole = (held + part.value).split("\n\n");
    held = whole.pop();
    for (const one of whole) if (one.startsWith("data: ") && one !== "data: [DONE]") yield JSON.parse(one.slice(6));
  }
}

async function grow(answer, body, signal) {
  const headers = { ...JSON.parse(document.body.getAttribute("hx-headers")), "content-type": "application/json", "hx-request": "true" };
  const response = await fetch(form.dataset.ask, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error((await response.text()).slice(0, 500));
  let ended = false;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    for (const choice of event.choices) {
      answer.append(choice.delta.content ?? "");
      ended ||= choice.finish_reason !== null;
    }
  }
  if (!ended) throw new Error("The answer broke off: ask again.");
}

// An answer that was stopped or failed is no part of the conversation, nor is its question.
async function exchange(model, question, options, signal) {
  const { column, said } = talks.get(model);
  put(column, "p", "asked", question.content);
  const answer = put(column, "p", "said", "");
  const messages = [...said, question];
  column.setAttribute("aria-busy", "true");
  try {
    await grow(answer, { model, messages, ...options }, signal);
    said.splice(0, said.length, ...messages, { role: "assistant", content: answer.textContent });
    return true;
  } catch (error) {
    const lost = error instanceof TypeError ? "The service does not answer. Trying again may help." : error.message;
    put(column, "p", signal.aborted ? "faint" : "bad", signal.aborted ? "Stopped." : lost);
    return false;
  } finally {
    column.removeAttribute("aria-busy");
  }
}

function busy(is) {
  ask.disabled = anew.disabled = is;
  stop.disabled = !is;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (leaving) return;
  const given = new FormData(form);
  const models = [...new Set(given.getAll("model").map((name) => name.trim()).filter(Boolean))];
  const options = { temperature: Number(given.get("temperature")), max_tokens: Number(given.get("max_tokens")) };
  for (const model of models) if (!talks.has(model)) talks.set(model, talkWith(model));
  document.getElementById("talks").replaceChildren(...models.map((model) => talks.get(model).column));
  const state = document.getElementById("state");
  state.textContent = models.length === 1 ? "The model answers." : `${models.length} models answer.`;
  leaving = new AbortController();
  busy(true);
  const question = { role: "user", content: given.get("prompt") };
  const done = await Promise.all(models.map((model) => exchange(model, question, options, leaving.signal)));
  const count = done.filter(Boolean).length;
  state.textContent = leaving.signal.aborted ? "Stopped." : `${count} of ${models.length} answered.`;
  leaving = null;
  busy(false);
  if (count) form.elements.prompt.value = "";
  form.elements.prompt.focus();
});

form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(ask);
});
stop.addEventListener("click", () => leaving?.abort());
anew.addEventListener("click", () => {
  talks.clear();
  document.getElementById("talks").replaceChildren();
  document.getElementById("state").textContent = "";
  form.elements.prompt.focus();
});
