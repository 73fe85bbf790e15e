"use strict";
// Hands clips in, follows the queue, and shows the report. Names go through textContent, never through HTML.
const $ = (id) => document.getElementById(id);
const STEPS = { loading: "loading the models", reading: "reading frames", detecting: "finding faces", scoring: "scoring",
  writing: "writing the report" };
const STAGES = Object.keys(STEPS), BUSY_MS = 250, IDLE_MS = 1500, RETRY_MS = 1000, NAMED = 5;
const pending = [];  // files that wait to be uploaded
let uploading = null, shown, state = { jobs: [], clips: [], suffixes: [], max_bytes: Infinity };

function make(tag, attributes = {}, text = null) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}
function button(text, label, action) {
  const element = make("button", { type: "button", "aria-label": label }, text);
  element.addEventListener("click", action);
  return element;
}
// A text that is written again would be read out again.
const write = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const percent = (p) => p < 0.095 ? `${(100 * p).toFixed(1)} %` : `${Math.round(100 * p)} %`;
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const say = (text) => $("message").append(make("p", {}, text));
const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));

// Handing in ---------------------------------------------------------------------------------------------------------
function send(file) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", `clips?name=${encodeURIComponent(file.name)}`);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) uploading.share = event.loaded / event.total;
      draw();
    });
    request.addEventListener("loadend", () => {
      let reason = "the connection was lost";
      try { reason = JSON.parse(request.responseText).error || reason; } catch { /* no JSON */ }
      resolve({ status: request.status, reason });
    });
    request.send(file);
  });
}
// One file is uploaded at a time; where the queue is full, the next one waits here.
async function uploadAll() {
  if (uploading) return;
  while (pending.length) {
    const [file] = pending;
    uploading = { filename: file.name, share: 0 };
    const large = file.size > state.max_bytes;
    const answer = large ? { status: 413, reason: `larger than ${state.max_bytes / 2 ** 30} GB; cut the clip` } : await send(file);
    if (answer.status === 429) { await pause(RETRY_MS); continue; }
    pending.shift();
    if (answer.status !== 202) say(`${file.name}: ${answer.reason}`);
    await refresh();
  }
  uploading = null;
  draw();
}
// A file that was chosen itself may have any name; of a folder's files, those with the suffix of a clip are taken.
function handIn(files, fromFolder) {
  const chosen = [], left = [];
  for (const [file, listed] of [...files.map((each) => [each, false]), ...fromFolder.map((each) => [each, true])]) {
    const dot = file.name.lastIndexOf("."), suffix = dot < 0 ? "" : file.name.slice(dot).toLowerCase();
    (listed && !state.suffixes.includes(suffix) ? left : chosen).push(file);
  }
  $("message").replaceChildren();
  if (left.length) {
    const names = left.slice(0, NAMED).map((file) => file.name).join(", ") + (left.length > NAMED ? ", …" : "");
    say(`Left out, because their names are not those of videos or photographs: ${names}`);
  } else if (!chosen.length) say("There is no file in this folder.");
  pending.push(...chosen);
  uploadAll();
}
async function listFiles(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const each of some) found.push(...await listFiles(each));
  }
}
async function drop(data) {
  // Entries must be taken before the first pause, after which the browser empties the list.
  const entries = [...data.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.length) return handIn([...data.files], []);
  const files = [], listed = [];
  try {
    for (const entry of entries) (entry.isFile ? files : listed).push(...await listFiles(entry));
  } catch (error) { say(`What was dropped cannot be read: ${error.message}`); }
  return handIn(files, listed);
}

