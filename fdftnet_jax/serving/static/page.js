"use strict";
// Sends files to be judged, a few at a time, and shows a card for each as soon as it is.

const settings = JSON.parse(document.body.dataset.settings);
const find = (id) => document.getElementById(id);
// What is judged: {file, rows, order, url, card}.
const judged = [];
const waiting = { picture: [], video: [] };
// Requests at a time: the server judges one video after another.
const lanes = { picture: 4, video: 1 };
const inWork = { picture: 0, video: 0 };
let total = 0;
let done = 0;
let skipped = {};
let cancelling = new AbortController();
// The video that is being read: {name, frame, total, since: {frame, time}}.
let reading = null;

// ---- What is sent.

function add(files) {
  if (!files.length) return;
  if (done === total) [total, done] = [0, 0];
  for (const file of files) {
    const kind = file.type.startsWith("video/") ? "video" : "picture";
    waiting[kind].push(file);
    total += 1;
  }
  say("");
  proceed();
}

function proceed() {
  for (const kind of Object.keys(lanes)) {
    while (inWork[kind] < lanes[kind] && waiting[kind].length) {
      inWork[kind] += 1;
      judge(waiting[kind].shift(), cancelling.signal).finally(() => {
        inWork[kind] -= 1;
        proceed();
      });
    }
  }
  showProgress();
}

async function judge(file, signal) {
  let rows;
  const ticket = randomName();
  const followed = setInterval(() => follow(file, ticket, signal), 1000);
  try {
    const answer = await ask(`v1/predict?ticket=${ticket}`, { files: file }, signal);
    // (Forms change some characters of names.)
    rows = answer.results.map((row) => ({ ...row, path: pathOf(file) }));
    for (const [name, count] of Object.entries(answer.summary.skipped)) {
      skipped[name] = (skipped[name] || 0) + count;
    }
  } catch (error) {
    if (signal.aborted) return;
    rows = [notJudged(file, error.message)];
  } finally {
    clearInterval(followed);
    if (reading && reading.ticket === ticket) reading = null;
  }
  if (signal.aborted) return;
  done += 1;
  const entry = { file, rows, ticket, order: judged.length };
  judged.push(entry);
  show(entry);
  arrange();
  say(`${file.name}: ${words(rows[0])}. ${done} of ${total} judged.`);
}

async function ask(address, fields, signal) {
  return (await send(address, fields, signal)).json();
}

async function send(address, fields, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const file = fields.files || fields.file;
  if (file.size > settings.largest) throw new Error("the file is too large");
  for (;;) {
    let answer;
    try {
      answer = await fetch(address, { method: "POST", body: form, signal });
    } catch (error) {
      if (signal && signal.aborted) throw error;
      throw new Error("the server does not answer, or the file has been moved or changed");
    }
    if (answer.status === 503) {
      const seconds = Number(answer.headers.get("Retry-After")) || 5;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      if (signal && signal.aborted) throw new Error("cancelled");
      continue;
    }
    if (answer.ok) return answer;
    const found = await answer.json().catch(() => ({}));
    throw new Error(found.error || `the server answered ${answer.status}`);
  }
}

// By which the server knows what is asked about.
function randomName() {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((number) => number.toString(36)).join("");
}

async function follow(file, ticket, signal) {
  try {
    const answer = await fetch(`v1/progress?ticket=${ticket}`, { signal });
    const { frame, total } = await answer.json();
    // (Of pictures there are no frames; and it may have ended meanwhile.)
    if (!frame || signal.aborted || judged.some((entry) => entry.ticket === ticket)) return;
    const since = reading && reading.ticket === ticket ? reading.since : { frame, time: Date.now() };
    reading = { name: file.name, ticket, frame, total, since };
    showProgress();
  } catch {
    // The request itself says what is wrong.
  }
}

function notJudged(file, reason) {
  const row = Object.fromEntries(settings.columns.map((name) => [name, null]));
  return { ...row, path: pathOf(file), kind: "", verdict: "undecided", reason, notes: "" };
}

function cancel() {
  cancelling.abort();
  cancelling = new AbortController();
  const left = total - done;
  waiting.picture.length = waiting.video.length = 0;
  total = done;
  showProgress();
  say(`Cancelled: ${left} not judged.`);
  find("files").focus();
}

// ---- What is shown.

const VERDICTS = { fake: "Fake", real: "Real", undecided: "Undecided" };

function words(row) {
  const verdict = VERDICTS[row.verdict];
  return row.reason ? `${verdict}: ${row.reason}` : verdict;
}

function ofHundred(share) {
  const count = Math.round(100 * share);
  if (share < 0.01) return "fewer than 1";
  return share > 0.99 ? "more than 99" : `about ${count}`;
}

