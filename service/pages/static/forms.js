// What forms do beside being sent: text is copied, what cannot be undone is asked once more, the first error is shown.
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
