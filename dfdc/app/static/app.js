"use strict";
// Hands clips in, follows the queue, and shows the report. Names go through textContent, never through HTML.
const $ = (id) => document.getElementById(id);
const uploads = new Map();
let known = "";

function make(tag, attributes = {}, text = null) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}
const percent = (p) => p < 0.095 ? `${(100 * p).toFixed(1)} %` : `${Math.round(100 * p)} %`;
const say = (text) => { $("message").textContent = text; };

function handIn(file) {
  const request = new XMLHttpRequest(), id = Symbol(file.name);
  uploads.set(id, { name: file.name, share: 0 });
  request.open("POST", `clips?name=${encodeURIComponent(file.name)}`);
  request.upload.addEventListener("progress", (event) => {
    if (event.lengthComputable) uploads.set(id, { name: file.name, share: event.loaded / event.total });
    draw(state);
  });
  request.addEventListener("loadend", () => {
    uploads.delete(id);
    if (request.status !== 202) {
      let reason = "the connection was lost";
      try { reason = JSON.parse(request.responseText).error || reason; } catch { /* no JSON */ }
      say(`${file.name}: ${reason}`);
    }
    refresh();
  });
  request.send(file);
}
function handInAll(files) {
  say("");
  for (const file of files) if (!file.name.startsWith(".")) handIn(file);
}

let state = { jobs: [], clips: [] };
function draw(now) {
  const waiting = now.jobs.filter((job) => job.stage === "waiting").length;
  const busy = now.jobs.filter((job) => job.stage === "analyzing");
  const parts = [];
  if (uploads.size) parts.push(`${uploads.size} uploading`);
  if (waiting) parts.push(`${waiting} waiting`);
  if (busy.length) parts.push(`analyzing ${busy[0].filename}`);
  $("progress").textContent = parts.join(", ") || (now.clips.length ? "All clips are analyzed." : "No clip yet.");
  const done = new Set(now.clips.map((clip) => clip.filename)), rows = [];
  for (const { name, share } of uploads.values()) rows.push(row(name, `uploading, ${percent(share)}`));
  for (const job of now.jobs) {
    if (job.stage === "waiting") rows.push(row(job.filename, "waiting"));
    else if (job.stage === "analyzing") rows.push(row(job.filename, `reading frames, finding faces and scoring, ${Math.max(0, Math.round(Date.now() / 1000 - job.since))} s`));
    else if (job.stage === "failed" && !done.has(job.filename)) rows.push(row(job.filename, `failed: ${job.reason}`));
  }
  for (const clip of [...now.clips].sort((a, b) => b.probability - a.probability)) {
    const line = row(clip.filename, clip.scored ? percent(clip.probability) : clip.status);
    const open = make("button", { type: "button", "aria-label": `Show the report of ${clip.filename}` }, "Report");
    open.addEventListener("click", () => show(clip.filename));
    const drop = make("button", { type: "button", "aria-label": `Delete the analysis of ${clip.filename}` }, "Delete");
    drop.addEventListener("click", () => remove(clip.filename));
    line.append(open, drop);
    rows.push(line);
  }
  const key = JSON.stringify(rows.map((line) => line.textContent));
  if (key !== known) { known = key; $("clips").replaceChildren(...rows); }
  $("all").hidden = now.clips.length < 2;
}
function row(name, text) {
  const line = make("li");
  line.append(make("span", { class: "name" }, name), make("span", {}, text));
  return line;
}
function show(name) {
  $("frame").src = name === null ? "report" : `report?name=${encodeURIComponent(name)}`;
  $("report").hidden = false;
  $("report-heading").textContent = name === null ? "Report of all clips" : `Report of ${name}`;
  $("report-heading").focus();
}
async function remove(name) {
  const answer = await fetch(`clips?name=${encodeURIComponent(name)}`, { method: "DELETE" });
  if (!answer.ok) say((await answer.json()).error);
  $("report").hidden = true;
  refresh();
}
async function refresh() {
  try {
    const answer = await fetch("state");
    if (answer.ok) { state = await answer.json(); draw(state); }
  } catch { say("The app does not answer; start `dfdc app` again and open the address that it prints."); }
}
for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => { handInAll(event.target.files); event.target.value = ""; });
$("all").addEventListener("click", () => show(null));
const zone = document.body;
zone.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
zone.addEventListener("dragleave", () => $("drop").classList.remove("over"));
zone.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); handInAll(event.dataTransfer.files); });
refresh();
setInterval(refresh, 1000);
