"use strict";

const at = (id) => document.getElementById(id);
let about = { models: [], most_bytes: 0 };
let file = null;
let word = null; // place of the word's first letter; null lets the program choose
let running = null;

/** An element with a text or children. Texts stay texts, whatever a report or a name holds. */
function make(tag, content = "", options = {}) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...[content].flat());
  return element;
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

async function ask() {
  if (running) running.abort();
  fail("");
  if (!file) {
    at("state").textContent = "Choose a radiograph first.";
    return;
  }
  if (file.size > about.most_bytes) {
    fail(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MiB. The limit is ${about.most_bytes / 2 ** 20} MiB.`);
    return;
  }
  const mine = (running = new AbortController());
  at("state").textContent = "Asking ...";
  at("models").classList.add("busy");
  try {
    const line = JSON.stringify({ phrase: at("phrase").value, word });
    const reply = await fetch("ask", { method: "POST", body: new Blob([line, "\n", file]), signal: mine.signal });
    const said = await reply.json();
    if (!reply.ok) throw new Error(said.error);
    show(said);
    at("state").textContent = `Answered in ${said.seconds.toFixed(2)} s.`;
  } catch (error) {
    if (mine.signal.aborted) return;
    at("state").textContent = "";
    const gone = error instanceof TypeError;
    fail(gone ? "The program does not answer, or the file cannot be read. Is it still running?" : `${file.name}: ${error.message}`);
    blank();
  }
  at("models").classList.remove("busy");
}

function show(said) {
  at("models").replaceChildren(...said.models.map((model) => section(model, said.bar)));
  const drawn = said.models.find((model) => model.words);
  const chips = drawn ? drawn.words.map(([start, text]) => chip(start, text, drawn.word)) : [];
  at("chips").replaceChildren(...(chips.length ? [make("span", "map of"), ...chips] : []));
}

function chip(start, text, chosen) {
  const button = make("button", text, { type: "button" });
  button.setAttribute("aria-pressed", start === chosen);
  button.addEventListener("click", () => {
    word = start;
    ask();
  });
  return button;
}

function section(model, bar) {
  const parts = [make("h2", model.name), picture(model, bar)];
  if (model.seen) {
    const { word, entropy, peak, weight, regions } = model.seen;
    const share = weight === null ? "" : `weight ${(100 * weight).toFixed(1)} %, `;
    const text = `“${word}”: ${share}entropy ${entropy.toFixed(2)}, peak ${peak.toFixed(1)}x, ${regions[0]} x ${regions[1]} regions`;
    parts.push(make("p", text, { className: "note" }));
  }
  else if (!model.without) parts.push(make("p", "Write a phrase, and its words have maps.", { className: "note" }));
  if (model.without) parts.push(make("p", model.without, { className: "note" }));
  for (const note of model.notes) parts.push(make("p", `The file: ${note}.`, { className: "note" }));
  if (model.score !== null) {
    const local = model.local === null ? "" : `, its local part ${model.local.toFixed(3)}`;
    parts.push(make("p", `Score of the phrase ${model.score.toFixed(3)}${local}`));
  }
  const known = about.models.find((one) => one.name === model.name);
  parts.push(make("h3", "Findings"));
  if (model.zero_shot) parts.push(shares(model.zero_shot), make("p", model.how, { className: "note" }));
  else parts.push(make("p", "The run names no prompt set. Start the program with --prompts SET.", { className: "note" }));
  if (model.nearest) {
    parts.push(make("h3", `Nearest of ${known.reports} reports`));
    parts.push(make("ol", model.nearest.map(([text, score]) => make("li", [text, " ", make("span", digits(score))]))));
  }
  return make("section", parts);
}

function picture(model, bar) {
  const frame = make("div", make("img", "", { src: model.picture, alt: "the radiograph" }), { className: "picture" });
  frame.style.setProperty("--shape", model.shape[1] / model.shape[0]);
  const whole = make("figure", frame, { className: "seen" });
  if (model.map) {
    frame.append(make("img", "", { src: model.map, className: "drawn", alt: `where ${model.name} sees “${model.seen.word}”` }));
    whole.append(scale(bar));
  } else whole.append(make("div", "", { className: "bar" })); // pictures of two models have one size
  if (at("sides").checked) frame.append(make("b", "R", { className: "right" }), make("b", "L", { className: "left" }));
  return whole;
}

function scale(bar) {
  const marks = bar.marks.map(([place, text]) => {
    const mark = make("span", text);
    mark.style.bottom = `${100 * place}%`;
    return mark;
  });
  const strip = make("div", [make("img", "", { src: bar.picture, alt: "colour bar" }), ...marks]);
  return make("div", [make("p", "attention, times the mean region"), strip], { className: "bar" });
}

// What is no number comes as null.
function digits(value) {
  return value === null ? "not a number" : value.toFixed(3);
}

function shares(rows) {
  const lines = rows.map(([name, value]) => {
    const length = make("i");
    length.style.width = `${100 * value}%`;
    return make("tr", [make("td", name), make("td", digits(value)), make("td", length)]);
  });
  return make("table", make("tbody", lines), { className: "shares" });
}

/** The names of the models, before anything is asked. */
function blank() {
  const lines = about.models.map((model) => {
    const asked = model.prompts ? `findings of the prompt set ${model.prompts}` : "no findings: start with --prompts SET";
    const found = model.reports ? `${model.reports} reports` : "no reports: start with --reports FILE";
    const text = `${model.head}, ${model.maps ? "with" : "without"} maps, ${asked}, ${found}`;
    return make("section", [make("h2", model.name), make("p", text, { className: "note" })]);
  });
  at("models").replaceChildren(...lines);
  at("chips").replaceChildren();
}

function take(files) {
  if (!files.length) return;
  file = files[0];
  at("name").textContent = file.name;
  ask();
}

at("file").addEventListener("change", () => take(at("file").files));
at("phrase").addEventListener("input", () => (word = null));
at("phrase").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  ask();
});
at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("map").addEventListener("change", () => at("models").classList.toggle("hidden", !at("map").checked));
at("sides").addEventListener("change", () => {
  for (const mark of document.querySelectorAll(".picture b")) mark.remove();
  if (!at("sides").checked) return;
  for (const frame of document.querySelectorAll(".picture"))
    frame.append(make("b", "R", { className: "right" }), make("b", "L", { className: "left" }));
});
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });

fetch("about")
  .then((reply) => reply.json())
  .then((said) => {
    about = said;
    blank();
  })
  .catch(() => fail("The program does not answer. Is it still running?"));
