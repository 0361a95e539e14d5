// The page at `/`: builds a native request, reads its stream of events, shows items, text, times and the path of an item.
// Titles and texts enter the document as text nodes only.

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const PROMPTS = {
  search: "Find an item.",
  recommend: "Recommend the next item.",
  why: "Recommend an item and say why.",
  describe: "Describe the item.",
  interests: "Describe this person's tastes.",
};
const OUTPUTS = { search: "items", recommend: "items", why: "mixed", describe: "text", interests: "text" };
const OPERANDS = { booleans: ["eq", true], integers: ["ge", 0], floats: ["ge", 0], "lists of strings": ["has", ""] };
const LOST = { message: "The connection to the server was lost." };

const state = {
  catalog: null, // GET /v1/catalog; none: text only
  history: [], // items picked, newest last
  turns: [], // messages of the conversation so far
  typed: {}, // fields that the user wrote in
  running: null, // AbortController of the request in progress
  opener: null, // what opened the path, for the focus to go back to
};

const on = (element, event, action) => element.addEventListener(event, action);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function button(action, attributes, ...children) {
  const element = make("button", { type: "button", ...attributes }, ...children);
  on(element, "click", action);
  return element;
}

const say = (text) => ($("status").textContent = text);
const count = (value) => Number(value).toLocaleString("en");
const fixed = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
const ms = (value) => `${fixed(value, value < 10 ? 2 : 1)} ms`;
const nameOf = (item) => item.title ?? item.id;
const typeOf = (item) => item.item_type ?? item.type;
const shown = (value) => [value].flat().join(", ") || "–";

// ---- The request

const task = () => document.querySelector("[name=task]:checked").value;
const kind = () => (task() === "explain" ? $("ask").value : task());
const output = () => OUTPUTS[kind()] ?? $("output").value;

/** A field's number; text that is none goes to the server as it is, which says what is wrong with it. */
function number(id) {
  const text = $(id).value.trim();
  if (text === "") return undefined;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

function filter() {
  const text = $("filter").value.trim();
  if (text === "") return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw { param: "filter", message: `filter: this is not JSON: ${error.message}` };
  }
}

function messages() {
  const type = $("type").value;
  const before = `${$("instruction").value.trim()}\n`;
  const target = output() === "text" ? "" : `\nTarget item type: ${type || "any"}`;
  const after = $("steer").checked ? `${target}\nOutput: ${output()}` : "";
  const items = state.history.map((item) => item.id);
  const user = (content) => [{ role: "user", content }];
  const around = (first, part) => user([{ type: "text", text: first }, part, { type: "text", text: after }]);
  if (kind() === "search") return user(`${before}Query: ${$("query").value.trim()}${after}`);
  if (kind() === "chat") return [...state.turns, ...user($("message").value)];
  if (kind() !== "describe") return around(`${before}History: `, { type: "history", items });
  if (!items.length) throw { param: "pick", message: "Add the item to describe first." };
  return around(`${before}Item: `, { type: "item", id: items.at(-1) });
}

function request() {
  const form = output();
  const body = task() === "raw" ? { prompt: $("message").value } : { messages: messages() };
  body.output = form;
  const fields = { items: ["n", "beam_width"], mixed: ["span_beam", "max_tokens"], text: ["max_tokens"] }[form];
  for (const id of [...fields, "temperature", "seed"]) body[id] = number(id);
  if (form === "text") return body;
  if ($("type").value) body.item_types = [$("type").value];
  if ($("score").value) body.score = $("score").value;
  body.filter = filter();
  const used = ["recommend", "why"].includes(kind()) && $("leave-out").checked;
  if (used && state.history.length) body.exclude = state.history.map((item) => item.id);
  const attributes = all("#attributes label:not([hidden]) input:checked").map((box) => box.value);
  if (attributes.length) body.return_attributes = attributes;
  if ($("logprobs").checked) body.logprobs = 1;
  return body;
}

function curl(body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  return `curl -N ${location.origin}/v1/items \\\n  -H 'Content-Type: application/json' -H 'Accept: text/event-stream' \\\n  -d '${quoted}'`;
}

// ---- The form

/** Shows what belongs to the task, and the request as it would be sent. */
function update() {
  const has = (list, word) => !list || list.split(" ").includes(word);
  for (const element of all("[data-for], [data-output]")) {
    element.hidden = !(has(element.dataset.for, task()) && has(element.dataset.output, output()));
  }
  $("message-label").textContent = task() === "raw" ? "Prompt, as the model gets it" : "Message";
  const type = $("type").value;
  for (const label of all("#attributes label")) label.hidden = type && !has(label.dataset.types, type);
  $("attributes").hidden ||= !state.catalog?.attributes?.length;
  if (!state.typed.instruction) $("instruction").value = PROMPTS[kind()] ?? "";
  preview();
}

