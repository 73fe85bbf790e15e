"use strict";
// The report's behaviour. All text from clips goes through textContent, never through HTML.
const report = JSON.parse(document.getElementById("data").textContent);
const clips = report.clips, PAGE = 200;
const $ = (id) => document.getElementById(id);
const state = { key: "probability", up: false, shown: PAGE, clip: null };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
function draw(tag, attributes = {}, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}
const percent = (p) => p < 0.095 ? `${(100 * p).toFixed(1)} %` : `${Math.round(100 * p)} %`;
const seconds = (t) => `${t.toFixed(t < 100 ? 1 : 0)} s`;

// Why a clip has no score, or a less certain one.
const because = (clip) => clip.reason ? `${clip.scored ? ";" : ":"} ${clip.reason}` : "";

function posterior(p, share) {
  const odds = (p / (1 - p)) * (share / (1 - share));
  return odds / (1 + odds);
}
function baseShare() {
  const n = Number($("base-rate").value);
  return n > 1 ? 1 / n : null;
}
const KEYS = {
  filename: (clip) => clip.filename.toLowerCase(), probability: (clip) => clip.scored ? clip.probability : -1,
  verdict: (clip) => clip.finding.rank, persons: (clip) => clip.tracks.length, status: (clip) => clip.status,
};

function chosen() {
  const text = $("search").value.toLowerCase(), least = Number($("least").value), status = $("status").value;
  const found = clips.filter((clip) => clip.filename.toLowerCase().includes(text)
    && (clip.scored ? clip.probability : 0) >= least && (!status || clip.status === status));
  const key = KEYS[state.key], sign = state.up ? 1 : -1;
  return found.sort((a, b) => {
    const x = key(a), y = key(b);
    return sign * (x < y ? -1 : x > y ? 1 : 0) || (a.filename < b.filename ? -1 : 1);
  });
}

function list() {
  const found = chosen(), body = $("list").tBodies[0];
  body.replaceChildren(...found.slice(0, state.shown).map((clip) => {
    const said = clip.finding, share = baseShare();
    const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("span"));
    bar.firstChild.style.width = `${100 * clip.probability}%`;
    const cell = make("td", { class: "number" });
    if (clip.scored) {
      cell.append(bar, percent(clip.probability));
      if (share !== null && share !== 0.5) cell.append(make("br"), `${percent(posterior(clip.probability, share))} at your rate`);
    } else cell.append("–");
    return make("tr", {},
      make("td", {}, make("button", { type: "button", on: { click: () => open(clip) } }, clip.filename)),
      cell, make("td", { class: `finding ${said.tone}` }, said.text, make("span", { class: "quiet" }, because(clip))),
      make("td", { class: "number" }, String(clip.tracks.length)), make("td", {}, clip.status));
  }));
  $("count").textContent = `${found.length} of ${clips.length} clip${clips.length === 1 ? "" : "s"}`
    + (found.length > state.shown ? `, the first ${state.shown} shown` : "");
  $("more").hidden = found.length <= state.shown;
}

// The frame whose picture is nearest to a frame.
const nearest = (pictures, frame) => Object.keys(pictures).map(Number)
  .reduce((best, each) => best === null || Math.abs(each - frame) < Math.abs(best - frame) ? each : best, null);
const jpeg = (data) => `data:image/jpeg;base64,${data}`;

