"use strict";

// The page of tools/label_frames.py. The server keeps the labels: what is shown as labelled is on its disk.

const NAMES = { visible: "visibly fake", not_visible: "not visibly fake", skip: "skipped" };
const $ = (id) => document.getElementById(id);

let state = null; // what /state said
let number = 0; // of the clip
let shots = []; // of the clip
let index = 0; // of the shot
let busy = true; // a key that comes while something is under way is meant for a picture that nobody has seen
let wanted = 0; // counts clips asked for: an answer for an earlier one is not shown

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. All labels that you see are saved: start label_frames again and open the address that it prints.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// One thing at a time; what goes wrong is said and changes nothing.
async function act(action) {
  if (busy) return;
  busy = true;
  try {
    await action();
    $("error").hidden = true;
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    busy = false;
  }
}

const crop = (shot, which) => `clips/${number}/${shot}/${which}`;

async function fetchClip(to) {
  for (;;) {
    const answer = await ask(`clips/${to}`);
    if (answer.ready) return answer;
  }
}

// Open a clip at the shot that choose() picks from its shots, else at the first without a label.
async function openClip(to, choose = () => -1) {
  const mine = ++wanted;
  const slow = setTimeout(() => notice(`Cutting the faces of ${state.videos[to]} …`, "This takes some seconds; the next clip is made ready while you label."), 250);
  let clip;
  try {
    clip = await fetchClip(to);
  } finally {
    clearTimeout(slow);
    if (mine === wanted) notice();
  }
  if (mine !== wanted) return;
  state.run = clip.run;
  number = to;
  shots = clip.shots;
  state.shots[number] = shots.length;
  const chosen = choose(shots);
  index = Math.max(chosen >= 0 ? chosen : shots.findIndex((shot) => !shot.label), 0);
  drawStrip();
  drawClip();
  if (shots.length) drawShot();
  else notice(`Nothing to label in ${state.videos[number]}`, clip.reason || "It gave no face.");
}

function notice(title, text = "", button = "", go = null) {
  $("notice").hidden = !title;
  $("notice-title").textContent = title || "";
  $("notice-text").textContent = text;
  $("notice-button").hidden = !button;
  $("notice-button").textContent = button;
  $("notice-button").onclick = go;
}

function drawStrip() {
  const thumbs = shots.map((shot, i) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    image.src = crop(i, "fake");
    image.alt = `Frame ${shot.frame + 1}`;
    image.draggable = false;
    button.type = "button";
    button.append(image);
    button.onclick = () => act(() => show(i));
    return button;
  });
  $("strip").replaceChildren(...thumbs);
  $("stage").classList.toggle("alone", shots.length > 0 && shots.every((shot) => !shot.original));
}

function drawClip() {
  const option = (i) => {
    const done = state.clips[i] || 0;
    const progress = done || state.shots[i] ? ` · ${done}/${state.shots[i] ?? "?"}` : "";
    return `${i + 1} of ${state.videos.length} · ${state.videos[i]}${progress}`;
  };
  const select = $("clip");
  if (select.length !== state.videos.length) select.replaceChildren(...state.videos.map(() => document.createElement("option")));
  [...select.options].forEach((entry, i) => {
    const text = option(i);
    if (entry.textContent !== text) entry.textContent = text;
  });
  select.selectedIndex = number;
  $("clip-back").disabled = number === 0;
  $("clip-on").disabled = number === state.videos.length - 1;
  $("kind").textContent = state.kinds[number];
  $("kind").hidden = !state.kinds[number];
  const labelled = shots.filter((shot) => shot.label).length;
  const total = Object.values(state.marks).reduce((sum, n) => sum + n, 0);
  $("progress").textContent = shots.length ? `${labelled} of ${shots.length} labelled here, ${total} in all` : `${total} labelled`;
  for (const part of $("bar").children) {
    const n = shots.filter((shot) => shot.label === part.className).length;
    part.style.width = shots.length ? `${(100 * n) / shots.length}%` : "0";
  }
  [...$("strip").children].forEach((button, i) => {
    const person = i > 0 && shots[i].track !== shots[i - 1].track;
    button.className = `${shots[i].label || ""}${person ? " person" : ""}`;
    button.title = `Frame ${shots[i].frame + 1}${shots[i].label ? `, ${NAMES[shots[i].label]}` : ""}`;
  });
}

