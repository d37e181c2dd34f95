// Puts the reader's own time before each time of a page, which stays beside it in UTC; in a zone that is UTC, nothing.
// A day keeps its day, in UTC: the moment is its title.

const style = document.body.dataset.poll === undefined ? ["long", "long"] : ["medium", "short"]; // sheet, console
const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: style[0], timeStyle: style[1] });

export function localise(page) {
  for (const time of page.querySelectorAll("time")) {
    const at = new Date(time.dateTime);
    if (at.getTimezoneOffset() === 0) continue;
    if (time.title) time.title = `${format.format(at)} (${time.title})`;
    else time.textContent = `${format.format(at)} (${time.textContent})`;
  }
}

localise(document);