function preview() {
  try {
    const body = request();
    $("json").textContent = JSON.stringify(body, null, 2);
    $("curl").textContent = curl(body);
  } catch (problem) {
    $("json").textContent = $("curl").textContent = problem.message;
  }
}

function showHistory() {
  $("history").replaceChildren(...state.history.map((item, place) => make("li", {},
    make("span", {}, nameOf(item), make("small", {}, typeOf(item))),
    button(() => remove(place), { "aria-label": `Remove ${nameOf(item)}` }, "×"))));
  preview();
}

function remove(place) {
  state.typed.history = true;
  state.history.splice(place, 1);
  showHistory();
  (all("#history button")[Math.max(0, place - 1)] ?? $("pick")).focus();
}

function remember(item) {
  state.typed.history = true;
  state.history.push(item);
  showHistory();
}

async function fetchJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** An error answer as `{message, param, …}`. */
async function failure(response) {
  const answer = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const problem = answer?.error ?? { message: `The server answered ${response.status}, without a reason.` };
  return { ...problem, message: problem.message + (wait ? ` Try again in ${wait} s.` : "") };
}

async function titles(part, limit) {
  const query = new URLSearchParams({ q: part, limit });
  if ($("type").value) query.set("type", $("type").value);
  return (await fetchJson(`/v1/catalog/search?${query}`)).items;
}

/** Titles of the loaded catalog as a first query and history, until the user writes their own. */
async function sample() {
  const type = $("type").value;
  let items = [];
  for (const part of ["the", ""]) items = items.length ? items : await titles(part, 5).catch(() => []);
  if (type !== $("type").value || !items.length) return;
  if (!state.typed.query) $("query").value = nameOf(items[0]);
  if (!state.typed.history) state.history = items.slice(0, 4).reverse();
  if (!state.typed.message) $("message").value = `Recommend something like ${nameOf(items[0])}.`;
  showHistory();
}

/** The list of titles under the input that adds to the history. */
function picker() {
  const [input, list] = [$("pick"), $("found")];
  let [items, active, turn] = [[], -1, 0];
  const show = (found) => {
    [items, active] = [found, -1];
    list.replaceChildren(...found.map((item, place) => make("li", { role: "option", id: `found-${place}`, "aria-selected": false },
      nameOf(item), make("small", {}, `${item.type} · ${item.id}`))));
    list.hidden = !found.length;
    input.setAttribute("aria-expanded", found.length > 0);
    input.removeAttribute("aria-activedescendant");
  };
  const move = (to) => {
    list.children[active]?.setAttribute("aria-selected", false);
    active = (to + items.length) % items.length;
    list.children[active].setAttribute("aria-selected", true);
    list.children[active].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", `found-${active}`);
  };
  const choose = (place) => {
    remember(items[place]);
    input.value = "";
    show([]);
  };
  on(list, "mousedown", (event) => {
    event.preventDefault();
    const place = [...list.children].indexOf(event.target.closest("li"));
    if (place >= 0) choose(place);
  });
  on(input, "input", async () => {
    const mine = ++turn;
    const part = input.value.trim();
    const found = part ? await titles(part, 10).catch((problem) => { fail(problem); return []; }) : [];
    if (mine === turn) show(found);
  });
  on(input, "keydown", (event) => {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (items.length) choose(Math.max(active, 0));
    } else if (items.length && event.key.startsWith("Arrow")) {
      if (event.key === "ArrowDown") move(active + 1);
      if (event.key === "ArrowUp") move(Math.max(active, 0) - 1);
    } else if (items.length && event.key === "Escape") {
      event.stopPropagation();
      show([]);
    }
  });
  on(input, "blur", () => show([]));
}

/** Adds an expression to the filter. */
function insert(piece) {
  const area = $("filter");
  try {
    const present = filter();
    const value = present ? { all: [...(present.all ?? [present]), piece] } : piece;
    area.value = JSON.stringify(value, null, 1).replace(/\n\s*/g, " ");
    preview();
  } catch (problem) {
    fail(problem);
  }
  area.focus();
}