// Showing ------------------------------------------------------------------------------------------------------------
// Rows are kept and changed in place, so that a click or the focus on one of their buttons is not lost.
function fill(list, items, build, update) {
  const before = list.built || new Map();
  list.built = new Map(items.map((item) => [item.filename, before.get(item.filename) || build(item)]));
  for (const item of items) update(list.built.get(item.filename), item);
  const rows = [...list.built.values()], focused = document.activeElement;
  if (rows.length === list.children.length && rows.every((row, i) => row === list.children[i])) return;
  list.replaceChildren(...rows);
  if (focused !== document.activeElement && list.contains(focused)) focused.focus();
}
function describe(job) {
  if (job.stage === "uploading") return { text: `uploading, ${percent(job.share)}`, done: job.share, all: 1 };
  if (job.stage === "waiting") return { text: `queued, number ${job.place}` };
  if (job.stage === "failed") return { text: `failed: ${job.reason}` };
  const step = STAGES.indexOf(job.stage), counted = job.stage === "reading" && job.n_all > 0;
  const count = counted ? `, ${job.n_done} of ${job.n_all}` : "";
  return { text: `step ${step + 1} of ${STAGES.length}: ${STEPS[job.stage]}${count} (${job.seconds} s)`,
    done: step + (counted ? job.n_done / job.n_all : 0), all: STAGES.length };
}
function withButtons(row, name, ...buttons) {
  const doing = make("span", { class: "doing" });
  doing.append(...buttons);
  row.append(make("span", {}, name), row.said, doing);
  return row;
}
function buildJob(job) {
  const row = make("li");
  row.said = make("span");
  row.bar = make("progress", { "aria-label": `Progress of ${job.filename}` });
  row.remove = button("Remove", `Remove ${job.filename} from the queue`, () => erase(job.filename));
  return withButtons(row, job.filename, row.bar, row.remove);
}
function updateJob(row, job) {
  const { text, done, all } = describe(job);
  write(row.said, text);
  row.bar.hidden = all === undefined;
  if (all !== undefined) Object.assign(row.bar, { max: all, value: done });
  row.remove.hidden = job.stage !== "waiting" && job.stage !== "failed";
}
function buildClip({ filename }) {
  const row = make("li");
  row.said = make("span");
  return withButtons(row, filename, button("Report", `Show the report of ${filename}`, () => show(filename)),
    button("Delete", `Delete the analysis of ${filename}`, () => erase(filename)));
}
function updateClip(row, clip) {
  const scored = clip.probability !== null, doubt = clip.reason ? `; ${clip.reason}` : "";
  write(row.said, scored ? `${percent(clip.probability)}: ${clip.finding}${doubt}` : `no score: ${clip.reason || clip.status}`);
  row.said.className = clip.tone;
}
function draw() {
  const jobs = [...state.jobs.filter((job) => job.stage !== "waiting"),
    ...state.jobs.filter((job) => job.stage === "waiting").map((job, i) => ({ ...job, place: i + 1 }))];
  const known = new Set(state.clips.map((clip) => clip.filename));
  const rows = jobs.filter((job) => job.stage !== "failed" || !known.has(job.filename));
  // A clip's name may change when it is stored, so its upload has a row of its own.
  fill($("queue"), rows, buildJob, updateJob);
  $("upload").hidden = !uploading;
  fill($("upload"), uploading ? [{ ...uploading, stage: "uploading" }] : [], buildJob, updateJob);
  fill($("clips"), [...state.clips].sort((a, b) => (b.probability ?? -1) - (a.probability ?? -1)), buildClip, updateClip);
  const waiting = jobs.filter((job) => job.stage === "waiting").length, busy = jobs.find((job) => job.stage in STEPS);
  const parts = [];
  if (busy) parts.push(`${busy.filename}: ${STEPS[busy.stage]}`);
  if (waiting) parts.push(`${plural(waiting, "clip")} queued`);
  if (pending.length > 1) parts.push(`${plural(pending.length - 1, "file")} to upload; keep this page open`);
  write($("progress"), parts.join("; ") || (uploading ? "Uploading." : state.clips.length ? "All clips are analyzed." : "No clip yet."));
  $("work").hidden = !rows.length && !uploading;
  $("results").hidden = !state.clips.length;
  $("all").hidden = state.clips.length < 2;
}
function show(name) {
  shown = name;
  const address = name === null ? "report" : `report?name=${encodeURIComponent(name)}`;
  $("frame").src = address;
  $("save").href = address;
  $("save").download = `${name ?? "all clips"}.report.html`;
  $("report").hidden = false;
  $("report-heading").textContent = name === null ? "Report of all clips" : `Report of ${name}`;
  $("report-heading").focus();
}
async function erase(name) {
  const answer = await fetch(`clips?name=${encodeURIComponent(name)}`, { method: "DELETE" });
  if (!answer.ok) say((await answer.json()).error);
  if (shown === name || shown === null) { $("report").hidden = true; shown = undefined; }
  await refresh();
  if (!$("results").hidden) $("clips-heading").focus();
}
// The report is as tall as its content, so that there is one place to scroll only.
function fit() {
  const page = $("frame").contentDocument;
  if (!page || !page.body) return;
  new ResizeObserver(() => { $("frame").style.height = `${page.documentElement.offsetHeight + 4}px`; }).observe(page.documentElement);
}

let lost = false;
async function refresh() {
  try {
    const answer = await fetch("state");
    if (answer.ok) { state = await answer.json(); draw(); }
    if (lost) { $("message").replaceChildren(); lost = false; }
  } catch {
    if (!lost) say("The app does not answer; start `dfdc app` again and open the address that it prints.");
    lost = true;
  }
}
async function follow() {
  for (;;) {
    await refresh();
    await pause(state.jobs.some((job) => job.stage !== "failed") ? BUSY_MS : IDLE_MS);
  }
}
$("files").addEventListener("change", (event) => { handIn([...event.target.files], []); event.target.value = ""; });
$("folder").addEventListener("change", (event) => { handIn([], [...event.target.files]); event.target.value = ""; });
$("all").addEventListener("click", () => show(null));
$("frame").addEventListener("load", fit);
const zone = document.body;
zone.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
zone.addEventListener("dragleave", () => $("drop").classList.remove("over"));
zone.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); drop(event.dataTransfer); });
follow();
