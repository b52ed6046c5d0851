// What forms do beside being sent: text is copied, what cannot be undone is asked once more, the first error is shown, and
// a new job's fields stand at what this very job takes, which comes with its estimate.
"use strict";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button === null) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  const said = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = said; }, 1500);
});

document.addEventListener("submit", (event) => {
  const sure = event.target.dataset.sure;
  if (sure !== undefined && !window.confirm(sure)) event.preventDefault();
});

document.addEventListener("DOMContentLoaded", () => {
  const wrong = document.querySelector("[aria-invalid=true]");
  for (let fold = wrong?.closest("details:not([open])"); fold; fold = wrong.closest("details:not([open])")) fold.open = true;
  wrong?.focus();
});

document.addEventListener("htmx:afterSwap", () => {
  const told = document.getElementById("estimate")?.dataset.defaults;
  if (told === undefined) return;
  const own = JSON.parse(told);
  for (const field of document.querySelectorAll("#stages [data-published]")) {
    const stands = own[field.name] ?? field.dataset.published;
    if (field instanceof HTMLSelectElement) field.options[0].text = `${stands.replaceAll('"', "")} (default)`;
    else field.placeholder = stands;
  }
});
