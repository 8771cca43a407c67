// A sample's videos in step, looped, and the film strips of the two that are compared.

const HOLD = 700; // milliseconds that the last frame stays
const PLACES = [5, 16]; // frames of a strip, at least and at most
const WIDE = 66; // pixels of one of them, at least
const happens = (target, ...events) => new Promise((done) => {
  for (const event of events) target.addEventListener(event, done, { once: true });
});

// The longest video leads, the others are held to its time.
class Players {
  constructor(sample, pauseOthers) {
    this.sample = sample;
    this.pauseOthers = pauseOthers;
    this.fps = Number($(".pair", sample).dataset.fps);
    this.videos = $$("video", sample);
    this.playing = false;
    this.away = !matchMedia("(prefers-reduced-motion: reduce)").matches; // plays when it comes into view
    this.speed = 1;
    this.at = 0;
    this.seek = $(".seek", sample);
    const { sources } = data[sample.dataset.id];
    for (const video of this.videos) video.src = sources[video.closest(".player").dataset.method];
    this.ready = Promise.all(this.videos.map((video) => video.readyState >= 1 || happens(video, "loadedmetadata", "error")))
      .then(() => {
        this.leader = this.videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a), this.videos[0]);
        this.frames = this.count(this.leader);
        this.seek.max = this.frames - 1;
        this.show(0);
        new IntersectionObserver(([entry]) => this.seen(entry.isIntersecting)).observe($(".pair", sample));
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
  count(video) { return video ? Math.max(1, Math.round((video.duration || 0) * this.fps)) : 1; }
  get frame() {
    return this.leader ? Math.min(this.frames - 1, Math.floor(this.leader.currentTime * this.fps + 0.01)) : 0;
  }
  show(frame) {
    this.at = Math.max(0, Math.min(this.frames - 1, frame));
    for (const video of this.videos) {
      // The middle of a frame is surely that frame.
      video.currentTime = (Math.min(this.at, this.count(video) - 1) + 0.5) / this.fps;
    }
    this.label(this.at);
  }
  label(frame) {
    this.seek.value = frame;
    $(".frame", this.sample).textContent = `${frame + 1} / ${this.frames}`;
    for (const button of $$(".film:not([hidden]) .frames button", this.sample)) {
      const now = button.first <= frame && frame < button.end;
      if (now !== button.classList.contains("now")) button.classList.toggle("now", now);
    }
  }
  step(by) { this.pause(); this.show(this.at + by); }
  toggle() { this.playing ? this.pause() : this.play(); }
  async play() {
    await this.ready;
    if (!this.leader || this.playing) return;
    this.pauseOthers(this);
    this.playing = true;
    $(".play", this.sample).textContent = "❚❚ Pause";
    if (this.at >= this.frames - 1) this.show(0);
    this.start();
    this.follow();
  }
  start() {
    this.ended = 0;
    for (const video of this.videos) {
      video.playbackRate = this.speed;
      if (!video.ended) video.play().catch(() => {});
    }
  }
  pause() {
    this.away = false;
    if (!this.playing) return;
    this.playing = false;
    $(".play", this.sample).textContent = "▶ Play";
    for (const video of this.videos) video.pause();
    this.show(this.frame);
  }
  seen(here) {
    if (here && this.away) this.play();
    else if (!here && this.playing) { this.pause(); this.away = true; }
  }
  follow() {
    if (!this.playing) return;
    if (this.leader.ended) {
      this.ended ||= performance.now();
      if (performance.now() - this.ended > HOLD) {
        for (const video of this.videos) video.currentTime = 0;
        this.start();
      }
    } else {
      const time = this.leader.currentTime;
      for (const video of this.videos) {
        const wanted = Math.min(time, video.duration || 0);
        if (!video.ended && Math.abs(video.currentTime - wanted) > Math.max(0.06, 0.5 / this.fps)) video.currentTime = wanted;
      }
    }
    if (this.frame !== this.at) this.label(this.at = this.frame);
    requestAnimationFrame(() => this.follow());
  }
}

// The frames that a strip shows, each for all from ``first`` to before ``end``: evenly chosen, but rather one that fails
function chosenFrames(frames, places, failing) {
  const count = Math.min(frames, places);
  return Array.from({ length: count }, (_, number) => {
    const first = Math.ceil(number * frames / count), end = Math.ceil((number + 1) * frames / count);
    const even = count > 1 ? Math.round(number * (frames - 1) / (count - 1)) : 0;
    const failed = failing.filter((frame) => first <= frame && frame < end);
    return { first, end, frame: failed.length && !failed.includes(even) ? failed[0] : even };
  });
}

async function drawFilms(sample, players) {
  await players.ready;
  const films = $$(".film:not([hidden])", sample).filter((film) => $(".frames", film));
  const { sources, broken } = data[sample.dataset.id];
  const rules = (film) => broken[film.dataset.method] || [];
  const failing = films.flatMap((film) => rules(film).flatMap(([, frames]) => frames));
  const width = Math.max(0, ...films.map((film) => $(".frames", film).clientWidth));
  const places = Math.max(PLACES[0], Math.min(PLACES[1], Math.floor(width / WIDE)));
  const chosen = chosenFrames(players.frames, places, failing);
  for (const film of films) {
    const buttons = chosen.map((each) => frameButton(each, rules(film), players));
    $(".frames", film).replaceChildren(...buttons);
    drawFrames(sources[film.dataset.method], buttons, sample, players).catch(console.error);
  }
  players.label(players.at);
}

function frameButton(each, rules, players) {
  const button = Object.assign(document.createElement("button"), each, { type: "button" });
  const breaks = rules.filter(([, frames]) => frames.some((frame) => each.first <= frame && frame < each.end));
  const number = document.createElement("span");
  number.textContent = (breaks.length ? "✗ " : "") + (each.frame + 1);
  button.classList.toggle("breaks", breaks.length > 0);
  button.title = [`frame ${each.frame + 1}`, ...breaks.map(([words]) => `${words} No`)].join("\n");
  button.append(document.createElement("canvas"), number);
  button.addEventListener("click", () => { players.pause(); players.show(each.frame); });
  return button;
}

async function drawFrames(source, buttons, sample, players) {
  const { width, height } = $(".pair", sample).dataset;
  const scale = Math.min(1, 240 / width); // a small video in its own pixels, a large one smaller
  const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto", src: source });
  if (video.readyState < 2) await happens(video, "loadeddata", "error");
  for (const button of buttons) {
    if (video.error || !button.isConnected) break;
    if (button.frame >= players.count(video)) { button.disabled = true; continue; }
    const seeked = happens(video, "seeked", "error");
    video.currentTime = (button.frame + 0.5) / players.fps;
    await seeked;
    const canvas = $("canvas", button), context = canvas.getContext("2d");
    Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
  }
  video.removeAttribute("src"); // its memory
  video.load();
}