function showCatalog({ types, attributes = [], filters = [] }) {
  $("type").append(...types.map(({ name }) => make("option", { value: name }, name)));
  $("type").value = types[0]?.name ?? "";
  // Those that most types have come first.
  attributes.sort((one, other) => other.types.length - one.types.length).forEach((attribute, place) => {
    const { name } = attribute;
    const [operator, operand] = OPERANDS[attribute.kind] ?? ["eq", ""];
    const box = make("input", { type: "checkbox", value: name });
    box.checked = place < 3;
    $("attributes").append(make("label", { class: "check", "data-types": attribute.types.join(" ") }, box, name));
    const title = `${attribute.kind}, of ${attribute.types.join(", ")}`;
    $("pieces").append(button(() => insert({ attr: name, [operator]: operand }), { title }, name));
  });
  $("pieces").append(...filters.map((named) => button(() => insert({ named }), {}, named)));
}

// ---- The answer

function fail(problem) {
  $("error").textContent = problem.message;
  $("error").hidden = false;
  const control = $(problem.param?.match(/^[\w-]+/)?.[0]);
  if (!control?.matches("input, textarea, select")) return;
  control.setAttribute("aria-invalid", true);
  control.closest("details")?.setAttribute("open", "");
}

/** The events of a stream, as `[name, data]`. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const field = (name) => frame.split("\n").filter((line) => line.startsWith(name)).map((line) => line.slice(name.length).trimStart());
      const data = field("data:").join("\n");
      if (data) yield [field("event:")[0], JSON.parse(data)];
    }
  }
}

async function send() {
  if (state.running) return;
  $("error").hidden = true;
  for (const control of all("[aria-invalid]")) control.removeAttribute("aria-invalid");
  try {
    const body = request();
    begin();
    await read(body, { begun: performance.now() });
  } catch (problem) {
    const stopped = problem.name === "AbortError";
    say(stopped ? "Stopped." : "");
    if (!stopped) fail(problem instanceof TypeError ? LOST : problem);
  }
  busy(false);
}

function begin() {
  state.running = new AbortController();
  closePath();
  if (task() !== "chat") forget();
  else $("turns").append(make("p", { class: "said" }, $("message").value));
  $("cost").hidden = true;
  say("Waiting for the answer …");
  busy(true);
  $("answer").scrollIntoView({ block: "nearest" });
}

function busy(running) {
  const focused = [$("stop"), $("send")].includes(document.activeElement);
  $("turns").setAttribute("aria-busy", running);
  $("send").disabled = running;
  $("stop").disabled = !running;
  if (focused) $(running ? "stop" : "send").focus();
  if (!running) state.running = null;
}

async function read(body, clock) {
  const { signal } = state.running;
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  const response = await fetch("/v1/items", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await failure(response);
  const text = make("div", { class: "text" });
  const named = []; // the items of the text so far
  if (body.output !== "items") $("turns").append(text);
  for await (const [name, data] of events(response.body)) {
    clock.first ??= performance.now();
    if (data.error) throw data.error;
    if (name === "text") {
      say("Answering …");
      if (text.lastChild?.nodeType === Node.TEXT_NODE) text.lastChild.appendData(data.text);
      else text.append(data.text);
    } else if (name === "item") {
      named.push(data);
      text.append(chip(data));
    } else if (name === "done") {
      clock.done = performance.now();
      if (data.content) settle(data, text, named);
      return finish(body, data, clock);
    }
  }
  throw { message: "The connection closed before the answer was whole." };
}

/** Makes the streamed text what the whole answer says: items denied meanwhile go, the others learn their levels. */
function settle(answer, text, named) {
  const items = answer.content.filter((part) => part.type === "item");
  if (items.length !== named.length) {
    named = items;
    text.replaceChildren(...answer.content.map((part) => part.text ?? chip(part)));
  }
  // Entries without alternatives spell a span: its codes and its closer.
  const spans = [[]];
  for (const token of answer.logprobs ?? []) {
    if (token.top.length) spans.push([]);
    else spans.at(-1).push(token.logprob);
  }
  spans.filter((span) => span.length).forEach((span, place) => {
    if (named[place]?.sid.length === span.length - 1) named[place].logprobs = span.slice(0, -1);
  });
}

