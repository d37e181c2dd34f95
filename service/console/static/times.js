// Puts the reader's own time before each time of the page, which stays beside it in UTC; in a zone that is UTC, nothing.

const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long", timeStyle: "long" });

for (const time of document.querySelectorAll("time")) {
  const at = new Date(time.dateTime);
  if (at.getTimezoneOffset() !== 0) time.textContent = `${format.format(at)} (${time.textContent})`;
}