function drawShot() {
  const shot = shots[index];
  const persons = new Set(shots.map((one) => one.track)).size;
  $("where").textContent =
    `Face ${index + 1} of ${shots.length} · ${shot.time.toFixed(2)} s` + (persons > 1 ? ` · person ${shot.track + 1}` : "");
  $("mark").textContent = shot.label ? NAMES[shot.label] : "";
  $("mark").className = `mark ${shot.label || ""}`;
  $("fake-image").src = crop(index, "fake");
  for (const id of ["original-image", "peek-image"]) {
    if (shot.original) $(id).src = crop(index, "original");
    else $(id).removeAttribute("src");
  }
  $("no-original").hidden = shot.original;
  $("peek").disabled = !shot.original;
  $("score").style.visibility = shot.score === null ? "hidden" : "visible";
  $("score-text").textContent = `The models: ${Math.round(100 * (shot.score ?? 0))} % fake`;
  $("meter").value = shot.score ?? 0;
  $("back").disabled = index === 0;
  $("on").disabled = index === shots.length - 1;
  [...$("strip").children].forEach((button, i) => button.toggleAttribute("aria-current", i === index));
  const thumb = $("strip").children[index];
  $("strip").scrollLeft = thumb.offsetLeft - ($("strip").clientWidth - thumb.clientWidth) / 2;
  if (index + 1 < shots.length && shots[index + 1].original) new Image().src = crop(index + 1, "original");
  document.title = `${index + 1}/${shots.length} ${state.videos[number]}`;
  history.replaceState(null, "", `#${number + 1}.${index + 1}`);
}

function show(to) {
  if (to < 0 || to >= shots.length) return;
  notice();
  index = to;
  drawShot();
}

async function mark(label) {
  if (!shots.length || !$("notice").hidden) return;
  const shot = shots[index];
  const corrects = shot.label !== null;
  take(await ask("labels", { run: state.run, clip: number, shot: index, label }));
  shot.label = label;
  drawClip();
  drawShot();
  if (corrects) return show(index + 1);
  const open = (one) => !one.label;
  const after = shots.findIndex((one, i) => i > index && open(one));
  const left = after >= 0 ? after : shots.findIndex(open);
  if (left >= 0) return show(left);
  if (number + 1 < state.videos.length) return openClip(number + 1);
  await finish();
}

async function undo() {
  const answer = take(await ask("undo", { run: state.run }));
  if (!answer.undone) throw new Error("There is nothing to undo.");
  const { clip, frame, track } = answer.undone;
  await openClip(clip, (all) => all.findIndex((shot) => shot.frame === frame && shot.track === track));
}

function take(answer) {
  state.marks = answer.marks;
  state.clips = answer.clips;
  return answer;
}

// Whether a clip has faces without a label; what an earlier server had cut, this one has to be asked for.
async function isOpen(clip) {
  const done = state.clips[clip] || 0;
  if (state.shots[clip] !== null || !done) return done < (state.shots[clip] ?? 1);
  return (await fetchClip(clip)).shots.some((shot) => !shot.label);
}

async function finish() {
  state = await ask("state");
  let open = 0;
  while (open < state.videos.length && !(await isOpen(open))) open++;
  const total = Object.entries(NAMES).map(([name, words]) => `${state.marks[name] || 0} ${words}`).join(", ");
  if (open === state.videos.length) notice("All faces are labelled. Thank you.", `${total}\nThey are in ${state.file}; this tab can be closed.`);
  else notice("This was the last clip", `${total}\nSome clips before it have faces without a label.`, "Go to the first of them", () => act(() => openClip(open)));
}

const peek = (on) => $("stage").classList.toggle("peeking", on);
const clipBy = (step) => act(() => (number + step in state.videos ? openClip(number + step) : null));
const KEYS = {
  f: () => act(() => mark("visible")),
  d: () => act(() => mark("not_visible")),
  s: () => act(() => mark("skip")),
  z: () => act(undo),
  a: () => act(() => show(index - 1)),
  g: () => act(() => show(index + 1)),
  q: () => clipBy(-1),
  e: () => clipBy(1),
};
Object.assign(KEYS, { Backspace: KEYS.z, ArrowLeft: KEYS.a, ArrowRight: KEYS.g, ArrowUp: KEYS.q, ArrowDown: KEYS.e });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "w") peek(true);
  if (!(key in KEYS)) return;
  event.preventDefault();
  // A key that is held moves along, but labels one face only.
  if (!event.repeat || key === "a" || key === "g" || key.startsWith("Arrow")) KEYS[key]();
});
document.addEventListener("keyup", (event) => event.key.toLowerCase() === "w" && peek(false));
window.addEventListener("blur", () => peek(false));

$("clip").onchange = (event) => {
  const to = event.target.selectedIndex;
  event.target.blur();
  act(() => openClip(to));
};
document.querySelectorAll("[data-label]").forEach((button) => (button.onclick = () => act(() => mark(button.dataset.label))));
Object.entries({ back: "a", on: "g", undo: "z", "clip-back": "q", "clip-on": "e" }).forEach(([id, key]) => ($(id).onclick = KEYS[key]));
$("peek").onpointerdown = () => peek(true);
["pointerup", "pointercancel", "pointerleave"].forEach((name) => $("peek").addEventListener(name, () => peek(false)));

async function start() {
  state = await ask("state");
  drawClip();
  const [, clip, shot] = /^#(\d+)\.(\d+)$/.exec(location.hash) || [];
  if (clip && clip - 1 in state.videos) return openClip(clip - 1, (all) => (shot - 1 in all ? shot - 1 : -1));
  await openClip(state.start);
  while (shots.every((one) => one.label) && number + 1 < state.videos.length) await openClip(number + 1);
}

busy = false;
act(start);