function sentence(row) {
  if (row.score === null) return "";
  if (row.probability === null) {
    return `Score ${row.score.toFixed(2)}, from 0 for real to 1 for fake. This detector is not calibrated, so that is no probability.`;
  }
  const what = row.kind === "video" ? "videos" : "pictures";
  const prior = Number((100 * settings.prior).toPrecision(3));
  const counted = `Of 100 such ${what}, ${ofHundred(row.probability)} are fake, if ${prior} of 100 are to begin with.`;
  // Where a threshold is not in the middle, the verdict may look wrong.
  const calledFake = row.probability >= 0.5;
  if (row.reason || calledFake === (row.verdict === "fake")) return counted;
  return `${counted} This detector says fake from ${Math.round(100 * settings.header.threshold.value)} on.`;
}

function faceInWords(row) {
  const value = row.probability === null ? `score ${row.score.toFixed(2)}` : `${ofHundred(row.probability)} of 100 fake`;
  const what = row.kind === "video" ? "Person" : "Face";
  const notes = row.notes ? `; ${row.notes}` : "";
  const verdict = row.reason || row.verdict;
  return `${what} ${row.face + 1}: ${verdict}, ${value}${notes}`;
}

function show(entry) {
  const { rows, file } = entry;
  const [whole, ...faces] = rows;
  const card = find("card").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(name);
  entry.card = card;
  card.classList.add(whole.verdict);
  part("h3").textContent = file.name;
  part(".verdict").textContent = VERDICTS[whole.verdict];
  part(".reason").textContent = whole.reason;
  part(".sentence").textContent = sentence(whole);
  for (const face of faces) {
    const line = document.createElement("li");
    line.textContent = faceInWords(face);
    part(".faces").append(line);
  }
  const notes = whole.notes ? [whole.notes] : [];
  if (whole.frames !== null) notes.unshift(`judged by ${whole.frames} frames`);
  if (settings.header.detector.toy && whole.score !== null) notes.push("by the toy detector: says nothing of photographs");
  part(".notes-of").textContent = notes.join("; ");
  showPicture(entry, part(".frame"), faces.length ? faces : [whole]);
  const closer = part(".closer");
  closer.addEventListener("toggle", () => {
    card.classList.toggle("open", closer.open);
    if (closer.open && !closer.dataset.asked) look(entry, closer);
  });
  if (settings.corrections && whole.score !== null) offerCorrection(entry, part(".wrong"));
  find("cards").append(card);
}

function showPicture(entry, frame, faces) {
  const { file, rows } = entry;
  const isVideo = rows[0].kind === "video" || file.type.startsWith("video/");
  const picture = document.createElement(isVideo ? "video" : "img");
  entry.url = URL.createObjectURL(file);
  picture.src = entry.url;
  picture.addEventListener("error", () => {
    // Browsers do not know every format that is judged.
    frame.replaceChildren("no preview");
  });
  if (isVideo) {
    frame.style.width = "100%";
    picture.controls = true;
    picture.muted = true;
    picture.preload = "metadata";
    picture.setAttribute("aria-label", file.name);
  } else {
    picture.alt = "";
    picture.addEventListener("load", () => {
      const { naturalWidth: width, naturalHeight: height } = picture;
      // As large as the stage allows.
      frame.style.width = `min(100%, ${(14 * width) / height}rem)`;
      for (const face of faces) if (face.x !== null) frame.append(box(face, width, height, faces.length > 1));
    });
  }
  frame.append(picture);
}

function box(face, width, height, several) {
  const shape = document.createElement("div");
  shape.className = `face ${face.verdict}`;
  shape.style.left = `${(100 * face.x) / width}%`;
  shape.style.top = `${(100 * face.y) / height}%`;
  shape.style.width = `${(100 * face.width) / width}%`;
  shape.style.height = `${(100 * face.height) / height}%`;
  // The list of faces says the same.
  shape.setAttribute("aria-hidden", "true");
  if (several) {
    const label = document.createElement("span");
    label.textContent = `${face.face + 1} ${face.verdict}`;
    shape.append(label);
  }
  return shape;
}

// ---- What is seen closer.

async function look(entry, closer) {
  const inside = closer.querySelector(".inside");
  closer.dataset.asked = "yes";
  inside.replaceChildren(make("p", { className: "small", textContent: "Looking closer: this takes a moment." }));
  try {
    const found = await ask("v1/explain", { file: entry.file });
    inside.replaceChildren(...closerParts(entry, found));
    say(`${entry.file.name} is shown closer.`);
  } catch (error) {
    const text = make("p", { textContent: `It cannot be shown closer: ${error.message}.` });
    inside.replaceChildren(text, button("Try again", () => look(entry, closer)));
  }
}