function scene(clip, frame) {
  const index = nearest(clip.scenes, frame);
  if (index === null) return null;
  const [width, height] = clip.frame_size;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  clip.tracks.forEach((track, person) => {
    const i = track.frames.indexOf(index);
    if (i < 0) return;
    const [x0, y0, x1, y1] = track.boxes[i], scale = width / 640;
    for (const name of ["box-under", "box"]) {
      const box = draw("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: name });
      box.style.strokeWidth = (name === "box" ? 3 : 6) * scale;
      svg.append(box);
    }
    const label = { x: x0, y: Math.max(y0 - 6 * scale, 14 * scale), "font-size": 16 * scale, "font-weight": "bold",
      fill: "#fff", stroke: "#000", "stroke-width": 4 * scale, "paint-order": "stroke" };
    svg.append(draw("text", label, `Person ${person + 1}`));
  });
  const picture = make("span", { class: "scene" },
    make("img", { src: jpeg(clip.scenes[index]), alt: `Whole frame at ${seconds(clip.times_s[index])}, faces boxed` }), svg);
  return make("figure", {}, picture, make("figcaption", {}, `The whole frame at ${seconds(clip.times_s[index])}`));
}

// The chart is drawn as wide as the page allows, so that its text keeps its size on a phone.
const CHART = { height: 180, left: 44, right: 10, top: 12, bottom: 30 };
function chart(clip, track, person, select) {
  const { height, left, right, top, bottom } = CHART, width = Math.min(640, document.documentElement.clientWidth - 32);
  const end = Math.max(clip.times_s[clip.times_s.length - 1], 1e-9);
  const x = (t) => left + (t / end) * (width - left - right), y = (p) => height - bottom - p * (height - top - bottom);
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "slider",
    "aria-label": `Score of person ${person + 1} over time; arrow keys move from frame to frame`,
    "aria-valuemin": "1", "aria-valuemax": String(track.frames.length) });
  for (const p of [0, 0.5, 1]) {
    svg.append(draw("line", { class: p === 0.5 ? "axis half" : "axis", x1: left, x2: width - right, y1: y(p), y2: y(p) }));
    svg.append(draw("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, `${100 * p} %`));
  }
  for (let i = 0; i <= 4; i++) svg.append(draw("text", { x: x(end * i / 4), y: height - 10, "text-anchor": i ? (i === 4 ? "end" : "middle") : "start" }, seconds(end * i / 4)));
  const line = track.frames.map((_, i) => `${x(track.times_s[i]).toFixed(1)},${y(track.scores[i]).toFixed(1)}`);
  svg.append(draw("polyline", { class: "score", points: line.join(" ") }));
  track.frames.forEach((_, i) => svg.append(draw("circle", { class: track.found[i] ? "dot" : "dot interpolated",
    cx: x(track.times_s[i]), cy: y(track.scores[i]), r: 3 })));
  const cursor = draw("line", { class: "cursor", y1: top, y2: height - bottom });
  svg.append(cursor);
  const at = (event) => {
    const box = svg.getBoundingClientRect(), time = ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * end;
    return track.times_s.reduce((best, t, i) => Math.abs(t - time) < Math.abs(track.times_s[best] - time) ? i : best, 0);
  };
  svg.addEventListener("pointermove", (event) => select(at(event)));
  svg.addEventListener("pointerdown", (event) => select(at(event)));
  svg.addEventListener("keydown", (event) => {
    const last = track.frames.length - 1, now = Number(svg.getAttribute("aria-valuenow")) - 1;
    const next = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: last,
      PageUp: now + 5, PageDown: now - 5 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select(Math.min(Math.max(next, 0), last));
  });
  svg.show = (i) => {
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, x(track.times_s[i]));
    svg.setAttribute("aria-valuenow", String(i + 1));
    svg.setAttribute("aria-valuetext", `${seconds(track.times_s[i])}: ${percent(track.scores[i])}`);
  };
  return svg;
}

// Of the values in a clip's maps, 95 % are smaller: the colour is fullest from here on, so that faint maps look faint
// beside strong ones of the same clip.
function strongestHeat(clip) {
  const values = clip.tracks.flatMap((track) => Object.values(track.heat || {})).flat(2).map(Math.abs).sort((a, b) => a - b);
  return values.length ? values[Math.floor(0.95 * (values.length - 1))] : 0;
}
// Class activation: how much each part of the crop moved the log-odds, painted over the face where the crop lies.
function heatMap(clip, track, frame) {
  const map = (track.heat || {})[frame], picture = track.thumbnails[frame];
  if (!map || !picture) return null;
  const side = 192, [left, top, size] = report.crop_in_thumbnail.map((share) => share * side);
  const canvas = make("canvas", { width: side, height: side, role: "img",
    "aria-label": "The same face with a heat map of what drove the score" });
  const image = new Image();
  image.onload = () => {
    const paint = canvas.getContext("2d"), n = map.length, small = make("canvas", { width: n, height: n });
    paint.drawImage(image, 0, 0, side, side);
    const cells = small.getContext("2d").createImageData(n, n), most = Math.max(strongestHeat(clip), 1e-9);
    map.flat().forEach((value, i) => cells.data.set(
      [...(value > 0 ? [213, 94, 0] : [0, 114, 178]), 200 * Math.min(Math.abs(value) / most, 1)], 4 * i));
    small.getContext("2d").putImageData(cells, 0, 0);
    paint.drawImage(small, left, top, size, size);
  };
  image.src = jpeg(picture);
  return canvas;
}

