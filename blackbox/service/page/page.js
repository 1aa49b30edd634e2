"use strict";

// Everything that comes from a model or a text is put in as text, never as markup.

const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const form = byId("form");
const MAX_CLASSES = 12;
const SMALL = 160; // pixels of the longer side of the image that is shown
const MIN_SHOWN = 0.005; // smaller contributions would show as zero
const EXAMPLES = [
  // for a model that holds no text of its training
  { text: "It came two days late and the box was open, but nothing is missing.", text_pair: "All of it arrived." },
  { text: "How do I change the address on my account?", text_pair: "The address is right." },
];
let order = []; // of the classes, where they have one
let examples = EXAMPLES;
let nextExample = 0;

function cell(kind, text, className) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (className) made.className = className;
  if (kind === "th") made.scope = "row";
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function signed(value) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
}

function headers() {
  const token = byId("token").value;
  return token ? { Authorization: "Bearer " + token } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  const data = await answer.json();
  if (answer.status === 401) {
    root.classList.add("has-token");
    byId("token").focus();
    const given = byId("token").value;
    throw new Error(given ? "This token isn't valid" : "Enter the token of this service");
  }
  if (!answer.ok) throw new Error(data.detail || answer.statusText);
  return data;
}

async function showModel() {
  const { models } = await ask("v1/models");
  const chosen = byId("model");
  if (chosen.options.length !== models.length) {
    chosen.replaceChildren(...models.map((name) => new Option(name, name)));
  }
  root.classList.toggle("has-several", models.length > 1);
  const model = await ask("v1/model?name=" + encodeURIComponent(chosen.value || models[0]));
  root.classList.toggle("has-pair", model.takes_pair);
  root.classList.toggle("has-image", model.input_kind === "image");
  byId("text").required = model.input_kind !== "image";
  document.querySelector("h1").textContent = model.input_kind === "image" ? "Classify an image" : "Classify a text";
  byId("report").href = "v1/report?name=" + encodeURIComponent(model.name);
  examples = model.examples.length ? model.examples : EXAMPLES;
  nextExample = 0;
  showRequest(model);
  order = (model.order || []).map(String);
  const n = model.prompts.length;
  byId("about").replaceChildren(
    `${model.name}: `,
    ...classNodes(model),
    `; ${n} prompt${n === 1 ? "" : "s"} to ${model.language_model.model}`,
  );
}

// each name in its own direction, so that none turns the words around it
function isolated(name) {
  const node = document.createElement("bdi");
  node.textContent = name;
  return node;
}

function classNodes(model) {
  const classes = model.order || model.classes;
  const more = classes.length > MAX_CLASSES ? ` and ${classes.length - MAX_CLASSES} more` : "";
  const several = model.several_labels ? ", several of them or none per text" : "";
  const none = model.none_of_these === null ? [] : [", or none of these (", isolated(model.none_of_these), ")"];
  const names = classes.slice(0, MAX_CLASSES).flatMap((name, place) =>
    place ? [model.order ? " < " : ", ", isolated(name)] : [isolated(name)]);
  return [...names, more + several, ...none];
}

function showRequest(model) {
  const texts = { text: "…", pair: { text: "…", text_pair: "…" }, image: { image: "data:image/png;base64,…" } };
  const body = { model: model.name, text: texts[model.input_kind] };
  const token = root.classList.contains("has-token") ? " -H 'Authorization: Bearer TOKEN'" : "";
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  byId("curl").textContent =
    `curl -s ${new URL("v1/predict", location.href)}${token} \\\n  -H 'Content-Type: application/json' -d '${quoted}'`;
}

function severalLabels(prediction) {
  return Array.isArray(prediction.label);
}

function labelText(prediction) {
  if (!severalLabels(prediction)) return String(prediction.label);
  return prediction.label.length ? prediction.label.join(", ") : "no label";
}

function showProbabilities(prediction) {
  const ranked = Object.entries(prediction.probabilities || {}).sort((a, b) => b[1] - a[1]);
  const shown = ranked.slice(0, MAX_CLASSES);
  if (order.length) shown.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  const given = [prediction.label].flat().map(String);
  byId("kind").textContent = severalLabels(prediction) ? "Label" : "Class";
  byId("probabilities").tBodies[0].replaceChildren(
    ...shown.map(([name, probability]) => {
      const meter = document.createElement("meter");
      meter.value = probability;
      meter.setAttribute("aria-label", name);
      const bar = document.createElement("td");
      bar.append(meter);
      const made = row(cell("th", name), cell("td", (100 * probability).toFixed(1) + "%", "number"), bar);
      made.classList.toggle("given", given.includes(name));
      return made;
    }),
  );
  // of two classes, one loses what the other gains; several labels are independent of each other
  return ranked.map(([name]) => name).slice(0, ranked.length === 2 && !severalLabels(prediction) ? 1 : 6);
}

function showPrompts(prompts, experts, names) {
  const table = byId("prompts");
  const head = row(cell("th", "Prompt"), ...names.map((name) => cell("th", name, "number")));
  for (const one of head.cells) one.scope = "col";
  table.tHead.replaceChildren(head);
  const contributions = [
    ...experts.map(({ says, votes }) => [says, votes]),
    ...prompts.map(({ prompt, votes }) => [prompt, votes]),
  ];
  table.tBodies[0].replaceChildren(
    ...contributions.map(([title, byClass]) =>
      row(
        cell("th", title),
        ...names.map((name) => {
          const votes = byClass[name];
          return cell("td", signed(votes), "number " + (votes < 0 ? "against" : "for"));
        }),
      ),
    ),
  );
}