function* closerParts(entry, found) {
  const [whole, ...several] = entry.rows;
  if (found.faces.length) yield* seenFaces(found, several);
  if (found.timeline) yield* timeline(entry, found);
  const facts = make("dl", {});
  for (const [name, value] of [...Object.entries(found.facts), ["SHA-256", found.sha256]]) {
    facts.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
  }
  yield make("h4", { textContent: "The file" });
  yield facts;
  yield make("h4", { textContent: "What this does not mean" });
  yield make("p", { textContent: `${VERDICTS[whole.verdict]} ${settings.notMeant[whole.verdict]}` });
  const saving = button("Save a report to print", () => saveReport(entry));
  yield make("p", { className: "buttons" }, saving);
}

function* seenFaces({ faces, note }, rows) {
  yield make("h4", { textContent: "As the network saw it" });
  const layers = [];
  for (const [number, face] of faces.entries()) {
    const what = rows.length ? `Face ${number + 1}` : "The picture or face";
    const seen = make("div", { className: "seen" });
    const own = make("figure", {}, picture(face.view, `${what} as the network saw it`));
    const said = [rows.length ? `Face ${number + 1}: ${rows[number].verdict}` : "as it was scored", face.note];
    own.append(make("figcaption", { textContent: said.filter(Boolean).join("; ") }));
    seen.append(own);
    for (const map of face.maps) {
      const heat = picture(map.picture, `${map.title} of ${what.toLowerCase()}`);
      heat.className = "heat";
      layers.push(heat);
      const both = make("div", { className: "layers" }, picture(face.view, ""), heat);
      const title = make("figcaption", {}, map.title, make("br", {}), map.below);
      seen.append(make("figure", {}, both, title));
    }
    yield seen;
  }
  if (note) yield make("p", { className: "small", textContent: `${note}.` });
  if (!layers.length) return;
  const strength = make("input", { type: "range", min: 0, max: 100, value: settings.share });
  const apply = () => layers.forEach((layer) => (layer.style.opacity = strength.value / 100));
  strength.addEventListener("input", apply);
  apply();
  yield make("label", { className: "strength" }, "Strength of the maps", strength);
  yield make("p", { className: "small", textContent: settings.maps });
}

function* timeline(entry, { timeline: source, moments }) {
  yield make("h4", { textContent: "Frame by frame" });
  const image = picture(source, "How fake each frame looks, against time");
  image.className = "timeline";
  yield image;
  const video = entry.card.querySelector("video");
  if (!video) return;
  const several = moments.length > 1;
  const jumps = moments.map(({ face, seconds }) => {
    const whose = several ? ` of person ${face + 1}` : "";
    return button(`Show the most fake frame${whose}, at ${seconds.toFixed(1)} s`, () => {
      video.pause();
      video.currentTime = seconds;
      video.scrollIntoView({ block: "nearest" });
    });
  });
  yield make("p", { className: "buttons" }, ...jumps);
}

function picture(source, alt) {
  return make("img", { src: source, alt });
}

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function saveReport(entry) {
  const { file } = entry;
  say(`The report of ${file.name} is being made.`);
  try {
    const answer = await send("v1/report", { file });
    save(await answer.text(), `${file.name.replace(/\.[^.]*$/, "")}-report.html`, "text/html");
  } catch (error) {
    say(`The report of ${file.name} could not be made: ${error.message}.`);
  }
}

function arrange() {
  const shown = document.querySelector("input[name=show]:checked").value;
  const by = find("sort").value;
  const fakeness = ({ rows: [row] }) => row.probability ?? row.score;
  const compare = {
    added: (a, b) => a.order - b.order,
    name: (a, b) => a.file.name.localeCompare(b.file.name, "en", { numeric: true }),
    fake: (a, b) => (fakeness(b) ?? -1) - (fakeness(a) ?? -1),
    real: (a, b) => (fakeness(a) ?? 2) - (fakeness(b) ?? 2),
  }[by];
  const active = document.activeElement;
  const sorted = [...judged].sort((a, b) => compare(a, b) || a.order - b.order);
  sorted.forEach(({ card, rows }, index) => {
    card.hidden = shown !== "" && rows[0].verdict !== shown;
    const place = find("cards").children[index];
    // (What is moved loses the keyboard.)
    if (place !== card) find("cards").insertBefore(card, place);
  });
  if (document.activeElement !== active) active.focus();
  for (const count of document.querySelectorAll("[data-count]")) {
    const verdict = count.dataset.count;
    count.textContent = judged.filter(({ rows }) => !verdict || rows[0].verdict === verdict).length;
  }
  find("results").hidden = !judged.length;
}

function showProgress() {
  find("work").hidden = done === total;
  find("progress").max = total || 1;
  find("progress").value = done + (reading && reading.total ? Math.min(1, reading.frame / reading.total) : 0);
  find("working").textContent = `Judging: ${done} of ${total}${reading ? `; ${frames(reading)}` : ""}`;
}