function person(clip, track, number) {
  const box = make("section", { "aria-label": `Person ${number + 1}` });
  const said = track.kind === "picture" ? "a picture in the picture, which does not decide the clip" : percent(track.probability);
  box.append(make("h3", {}, `Person ${number + 1}: ${said}`));
  const live = make("p", { class: "number", role: "status" }), detail = make("div", { class: "pair" });
  const strip = make("ul", { class: "strip" }), buttons = new Map();
  const withHeat = make("input", { type: "checkbox", id: `heat-${number}`, on: { change: () => select(state.frame[number]) } });
  const select = (i) => {
    state.frame[number] = i;
    const frame = track.frames[i], near = nearest(track.thumbnails, frame);
    line.show(i);
    live.textContent = `${seconds(track.times_s[i])}: frame score ${percent(track.scores[i])}`
      + (track.found[i] ? "" : "; the face was not found here, its box is interpolated");
    buttons.forEach((button, each) => button.setAttribute("aria-pressed", String(each === near)));
    detail.replaceChildren();
    if (near !== null) {
      // Only some frames have a heat map; the untouched face beside it is of the same frame.
      const pictured = withHeat.checked ? nearest(track.heat, frame) : near, when = seconds(clip.times_s[pictured]);
      const alt = `Face of person ${number + 1} at ${when}`;
      detail.append(make("figure", {}, make("img", { src: jpeg(track.thumbnails[pictured]), alt }),
        make("figcaption", {}, `At ${when}, untouched` + (pictured === near ? "" : "; the nearest frame with a heat map"))));
      const heat = withHeat.checked ? heatMap(clip, track, pictured) : null;
      if (heat) detail.append(make("figure", {}, heat, make("figcaption", {}, "The same with its heat map")), make("p", { class: "quiet" },
        `Orange raised the first model's score, blue lowered it; full colour means ${strongestHeat(clip).toFixed(1)} log-odds or more. `
        + "The map is coarse: it shows regions, not details, and partly where the model is active at all. What the model reads from the face as a whole is spread evenly over the map. The map is no evidence by itself."));
    }
    const whole = scene(clip, frame);
    if (whole) state.scene.replaceChildren(whole);
  };
  const line = chart(clip, track, number, select);
  for (const [frame, data] of Object.entries(track.thumbnails)) {
    const i = track.frames.indexOf(Number(frame));
    const button = make("button", { type: "button", class: "face", "aria-pressed": "false", on: { click: () => select(i) } },
      make("img", { src: jpeg(data), alt: `Person ${number + 1} at ${seconds(track.times_s[i])}`, loading: "lazy" }),
      make("span", { class: "number" }, `${seconds(track.times_s[i])} · ${percent(track.scores[i])}`));
    buttons.set(Number(frame), button);
    strip.append(make("li", {}, button));
  }
  const scroll = make("div", { class: "scroll" }, strip);
  const hint = make("p", { class: "quiet" }, "Score of each frame over time, in percent. Hover, tap or use the arrow keys to see a frame.");
  box.append(scroll, ...(clip.times_s.length > 1 ? [hint, line] : []), live);  // a single frame has no course over time
  if (track.heat && Object.keys(track.heat).length)
    box.append(make("p", {}, withHeat, " ", make("label", { for: `heat-${number}` }, "Show what drove the score (heat map)")));
  box.append(detail);
  return { box, start: () => select(0) };
}

