// The page: its theme, its samples, the filters and the keys.

const samples = $$(".sample");

// Dark or light

function setTheme(name) {
  root.dataset.theme = name;
  for (const draw of drawn.values()) draw();
}
function toggleTheme() {
  setTheme(dark() ? "light" : "dark");
}
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("#theme").addEventListener("click", toggleTheme);

if ($("#cost-units")) drawCosts($("#cost-units"));

// A sample's videos, strips and curves are made when it is opened.

const players = new Map();
let current = null;

const pauseOthers = (one) => { for (const other of players.values()) if (other !== one) other.pause(); };

// Shows the reference beside a method: their videos large, their strips, the method's curves
function compare(sample, method) {
  const wanted = [reference, method];
  const [pair, others] = [$(".pair", sample), $(".others", sample)];
  if (others) {
    const order = Object.keys(data[sample.dataset.id].outcomes);
    const place = (figure) => order.indexOf(figure.dataset.method);
    for (const figure of $$(".player", sample)) { // a video that is moved loads its picture again: only those that must
      const home = wanted.includes(figure.dataset.method) ? pair : others;
      if (figure.parentElement !== home) home.insertBefore(figure, [...home.children].find((other) => place(other) > place(figure)) ?? null);
    }
    $(".beside", sample).value = method;
    for (const film of $$(".film", sample)) film.hidden = !wanted.includes(film.dataset.method);
  }
  drawFilms(sample, players.get(sample));
  drawCurves(sample, method);
}

function opened(sample) {
  sample.insertAdjacentHTML("beforeend", $("noscript", sample).textContent); // all texts in it are escaped
  players.set(sample, new Players(sample, pauseOthers));
  $(".beside", sample)?.addEventListener("change", (event) => compare(sample, event.target.value));
  for (const figure of $$(".player", sample)) {
    $("video", figure)?.addEventListener("click", () => {
      if (figure.parentElement.matches(".others")) compare(sample, figure.dataset.method);
    });
  }
  const methods = Object.keys(data[sample.dataset.id].outcomes).filter((method) => method !== reference);
  compare(sample, methods.includes(filters.method.value) ? filters.method.value : methods.at(-1) ?? reference);
}

for (const sample of samples) {
  sample.addEventListener("toggle", () => {
    if (!sample.open) { players.get(sample)?.pause(); return; }
    current = sample;
    if (!players.has(sample)) opened(sample);
    else if (!matchMedia("(prefers-reduced-motion: reduce)").matches) players.get(sample).play();
  });
  sample.addEventListener("focusin", () => { current = sample; });
}

// Filters, kept in the address so that a view can be shared

const filters = { text: $("#f-text"), family: $("#f-family"), split: $("#f-split"), method: $("#f-method"), outcome: $("#f-outcome") };
const defaults = Object.fromEntries(Object.entries(filters).map(([name, field]) => [name, field ? field.value : ""]));
function matches(sample, wanted) {
  const { outcomes, hacked } = data[sample.dataset.id];
  const mine = outcomes[wanted.method], base = outcomes[reference];
  const right = (outcome) => outcome === "right";
  const outcome = {
    "": true,
    repaired: right(mine) && base !== undefined && base !== "out" && !right(base),
    broken: mine !== "out" && !right(mine) && right(base),
    hacked: hacked.includes(wanted.method),
  }[wanted.outcome] ?? mine === wanted.outcome;
  return outcome && sample.dataset.text.includes(wanted.text.trim().toLowerCase())
    && (!wanted.family || sample.dataset.family === wanted.family)
    && (!wanted.split || sample.dataset.split === wanted.split);
}
function filter() {
  const wanted = Object.fromEntries(Object.entries(filters).map(([name, field]) => [name, field ? field.value : ""]));
  let shown = 0;
  for (const sample of samples) {
    sample.hidden = !matches(sample, wanted);
    if (sample.hidden) players.get(sample)?.pause();
    else shown += 1;
  }
  $("#count").textContent = `${shown} of ${samples.length}`;
  $("#nothing").hidden = shown > 0;
  const kept = new URLSearchParams(Object.entries(wanted).filter(([name, value]) => value !== defaults[name]));
  history.replaceState(null, "", kept.size ? "#" + kept : location.pathname + location.search);
}
function follow() { // an address with filters
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [name, field] of Object.entries(filters)) if (field) field.value = asked.get(name) ?? defaults[name];
  filter();
}
addEventListener("hashchange", () => { follow(); $("#samples-title").scrollIntoView(); });
for (const field of Object.values(filters)) field?.addEventListener("input", filter);
$(".filters").addEventListener("submit", (event) => event.preventDefault());
$(".filters").addEventListener("reset", () => setTimeout(filter));
follow();

// Keys

const help = $("#help");
$("#help-button").addEventListener("click", () => help.showModal());
function move(by) {
  const shown = samples.filter((sample) => !sample.hidden);
  if (!shown.length) return;
  const place = shown.indexOf(current);
  const next = shown[place < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, place + by))];
  if (current && current !== next) current.open = false;
  next.open = true;
  current = next;
  $("summary", next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches("input, select, textarea");
  const player = current && current.open && !current.hidden ? players.get(current) : null;
  const act = {
    j: () => move(1), k: () => move(-1), t: toggleTheme, "?": () => help.showModal(), "/": () => filters.text.focus(),
    // A button takes the space for itself; a frame of a strip has the enter key.
    " ": player && (!event.target.matches("button") || event.target.closest(".frames")) ? () => player.toggle() : null,
    ArrowLeft: player ? () => player.step(-1) : null,
    ArrowRight: player ? () => player.step(1) : null,
  }[event.key];
  if (event.key === "Escape" && event.target === filters.text) { filters.text.blur(); return; }
  if (!act || typing) return;
  event.preventDefault();
  act();
});

addEventListener("load", () => { // so that the page is there before its first videos
  const first = samples.find((sample) => !sample.hidden);
  if (first) first.open = true;
});