function frames({ name, frame, total, since }) {
  const count = (number) => number.toLocaleString("en");
  if (!total) return `${name}, frame ${count(frame)}`;
  const of = `${name}, frame ${count(frame)} of about ${count(total)}`;
  if (frame <= since.frame || frame >= total) return of;
  const seconds = ((total - frame) * (Date.now() - since.time)) / (frame - since.frame) / 1000;
  const left = seconds < 90 ? `${10 * Math.ceil(seconds / 10)} seconds` : `${Math.round(seconds / 60)} minutes`;
  return `${of}, about ${left} left`;
}

function say(text) {
  find("status").textContent = text;
}

function clear() {
  for (const { card, url } of judged) {
    card.remove();
    URL.revokeObjectURL(url);
  }
  judged.length = 0;
  skipped = {};
  arrange();
  say("Cleared.");
  find("files").focus();
}

// ---- What is corrected.

function offerCorrection(entry, place) {
  const { verdict } = entry.rows[0];
  const offers = {
    fake: { real: "This is wrong: it is real", fake: "This is right" },
    real: { fake: "This is wrong: it is fake", real: "This is right" },
    undecided: { real: "It is real", fake: "It is fake" },
  }[verdict];
  const buttons = Object.entries(offers).map(([label, text]) => button(text, () => correct(entry, place, label)));
  place.replaceChildren(...buttons);
}

function button(text, action) {
  const made = make("button", { type: "button", textContent: text });
  made.addEventListener("click", action);
  return made;
}

function showKept({ real, fake }) {
  find("kept-real").textContent = real;
  find("kept-fake").textContent = fake;
  find("missing").textContent = real ? "fake" : "real";
  find("one-sided").hidden = real > 0 && fake > 0;
  find("teach").hidden = !(real || fake);
}

async function correct(entry, place, label) {
  try {
    const answer = await ask("v1/corrections", { label, file: entry.file });
    showKept(answer.kept);
    if (label) {
      const text = document.createElement("span");
      text.textContent = `Kept as ${label}.`;
      place.replaceChildren(text, button("Undo", () => correct(entry, place, "")));
      say(`${entry.file.name} is kept as ${label}.`);
    } else {
      offerCorrection(entry, place);
      say(`${entry.file.name} is not kept any more.`);
    }
    place.querySelector("button").focus();
  } catch (error) {
    say(`${entry.file.name} could not be kept: ${error.message}.`);
  }
}

// ---- What is saved, as `fdftnet predict` writes it.

// A relative path that looks like a formula or an address begins with "./".
function pathOf(file) {
  return /^([=+\-@]|file:)/.test(file.name) ? `./${file.name}` : file.name;
}

function csvCell(value, name) {
  if (value === null) return "";
  let text = String(value);
  // No spreadsheet is to take text for a formula.
  if (typeof value === "string" && name !== "path" && /^[=+\-@]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv() {
  const lines = allRows().map((row) => settings.columns.map((name) => csvCell(row[name], name)).join(","));
  return [settings.columns.join(","), ...lines, ""].join("\n");
}

function asJson() {
  const first = judged.map(({ rows }) => rows[0]);
  const counts = Object.keys(VERDICTS).map((verdict) => [verdict, first.filter((row) => row.verdict === verdict).length]);
  const summary = {
    inputs: first.length,
    ...Object.fromEntries(counts),
    too_close: first.filter((row) => row.reason === settings.tooClose).length,
    skipped,
    complete: done === total,
  };
  return `${JSON.stringify({ ...settings.header, results: allRows(), summary }, null, 2)}\n`;
}

function allRows() {
  return judged.flatMap(({ rows }) => rows);
}

function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`Saved ${name}.`);
}

// ---- What a person does.

async function filesBelow(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    entries.push(...some);
  }
  const visible = entries.filter(({ name }) => !name.startsWith("."));
  const files = (await Promise.all(visible.map(filesBelow))).flat();
  return files.filter(({ type }) => /^(image|video)\//.test(type));
}

function dropped(event) {
  event.preventDefault();
  find("form").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return add([...event.dataTransfer.files]);
  return Promise.all(entries.map(filesBelow)).then((files) => add(files.flat()));
}

find("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
find("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("form").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("form").classList.remove("over");
});
document.addEventListener("drop", dropped);
document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
find("cancel").addEventListener("click", cancel);
find("clear").addEventListener("click", clear);
find("filter").addEventListener("change", arrange);
find("sort").addEventListener("change", arrange);
find("csv").addEventListener("click", () => save(asCsv(), "results.csv", "text/csv"));
find("json").addEventListener("click", () => save(asJson(), "results.json", "application/json"));