function facts(clip) {
  const rows = [], add = (name, value) => value !== null && value !== undefined && value !== "" && rows.push(make("dt", {}, name), make("dd", {}, value));
  const share = baseShare(), made = clip.provenance || {};
  if (clip.scored && share !== null) {
    const n = Number($("base-rate").value);
    add(`If 1 in ${n} such clips is fake`, `this score means ${percent(posterior(clip.probability, share))}`);
  }
  if (clip.times_s.length) {
    const n = clip.times_s.length;
    const span = n === 1 ? `1 frame at ${seconds(clip.times_s[0])}` : `${n} frames from ${seconds(clip.times_s[0])} to ${seconds(clip.times_s[n - 1])}`;
    add("Looked at", clip.duration_s ? `${span} of ${seconds(clip.duration_s)}` : span);
    add("Frames with a face", `${clip.n_faces}`);
  }
  const heard = clips.some((each) => each.voice !== null);
  if (clip.voice !== null) add("Sound", `probability of a synthetic voice: ${percent(clip.voice)}`);
  else if (heard) add("Sound", "no voice was heard");
  const missed = [];
  if (!heard) missed.push("the sound");
  if (clip.tracks.length && clip.times_s.length > 1 && !clip.n_pairs) missed.push("the change from one frame to the next");
  if (clip.frame_size) missed.push(`faces narrower than about ${Math.round(Math.max(report.min_face_ratio * Math.max(...clip.frame_size), 20))} px`);
  add("Not looked at", clip.times_s.length ? missed.join(", ") : "the whole clip, because no frame of it was read");
  const models = (made.models || []).map((model) => `${model.name} (SHA-256 ${model.digest.slice(0, 12)}…)`);
  add("Models", models.join(", ") || (clip.scored ? `${clip.n_models}` : null));
  add("File", made.sha256 ? `SHA-256 ${made.sha256}, ${made.n_bytes} bytes` : null);
  add("Analyzed", made.created ? `${made.created} by dfdc ${made.version}` : null);
  add("Settings", made.device ? `${clip.n_wanted} frame${clip.n_wanted === 1 ? "" : "s"} wanted, on ${made.device === "cpu" ? "the CPU" : "a GPU"}` : null);
  return make("dl", {}, ...rows);
}

function open(clip, { move = true } = {}) {
  state.clip = clip; state.frame = {}; state.scene = make("div");
  const said = clip.finding, heading = $("clip-heading");
  heading.textContent = clip.filename;
  const verdict = make("p", { class: `finding ${said.tone}` }, (clip.scored ? `${percent(clip.probability)}: ${said.text}` : said.text)
    + because(clip));
  const notes = (clip.notes || []).length ? make("p", { class: "notes" }, `Note: ${clip.notes.join("; ")}.`) : null;
  const people = clip.tracks.map((track, number) => person(clip, track, number));
  const missing = clip.pictures_left_out ? make("p", { class: "quiet" },
    "Some pictures were left out or reduced to keep this page small. `dfdc report` on this clip's analysis alone shows all of them.") : null;
  $("clip-body").replaceChildren(verdict, ...(notes ? [notes] : []), state.scene, ...people.map((each) => each.box), ...(missing ? [missing] : []),
    make("h3", {}, "Facts"), facts(clip));
  $("clip").hidden = false;
  people.slice().reverse().forEach((each) => each.start());
  if (!people.length && Object.keys(clip.scenes).length) state.scene.replaceChildren(scene(clip, 0));
  if (move) {
    heading.focus();
    heading.scrollIntoView();
  }
}

function start() {
  const scored = clips.filter((clip) => clip.scored).length;
  $("summary").textContent = `${clips.length} clip${clips.length === 1 ? "" : "s"}, ${scored} scored.`;
  $("known-data").hidden = !report.models.length;
  $("known-data").append(make("ul", {}, ...report.models.map((model) => make("li", {}, `${model.name}: ${model.trained_on}`))));
  if (clips.some((clip) => clip.voice !== null))
    $("sound-note").textContent = "The voice was scored where one was heard; the voice model knows only old vocoders.";
  $("made").textContent = `Made on ${report.created} by dfdc ${report.version}. `
    + (report.models.length ? `Models: ${report.models.map((model) => `${model.name} (SHA-256 ${model.digest})`).join(", ")}. ` : "")
    + "This page is one file and loads nothing from the network.";
  for (const status of [...new Set(clips.map((clip) => clip.status))].sort()) $("status").append(make("option", { value: status }, status));
  for (const button of document.querySelectorAll("#list th button")) button.addEventListener("click", () => {
    state.up = state.key === button.dataset.key ? !state.up : button.dataset.key === "filename";
    state.key = button.dataset.key;
    for (const head of document.querySelectorAll("#list th")) head.setAttribute("aria-sort",
      head.contains(button) ? (state.up ? "ascending" : "descending") : "none");
    list();
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["search", "least", "status"]) $(id).addEventListener("input", () => { state.shown = PAGE; list(); });
  $("base-rate").addEventListener("input", () => { list(); if (state.clip) open_facts(); });
  $("more").addEventListener("click", () => { state.shown += PAGE; list(); });
  list();
  if (clips.length === 1) {  // a list of one clip, and a way to filter it, would say nothing
    $("list-section").hidden = true;
    open(clips[0], { move: false });
  }
}
function open_facts() {
  const old = $("clip-body").querySelector("dl");
  if (old) old.replaceWith(facts(state.clip));
}
start();