function showNearest(nearest) {
  // of a model that keeps training texts
  byId("nearest").hidden = !nearest.length;
  byId("nearest").tBodies[0].replaceChildren(
    ...nearest.map(({ text, text_pair: pair, label, similarity }) =>
      row(
        cell("th", label),
        cell("td", similarity.toFixed(2), "number"),
        cell("td", pair === null ? text : text + "\n" + pair),
      ),
    ),
  );
}

function showTokens(learners, names, others) {
  // contributions of each token: to its own class, and the opposite, in equal parts, to the others
  const totals = new Map(names.map((name) => [name, new Map()]));
  for (const learner of learners) {
    for (const { class: own, token, adds } of learner.tokens) {
      for (const [name, of] of totals) {
        const added = name === own ? adds : others ? -adds / others : 0;
        of.set(token, (of.get(token) || 0) + added);
      }
    }
  }
  byId("tokens").tBodies[0].replaceChildren(
    ...names.map((name) => {
      const ranked = [...totals.get(name)].sort((a, b) => b[1] - a[1]);
      const words = (some, className) => {
        const made = document.createElement("td");
        made.append(
          ...some.map(([token, added]) => {
            const word = cell("span", token, "token-word " + className);
            word.append(cell("span", " " + signed(added), "quiet-number"));
            return word;
          }),
        );
        return made;
      };
      const positive = ranked.filter(([, added]) => added >= MIN_SHOWN).slice(0, 8);
      const negative = ranked.filter(([, added]) => added <= -MIN_SHOWN).slice(-8).reverse();
      return row(cell("th", name), words(positive, "for"), words(negative, "against"));
    }),
  );
}

function show(prediction) {
  const result = byId("result");
  if (prediction.abstained) {
    result.hidden = true;
    byId("status").textContent = "No answer: " + prediction.reason;
    return;
  }
  byId("label").textContent = labelText(prediction);
  const names = showProbabilities(prediction);
  const { prompts, experts, learners, nearest = [] } = prediction.explanation;
  showPrompts(prompts, experts, names);
  showNearest(nearest);
  showTokens(learners, names, severalLabels(prediction) ? 0 : Object.keys(prediction.probabilities).length - 1);
  result.hidden = false;
  const cut = prediction.truncated ? "; the text was truncated to fit the language model" : "";
  const why = prediction.reason ? ` (none of the classes: ${prediction.reason})` : "";
  byId("status").textContent = `${severalLabels(prediction) ? "Labels" : "Class"}: ${labelText(prediction)}${why}${cut}`;
  result.focus();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  byId("status").textContent = "Waiting for the language model …";
  try {
    const text = { text: byId("text").value };
    if (root.classList.contains("has-pair")) text.text_pair = byId("pair").value;
    if (root.classList.contains("has-image")) text.image = await chosenImage();
    const body = { text, explain: true };
    if (byId("model").value) body.model = byId("model").value;
    const data = await ask("v1/predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    show(data.predictions[0]);
  } catch (error) {
    byId("result").hidden = true;
    byId("status").textContent = error.message;
  } finally {
    button.disabled = false;
  }
});

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The image can't be read"));
    reader.readAsDataURL(file);
  });
}

async function chosenImage() {
  const [file] = byId("image").files;
  if (!file) throw new Error("Choose an image");
  return dataUrl(file);
}

// a small copy, drawn anew: nothing else of the file reaches the page
byId("image").addEventListener("change", async () => {
  const shown = byId("shown");
  const [file] = byId("image").files;
  shown.hidden = true;
  if (!file) return;
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, SMALL / Math.max(picture.width, picture.height));
    shown.width = Math.max(1, Math.round(picture.width * scale));
    shown.height = Math.max(1, Math.round(picture.height * scale));
    shown.getContext("2d").drawImage(picture, 0, 0, shown.width, shown.height);
    shown.hidden = false;
    byId("status").textContent = "";
  } catch {
    byId("status").textContent = "This file is no image that the browser can show";
  }
});

byId("example").addEventListener("click", () => {
  const one = examples[nextExample++ % examples.length];
  byId("text").value = one.text;
  byId("pair").value = one.text_pair || "";
  form.requestSubmit();
});

// a link can't send a token: the report is fetched, and saved as a file
byId("report").addEventListener("click", async (event) => {
  if (!byId("token").value) return;
  event.preventDefault();
  try {
    const answer = await fetch(event.currentTarget.href, { headers: headers() });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = "report.html";
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    byId("status").textContent = error.message;
  }
});

byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

async function load() {
  const busy = form.querySelector("button").disabled;
  if (!busy && byId("result").hidden) byId("status").textContent = "";
  try {
    await showModel();
  } catch (error) {
    byId("about").textContent = "";
    byId("status").textContent = error.message;
  }
}
byId("model").addEventListener("change", load);
// later, as a button under the pointer would move away between press and release
byId("token").addEventListener("change", () => setTimeout(load, 300));
load();
