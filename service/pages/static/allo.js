// What the pages' own script does: times in the reader's own zone, a word about what did not work, and what was opened
// stays open where a part of a page is shown anew: folds, and the menu of a choice.
"use strict";

const inZone = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) time.textContent = inZone.format(at);
  }
}

function tell(message) {
  const told = document.getElementById("told");
  told.textContent = message;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => { told.textContent = ""; }, 8000);
}

let opened = [];
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  opened = [...detail.target.querySelectorAll("details[id][open]")].map((fold) => fold.id);
});
document.addEventListener("htmx:afterSwap", () => {
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
});

const CHOOSING = 20_000; // milliseconds that a menu may be open: no page can ask whether it is
let menu = null, since = 0;
for (const kind of ["pointerdown", "keydown"]) {
  document.addEventListener(kind, ({ target }) => { if (target instanceof HTMLSelectElement) { menu = target; since = Date.now(); } });
}
for (const kind of ["change", "focusout"]) document.addEventListener(kind, () => { menu = null; }, true);
document.addEventListener("htmx:beforeSwap", ({ detail }) => { // what renews itself comes again by itself
  if (menu && detail.target.contains(menu) && detail.requestConfig.verb === "get" && Date.now() - since < CHOOSING) detail.shouldSwap = false;
});

document.addEventListener("DOMContentLoaded", () => localTimes(document));
document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt.parentElement ?? document));
document.addEventListener("htmx:responseError", (event) => tell(event.detail.xhr.responseText.slice(0, 500)));
document.addEventListener("htmx:sendError", () => tell("The service does not answer. Trying again may help."));
