// Keeps a page true without reloading it: asks for the page again and puts what changed in its place.
//
// <body data-poll="1000"> says how often; 0 or nothing: never. Elements with an id and data-live are compared and filled
// anew, in place, so that screen readers hear what a live region says. An element in which somebody fills in a form is left
// alone; what was opened stays open.

import { localise } from "./times.js";

const lost = document.getElementById("lost");
let tag = null, misses = 0;

const isBusy = (element) => element.querySelector("details[open] form") !== null;

const nameOf = (element) => element.getAttribute("href") ?? element.parentElement.id + element.textContent;

function place(fresh) {
  document.title = fresh.title;
  document.body.dataset.poll = fresh.body.dataset.poll;
  for (const old of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(old.id);
    if (next === null || old.innerHTML === next.innerHTML || isBusy(old)) continue;
    const open = [...old.querySelectorAll("details[open]")].map((each) => each.id);
    const focus = old.contains(document.activeElement) ? nameOf(document.activeElement) : null;
    old.innerHTML = next.innerHTML;
    for (const each of old.querySelectorAll("details")) each.open = open.includes(each.id);
    if (focus !== null) [...old.querySelectorAll("a, summary")].find((each) => nameOf(each) === focus)?.focus();
  }
}

async function ask() {
  const headers = tag === null ? {} : { "If-None-Match": tag };
  const answer = await fetch(location.href, { headers: { Accept: "text/html", ...headers }, cache: "no-store" });
  if (answer.redirected) return say("You are signed out. Reload the page to sign in again.");
  if (answer.ok) {
    tag = answer.headers.get("ETag");
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    localise(fresh);
    place(fresh);
  } else if (answer.status !== 304) throw new Error(`status ${answer.status}`);
  misses = 0;
  say("");
}

function say(text) {
  if (lost.textContent !== text) lost.textContent = text;
  lost.hidden = text === "";
}

async function follow() {
  const wait = Number(document.body.dataset.poll);
  if (!wait) return;
  if (!document.hidden) {
    try {
      await ask();
    } catch {
      misses += 1;
      if (misses > 1) say("The worker does not answer; what you see may be old. Trying again.");
    }
  }
  setTimeout(follow, Math.min(Number(document.body.dataset.poll) * (1 + misses), 10000));
}

document.addEventListener("submit", (event) => {
  if (event.target.dataset.ask && !confirm(event.target.dataset.ask)) event.preventDefault();
});
setTimeout(follow, Number(document.body.dataset.poll) || 0);