function finish(body, answer, clock) {
  if (answer.items) $("turns").append(list(answer.items));
  const parts = answer.items ?? answer.content ?? [];
  const items = parts.filter((part) => part.type !== "text").length;
  const what = body.output === "text" ? "Done" : `${items} item${items === 1 ? "" : "s"}`;
  say(`${what} in ${ms(clock.done - clock.begun)}${answer.exhausted ? "; no other item fits" : ""}.`);
  cost(answer, clock);
  if (task() !== "chat" || !body.messages) return;
  const content = parts.map((part) => (part.type === "text" ? part : { type: "item", id: part.id }));
  state.turns = [...body.messages, { role: "assistant", content }];
  state.typed.message = true;
  $("message").value = "";
  preview();
}

const opens = (item) => (event) => openPath(item, event.currentTarget);

function chip(item) {
  return button(opens(item), { class: "chip", title: `${typeOf(item)} · ${item.id}` },
    nameOf(item), make("small", {}, fixed(item.score, 2)));
}

function list(items) {
  const best = Math.max(...items.map((item) => item.score));
  const rows = items.map((item, place) => {
    const filled = make("span", {});
    filled.style.width = `${100 * Math.exp(item.score - best)}%`;
    const attributes = Object.entries(item.attributes ?? {}).filter(([, value]) => value !== null && value.length !== 0);
    const about = [typeOf(item), item.id, ...attributes.map(([name, value]) => `${name} ${shown(value)}`)];
    return make("li", {}, button(opens(item), { class: "item", "aria-expanded": false },
      make("span", { class: "rank" }, place + 1),
      make("span", { class: "title" }, nameOf(item)),
      make("span", { class: "points" }, fixed(item.score, 3)),
      make("span", { class: "meta" }, ...about.map((part) => make("span", {}, part))),
      make("span", { class: "bar", title: "probability, relative to the best", "aria-hidden": true }, filled)));
  });
  return make("ol", { class: "items", "aria-label": "Items, best first" }, ...rows);
}

const pair = ([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value));

function cost({ timings = {}, usage = {}, ...answer }, clock) {
  const phases = [timings.queue_ms, timings.prefill_ms, timings.decode_ms];
  $("phases").replaceChildren(...phases.map((value) => {
    const part = make("span", {});
    part.style.flexGrow = value || 0;
    return part;
  }));
  $("times").replaceChildren(...[
    ["queue", ms(phases[0])], ["prefill", ms(phases[1])], ["decode", ms(phases[2])], ["total", ms(timings.total_ms)],
    ["first event, browser", ms(clock.first - clock.begun)], ["end, browser", ms(clock.done - clock.begun)],
    ["prompt tokens", usage.prompt_tokens], ["of these cached", usage.cached_tokens],
    ["answer tokens", usage.completion_tokens], ["beam rows", usage.beam_rows],
  ].map(pair));
  const dropped = Object.entries(answer.dropped ?? {}).map(([name, value]) => `left out: ${value} ${name.replaceAll("_", " ")}`);
  const notes = [`ended by ${answer.finish_reason}`, answer.score && `scores over ${answer.score}`, answer.snapshot && `snapshot ${answer.snapshot}`, ...dropped];
  $("notes").textContent = notes.filter(Boolean).join(" · ");
  $("cost").hidden = false;
}

function forget() {
  state.turns = [];
  $("turns").replaceChildren();
}

// ---- The path of an item

async function openPath(item, opener) {
  closePath();
  state.opener = opener;
  opener.setAttribute("aria-expanded", true);
  $("path-title").textContent = nameOf(item);
  $("path-body").replaceChildren("Loading …");
  $("path").hidden = false;
  $("path-title").focus();
  const found = await fetchJson(`/v1/catalog/item?${new URLSearchParams({ id: item.id })}`)
    .then((found) => describe(found, item), (problem) => [problem instanceof TypeError ? LOST.message : problem.message]);
  if (state.opener === opener) $("path-body").replaceChildren(...found);
}

function closePath() {
  if ($("path").hidden) return;
  $("path").hidden = true;
  state.opener.setAttribute("aria-expanded", false);
  state.opener.focus();
  state.opener = null;
}

function describe(found, item) {
  const type = state.catalog.types.find((one) => one.name === found.type);
  const shared = found.path.at(-1)?.items ?? 1;
  const about = [found.type, found.id, `popularity ${count(found.popularity ?? 0)}`, ...(shared > 1 ? [`${count(shared)} items share this SID`] : [])];
  return [
    make("p", { class: "hint" }, about.join(" · ")),
    drawing(found, type),
    table(found, item, type),
    make("dl", {}, ...Object.entries(found.attributes ?? {}).map(([name, value]) => pair([name, shown(value)]))),
    make("div", { class: "uses" },
      button(() => { remember(found); closePath(); }, {}, "Add to the history"),
      button(() => describeIt(found), {}, "Describe it")),
  ];
}

