"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs"), data = read("data"), reference = read("reference");
  const samples = $$(".sample");
  const drawn = new Map(); // element -> function that draws its plot again

  // Dark or light

  const root = document.documentElement;
  const dark = () => root.dataset.theme === "dark";
  function setTheme(name) {
    root.dataset.theme = name;
    for (const draw of drawn.values()) draw();
  }
  function toggleTheme() {
    setTheme(dark() ? "light" : "dark");
  }
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("#theme").addEventListener("click", toggleTheme);

  // Plots

  function draw(element, spec) {
    const style = getComputedStyle(root), color = (name) => style.getPropertyValue(name).trim();
    const ink = color("--ink"), soft = color("--soft"), line = color("--line");
    const config = {
      background: "transparent", font: "system-ui, sans-serif",
      view: { stroke: "transparent" },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 500 },
      legend: { labelColor: ink, titleColor: soft, labelLimit: 120 },
      text: { color: ink }, line: { color: color("--accent") }, point: { color: color("--accent") },
      range: { category: dark()
        ? ["#8fb0ff", "#f2a65a", "#7fd89a", "#ff9d93", "#c9a2ff", "#67d3dc", "#f0c765", "#b9c0c8", "#ff8fc7"]
        : ["#2f5fd0", "#c8660a", "#1c7c3c", "#b3362b", "#7a3fc0", "#0c7b87", "#8a6100", "#5b6068", "#b0307a"] },
    };
    drawn.set(element, () => draw(element, spec));
    const schema = "https://vega.github.io/schema/vega-lite/v6.json"; // a name, never fetched
    return vegaEmbed(element, { $schema: schema, config, ...spec }, { actions: false, ast: true, renderer: "svg" })
      .catch((error) => { element.textContent = "This plot cannot be drawn: " + error.message; console.error(error); });
  }

  // Names beside the points where there is room for them, else below the plot
  function uncrowded(spec) {
    if (innerWidth >= 640 && spec.data.values.length <= 7) return spec;
    const color = { ...spec.encoding.color, title: null, legend: { orient: "bottom", columns: innerWidth < 640 ? 2 : 4 } };
    return { ...spec, layer: spec.layer.filter((layer) => layer.mark.type !== "text"), encoding: { ...spec.encoding, color } };
  }

  const units = $("#cost-units");
  if (units) {
    const show = (name) => {
      for (const button of $$("button", units)) button.setAttribute("aria-pressed", String(button.textContent === name));
      draw($("#cost-chart"), uncrowded(specs.cost[name]));
    };
    for (const name of Object.keys(specs.cost)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => show(name));
      units.append(button);
    }
    if (units.firstChild) show(units.firstChild.textContent);
  }

  function drawCurves(sample) {
    const select = $(".curve-method", sample);
    if (!select) return;
    const { curves, queries } = data[sample.dataset.id];
    const rows = curves[select.value], asked = queries[select.value];
    draw($(".chart.loss", sample), { ...specs.loss[select.value], data: { values: rows } });
    const values = rows.flatMap((row) => Object.keys(row).filter((name) => name.startsWith("p_yes_")).map((name, number) => ({
      step: row.step, p: row[name], question: name.slice(6).replace("_", " "), text: asked[number] || "",
    })));
    draw($(".chart.questions-chart", sample), { ...specs.questions, data: { values } });
  }

  // Players: the longest video leads, the others are held to its time

  class Players {
    constructor(sample) {
      this.sample = sample;
      this.fps = Number($(".players", sample).dataset.fps);
      this.videos = $$("video", sample);
      const sources = data[sample.dataset.id].sources.filter(Boolean);
      this.videos.forEach((video, number) => { video.src = sources[number]; });
      this.playing = false;
      this.speed = 1;
      this.seek = $(".seek", sample);
      this.ready = Promise.all(this.videos.map((video) => new Promise((done) => {
        if (video.readyState >= 1) return done();
        video.addEventListener("loadedmetadata", done, { once: true });
        video.addEventListener("error", done, { once: true });
      }))).then(() => {
        this.leader = this.videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a), this.videos[0]);
        this.frames = this.leader ? Math.max(1, Math.round(this.leader.duration * this.fps)) : 1;
        this.seek.max = this.frames - 1;
        this.show(0);
      });
      $(".play", sample).addEventListener("click", () => this.toggle());
      $(".back", sample).addEventListener("click", () => this.step(-1));
      $(".forth", sample).addEventListener("click", () => this.step(1));
      this.seek.addEventListener("input", () => { this.pause(); this.show(Number(this.seek.value)); });
      $(".speed", sample).addEventListener("change", (event) => {
        this.speed = Number(event.target.value);
        for (const video of this.videos) video.playbackRate = this.speed;
      });
    }
    get frame() {
      return this.leader ? Math.min(this.frames - 1, Math.floor(this.leader.currentTime * this.fps + 0.01)) : 0;
    }
    show(frame) {
      this.at = Math.max(0, Math.min(this.frames - 1, frame));
      for (const video of this.videos) {
        const last = Math.max(0, Math.round((video.duration || 0) * this.fps) - 1);
        video.currentTime = (Math.min(this.at, last) + 0.5) / this.fps; // the middle of a frame is surely that frame
      }
      this.label(this.at);
    }
    label(frame) {
      this.seek.value = frame;
      $(".frame", this.sample).textContent = `${frame + 1} / ${this.frames}`;
    }
    step(by) { this.pause(); this.show(this.at + by); }
    toggle() { this.playing ? this.pause() : this.play(); }
    async play() {
      await this.ready;
      if (!this.leader) return;
      for (const other of players.values()) if (other !== this) other.pause();
      this.playing = true;
      $(".play", this.sample).textContent = "❚❚ Pause";
      if (this.at >= this.frames - 1) this.show(0);
      this.start();
      this.follow();
    }
    start() {
      for (const video of this.videos) {
        video.playbackRate = this.speed;
        if (!video.ended) video.play().catch(() => {});
      }
    }
    pause() {
      if (!this.playing) return;
      this.playing = false;
      $(".play", this.sample).textContent = "▶ Play";
      for (const video of this.videos) video.pause();
      this.show(this.frame);
    }
    follow() {
      if (!this.playing) return;
      if (this.leader.ended) {
        for (const video of this.videos) video.currentTime = 0;
        this.start();
      } else {
        const time = this.leader.currentTime;
        for (const video of this.videos) {
          const wanted = Math.min(time, video.duration || 0);
          if (!video.ended && Math.abs(video.currentTime - wanted) > Math.max(0.06, 0.5 / this.fps)) video.currentTime = wanted;
        }
      }
      this.at = this.frame;
      this.label(this.at);
      requestAnimationFrame(() => this.follow());
    }
  }
  const players = new Map();
  let current = null;

  for (const sample of samples) {
    sample.addEventListener("toggle", () => {
      if (!sample.open) { players.get(sample)?.pause(); return; }
      current = sample;
      if (!players.has(sample)) {
        sample.insertAdjacentHTML("beforeend", $("noscript", sample).textContent); // all texts in it are escaped
        players.set(sample, new Players(sample));
        $(".curve-method", sample)?.addEventListener("change", () => drawCurves(sample));
        drawCurves(sample);
      }
    });
    sample.addEventListener("focusin", () => { current = sample; });
  }

  // Filters, kept in the address so that a view can be shared

  const filters = { text: $("#f-text"), family: $("#f-family"), split: $("#f-split"), method: $("#f-method"), outcome: $("#f-outcome") };
  const defaults = Object.fromEntries(Object.entries(filters).map(([name, field]) => [name, field ? field.value : ""]));
  function matches(sample, wanted) {
    const { outcomes, hacked } = data[sample.dataset.id];
    const mine = outcomes[wanted.method], base = outcomes[reference];
    const right = (outcome) => outcome === "solved";
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
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (filters[name]) filters[name].value = value;
  for (const field of Object.values(filters)) field?.addEventListener("input", filter);
  $(".filters").addEventListener("submit", (event) => event.preventDefault());
  $(".filters").addEventListener("reset", () => setTimeout(filter));
  filter();

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
      " ": player && !event.target.matches("button") ? () => player.toggle() : null,
      ArrowLeft: player ? () => player.step(-1) : null,
      ArrowRight: player ? () => player.step(1) : null,
    }[event.key];
    if (event.key === "Escape" && event.target === filters.text) { filters.text.blur(); return; }
    if (!act || typing) return;
    event.preventDefault();
    act();
  });
  if (samples.length === 1) samples[0].open = true;
})();