function describeIt(item) {
  document.querySelector("[value=explain]").checked = true;
  $("ask").value = "describe";
  remember(item);
  closePath();
  update();
  $("send").focus();
}

/** One line per codebook, a dot at the code taken, and the way from dot to dot. */
function drawing(found, type) {
  const [left, right, step, top] = [24, 296, 42, 20];
  const root = { x: (left + right) / 2, y: top };
  const dots = found.path.map(({ level, code }) => {
    const last = (type?.levels[level] ?? code + 1) - 1;
    return { x: left + (right - left) * (last ? code / last : 0.5), y: top + step * (level + 1), code, last };
  });
  const way = [root, ...dots].map(({ x, y }) => `${x.toFixed(1)},${y}`).join(" ");
  return shape("svg", { viewBox: `0 0 320 ${top + step * dots.length + 22}`, "aria-hidden": true },
    ...dots.map(({ y }) => shape("line", { class: "book", x1: left, x2: right, y1: y, y2: y })),
    shape("polyline", { class: "way", points: way }),
    shape("circle", { class: "stop", cx: root.x, cy: root.y, r: 3 }),
    shape("text", { x: root.x, y: 11, "text-anchor": "middle" }, found.type),
    ...dots.flatMap(({ x, y, code, last }) => [
      shape("circle", { class: "stop", cx: x, cy: y, r: 5 }),
      shape("text", { class: "code", x, y: y + 17, "text-anchor": "middle" }, code),
      shape("text", { x: 0, y: y + 3 }, 0),
      shape("text", { x: 320, y: y + 3, "text-anchor": "end" }, last),
    ]));
}

function table(found, item, type) {
  const known = item.logprobs?.length === found.path.length;
  const head = ["Level", "Code", "Choices", "Items left", ...(known ? ["Log-prob.", "Prob."] : [])];
  const rows = found.path.map(({ level, code, children, items }) => {
    const logprob = item.logprobs?.[level];
    const cells = [type ? `${code} of ${count(type.levels[level])}` : code, count(children), count(items)];
    if (known) cells.push(fixed(logprob, 3), `${fixed(100 * Math.exp(logprob), logprob > -4.6 ? 1 : 3)} %`);
    return make("tr", {}, make("th", { scope: "row" }, level + 1), ...cells.map((cell) => make("td", {}, cell)));
  });
  const score = item.score === undefined ? "" : `, score ${fixed(item.score, 3)}`;
  return make("table", {},
    make("caption", {}, `${found.path.length} codes lead from ${count(type?.items ?? 0)} items to this one${score}`),
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows));
}

// ---- Start

async function copy(event) {
  const block = $(event.currentTarget.dataset.copy);
  try {
    await navigator.clipboard.writeText(block.textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(block);
    say("Selected; copy it with Ctrl+C.");
  }
}

function textOnly() {
  for (const control of all("[value=search], [value=recommend], [value=explain], [value=mixed], [value=items], #type")) control.disabled = true;
  document.querySelector("[value=chat]").checked = true;
  $("output").value = "text";
}

async function start() {
  const about = [await fetchJson("/v1/models").then((answer) => answer.data[0].id, () => "")];
  try {
    state.catalog = await fetchJson("/v1/catalog");
    const { types, items, snapshot } = state.catalog;
    showCatalog(state.catalog);
    about.push(`${count(items)} items`, types.map(({ name }) => name).join(", "), snapshot && `snapshot ${snapshot}`);
  } catch (problem) {
    if (problem.type !== "not_found_error") fail(problem);
    about.push("no catalog: text only");
    textOnly();
  }
  $("about").textContent = about.filter(Boolean).join(" · ");
  update();
  if (state.catalog) await sample();
}

function listen() {
  const form = $("form");
  on(form, "submit", (event) => {
    event.preventDefault();
    send();
  });
  on(form, "input", (event) => {
    state.typed[event.target.id] = true;
    event.target.removeAttribute("aria-invalid");
    preview();
  });
  on(form, "change", (event) => {
    if (event.target.id === "type") sample();
    update();
  });
  on(document, "keydown", (event) => {
    if (event.key === "Escape") closePath();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  on($("stop"), "click", () => state.running?.abort());
  on($("again"), "click", () => { forget(); preview(); $("message").focus(); });
  on($("path-close"), "click", closePath);
  for (const element of all("[data-copy]")) on(element, "click", copy);
  picker();
}

listen();
start();
