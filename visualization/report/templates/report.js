// What the page does when it is used. Data lie in script elements of JSON beside each part; text is
// put in as text, never as markup; charts are drawn by Vega from specifications made with altair.

const byId = (id) => document.getElementById(id);
const dataOf = (id) => JSON.parse(byId(id).textContent);
const part = (root, selector) => root.querySelector(selector);
const control = (root, name) => part(root, `[name="${name}"]`);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// ---- numbers in words

const digits = (x, n = 3) => {
  if (x === null || x === undefined) return "";
  if (x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6)) return x.toExponential(n - 1);
  return Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(n));
};
const whole = (x) => Math.round(x).toLocaleString("en");
const percent = (x) => (x === null ? "" : `${digits(100 * x)} %`);

function bytesSaid(n) {
  for (const unit of ["bytes", "KiB", "MiB"]) {
    if (Math.abs(n) < 1024) return unit === "bytes" ? `${whole(n)} bytes` : `${n.toFixed(1)} ${unit}`;
    n /= 1024;
  }
  return `${n.toLocaleString("en", { maximumFractionDigits: 2 })} GiB`;
}

const rowsOf = (columns) => {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
};

// ---- theme: the colours of a chart are signals, and follow it without being drawn anew

const views = new Set();
const root = document.documentElement;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function recolour(view) {
  const styles = getComputedStyle(root);
  for (const name of ["ink", "soft", "faint", "accent"]) {
    view.signal(name, styles.getPropertyValue(`--${name}`).trim());
  }
  view.run();
}

function setTheme(theme) {
  root.dataset.theme = theme || (systemIsDark.matches ? "dark" : "light");
  views.forEach(recolour);
}

function theme() {
  const chooser = byId("theme");
  const remembered = () => {
    try { return localStorage.getItem("theme") ?? ""; } catch { return ""; } // a page of a file may have none
  };
  chooser.value = remembered();
  chooser.addEventListener("change", () => {
    try { localStorage.setItem("theme", chooser.value); } catch { /* then it holds for this visit */ }
    setTheme(chooser.value);
  });
  systemIsDark.addEventListener("change", () => setTheme(chooser.value));
  addEventListener("beforeprint", () => setTheme("light"));
  addEventListener("afterprint", () => setTheme(chooser.value));
  setTheme(chooser.value);
}

// ---- charts

let charts = null;

async function chart(holder, rows, { more = {}, renderer = "svg", alter = {}, description = "" } = {}) {
  charts ??= dataOf("charts");
  const spec = { ...structuredClone(charts[holder.dataset.chart]), ...alter, description };
  spec.datasets = { rows, ...more };
  const options = {
    mode: "vega-lite", actions: false, ast: true, defaultStyle: false, renderer,
    tooltip: { disableDefaultStyle: true, theme: "custom" },
  };
  const { view } = await vegaEmbed(holder, spec, options);
  views.add(view);
  recolour(view);
  return view;
}

// ---- copying

async function copy(text, button, source) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // a browser may refuse it to a page: then it is marked, to be copied by hand
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2500);
}

function copyButton(source, what) {
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", () => copy(source.textContent, button, source));
  return button;
}

// ---- the frontier

const GIB = 2 ** 30;
const STEPS = 1000; // of a slider; at its right end there is no limit

function logScale(values) {
  const low = Math.min(...values) / 1.02;
  const high = Math.max(...values) * 1.02;
  return (step) => (step >= STEPS ? Infinity : low * (high / low) ** (step / STEPS));
}

async function frontier(widget, data) {
  const rows = rowsOf(data.rows);
  const table = part(widget, "tbody");
  const lines = rows.map(settingLine);
  table.classList.add("fades");
  table.append(...lines);
  const names = ["kl", "bytes", "gib"];
  const slider = Object.fromEntries(names.map((name) => [name, control(widget, name)]));
  const tokens = control(widget, "tokens");
  const nTokens = () => Math.max(1, Number(tokens.value) || 1);
  const gib = (row) => (row.bytes_per_token * nTokens() + row.per_model_bytes) / GIB;
  const costs = rows.map((row) => row.kl).filter((kl) => kl > 0);
  const scales = { kl: logScale(costs.length ? costs : [1e-9]), bytes: logScale(rows.map((row) => row.bytes_per_token)) };
  const said = { kl: (x) => `${digits(x)} nats per token`, bytes: (x) => `${whole(x)} bytes`, gib: (x) => `${digits(x)} GiB` };

  const apply = () => {
    scales.gib = logScale(rows.map(gib));
    const limit = {};
    for (const name of names) {
      limit[name] = scales[name](Number(slider[name].value));
      const words = limit[name] === Infinity ? "no limit" : said[name](limit[name]);
      slider[name].parentElement.querySelector("output").textContent = words;
      slider[name].setAttribute("aria-valuetext", words);
    }
    rows.forEach((row, i) => {
      row.fits = row.kl <= limit.kl && row.bytes_per_token <= limit.bytes && gib(row) <= limit.gib;
      lines[i].classList.toggle("faded", !row.fits);
    });
    answer(widget, rows, gib, nTokens());
    return limit;
  };

  const most = { x: Math.max(...rows.map((row) => row.bytes_per_token)), y: Math.max(...rows.map((row) => row.kl_shown)) };
  const line = (axis, limit) => [{ [axis]: Math.min(most[axis], Math.max(limit, data.floor)), on: limit !== Infinity }];
  const show = (view) => {
    const limit = apply();
    view.data("rows", rows.map((row) => ({ ...row })));
    view.data("limit_x", line("x", limit.bytes)).data("limit_y", line("y", limit.kl));
    view.runAsync();
  };
  apply();
  const best = rows.filter((row) => row.frontier);
  const view = await chart(part(widget, ".chart"), rows, {
    more: { limit_x: line("x", Infinity), limit_y: line("y", Infinity) },
    description: `${rows.length} settings by stored bytes per token and KL; on the frontier: ${best.map((row) => `${row.label} with ${whole(row.bytes_per_token)} bytes at ${row.kl_said} nats`).join("; ")}.`,
  });
  for (const one of [...Object.values(slider), tokens]) one.addEventListener("input", () => show(view));
}

function answer(widget, rows, gib, tokens) {
  const fit = rows.filter((row) => row.fits);
  const smallest = fit[0]; // rows are ordered by size
  part(widget, ".answer").replaceChildren(
    ...(smallest
      ? [
          element("strong", {}, smallest.label),
          ` is the smallest of ${fit.length} that fit: ${whole(smallest.bytes_per_token)} bytes per token, ` +
            `${smallest.ratio.toFixed(2)} times smaller, KL ${smallest.kl_said}; ` +
            `${digits(gib(smallest))} GiB for ${whole(tokens)} tokens.`,
        ]
      : [`None of ${rows.length} settings fits these limits.`]),
  );
}

function settingLine(row) {
  const engine = element("td", { class: "engine" });
  for (const [name, setting] of row.engines) {
    const code = element("code", {}, setting);
    engine.append(element("div", {}, `${name} `, code, copyButton(code, `the setting of ${name} for ${row.label}`)));
  }
  return element(
    "tr", { class: row.frontier ? "on-frontier" : null },
    element("th", { scope: "row" }, row.label),
    element("td", { class: "n" }, whole(row.bytes_per_token)),
    element("td", { class: "n" }, row.ratio.toFixed(2)),
    element("td", { class: "n" }, row.kl_said),
    element("td", { class: "n" }, row.perplexity_said),
    element("td", { class: "short" }, row.tasks_said),
    engine,
  );
}

// ---- what changed

async function changed(widget, data) {
  const slider = control(widget, "setting");
  const lines = data.settings.flatMap(({ label, tail }) => rowsOf(tail).map((row) => ({ label, ...row })));
  const show = () => {
    const setting = data.settings[Number(slider.value)];
    const place = `${setting.label}, ${Number(slider.value) + 1} of ${data.settings.length}`;
    part(widget, "output").textContent = place;
    slider.setAttribute("aria-valuetext", place);
    const tiles = Object.entries(setting.quantiles).map(([name, kl]) => tile(`${name} of KL`, digits(kl)));
    part(widget, ".tiles").replaceChildren(...tiles);
    part(widget, "tbody").replaceChildren(...worst(data, setting));
    return setting;
  };
  show();
  const view = await chart(part(widget, ".chart"), lines, {
    description: `For each of ${data.settings.length} settings, which share of the scored tokens costs at least so much; the figures of the chosen one stand above.`,
  });
  const follow = () => view.signal("chosen", show().label).runAsync();
  slider.addEventListener("input", follow);
  follow();
}

const tile = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));

const WORST = 32;
const CONTEXT = 8; // tokens before one, to see where it stands

function worst(data, setting) {
  const order = setting.kl.map((_, i) => i).sort((a, b) => setting.kl[b] - setting.kl[a]);
  return order.slice(0, WORST).map((i) => {
    const { text, position, token, nats_full } = data.tokens;
    let from = i;
    while (from > 0 && i - from < CONTEXT && text[from - 1] === text[i]) from -= 1;
    const before = token.slice(from, i).map(visible).join("");
    return element(
      "tr", {},
      element("td", {}, before, element("mark", {}, visible(token[i])), element("div", { class: "note" }, `position ${position[i]} of text ${text[i]}`)),
      element("td", { class: "n" }, digits(setting.kl[i])),
      element("td", {}, guesses(data.before[`${text[i]}:${position[i]}`], token[i], nats_full[i])),
      element("td", {}, guesses(setting.after[i], token[i], setting.nats[i])),
    );
  });
}

function guesses(top, right, nats) {
  const line = ([token, probability]) =>
    element("li", {}, element("code", { class: token === right ? "right" : null }, visible(token).replaceAll("\n", "")), element("span", {}, percent(probability)));
  const list = (top ?? []).map(line);
  const cost = element("div", { class: "note" }, `the text's own token: ${digits(nats)} nats`);
  return element("div", {}, element("ul", { class: "guesses" }, ...list), cost);
}

// ---- the byte ledger

async function ledger(widget, data) {
  const chooser = control(widget, "setting");
  const body = part(widget, "tbody");
  const off = new Set();
  const keyOf = (row) => JSON.stringify([row.part, row.kind, row.once]);
  let view = null;

  const drawn = (rows) => rows.filter((row) => !row.once); // which would dwarf what a text takes
  const rowsNow = () => {
    const { label, ...columns } = data.settings[Number(chooser.value)];
    const rows = rowsOf(columns).map((row, order) => ({ ...row, order, key: keyOf(row) }));
    const kinds = ["key", "value", "both"]; // stand together in a bar, and their parts in it
    const keys = [...new Map(rows.map((row) => [row.key, kinds.indexOf(row.kind)]))].sort((a, b) => a[1] - b[1]).map(([key]) => key);
    return rows.map((row) => ({ ...row, order_of_part: keys.indexOf(row.key), on: !off.has(row.key) }));
  };
  const sums = () => {
    const rows = rowsNow();
    const sum = (once) => rows.filter((row) => row.on && row.once === once).reduce((n, row) => n + row.bytes, 0);
    const perToken = sum(false) / data.context_tokens;
    const saved = data.plain_bytes_per_token - perToken;
    const pays = sum(true) === 0 ? "the first token" : saved > 0 ? `${whole(sum(true) / saved)} tokens` : "no length";
    part(widget, ".tiles").replaceChildren(
      tile("Stored with the text", bytesSaid(sum(false))),
      tile("Bytes per token", whole(perToken)),
      tile("Times smaller", perToken > 0 ? digits(data.plain_bytes_per_token / perToken) : "no bytes left"),
      tile("Once for the model", bytesSaid(sum(true))),
      tile("Pays from", pays),
    );
    view?.data("rows", drawn(rows)).runAsync();
  };
  const choose = () => {
    off.clear();
    body.replaceChildren(...partLines(rowsNow(), off, sums));
    sums();
  };
  chooser.addEventListener("change", choose);
  choose();
  const groups = Math.max(...data.settings.map((setting) => new Set(setting.group).size));
  const alter = { height: Math.min(560, 40 + 22 * groups) };
  view = await chart(part(widget, ".chart"), drawn(rowsNow()), { alter, description: "Bytes of the chosen setting by group of layers; the same numbers stand in the table of its parts." });
}

function partLines(rows, off, changedParts) {
  const parts = new Map();
  for (const row of rows) {
    const kept = parts.get(row.key) ?? { ...row, bytes: 0 };
    kept.bytes += row.bytes;
    parts.set(row.key, kept);
  }
  const total = rows.filter((row) => !row.once).reduce((n, row) => n + row.bytes, 0);
  return [...parts.values()].sort((a, b) => a.once - b.once || b.bytes - a.bytes).map((row) => {
    const box = element("input", { type: "checkbox", checked: true });
    const line = element(
      "tr", {},
      element("th", { scope: "row" }, element("label", {}, box, ` ${row.part}`)),
      element("td", {}, row.kind === "both" ? "" : row.kind),
      element("td", { class: "n" }, whole(row.bytes)),
      element("td", { class: "n" }, row.once ? "once" : percent(row.bytes / total)),
    );
    box.addEventListener("change", () => {
      if (box.checked) off.delete(row.key); else off.add(row.key);
      line.classList.toggle("faded", !box.checked);
      changedParts();
    });
    return line;
  });
}

// ---- the cache in time

async function in_time(widget, data) {
  // a cell reaches a little under the next, which is drawn over it, so that no seams are left
  const cellOf = (row) => ({ ...row, until: Math.min(data.n_tokens, row.position + 1.3 * row.tokens), stage: row.generated ? "generated" : "prefill" });
  const chosen = (name) => widget.querySelector(`input[data-choice="${name}"]:checked`).value;
  const rowsNow = () => rowsOf(data.kinds[chosen("kind")]).map((row) => cellOf({ ...row, shown: row[chosen("measure")] }));
  const height = Math.min(560, Math.max(180, 9 * data.n_layers));
  const generated = data.generated_from === null ? [] : [{ position: data.generated_from }];
  const view = await chart(part(widget, ".chart"), rowsNow(), {
    renderer: "canvas", alter: { height }, more: { generated },
    description: `Norms or directions of ${data.n_layers} layers over positions${generated.length ? `; generation begins at position ${data.generated_from}` : ""}.`,
  });
  widget.addEventListener("change", () => view.data("rows", rowsNow()).runAsync());
}

// ---- the token ribbon

const visible = (token) => token.replaceAll("␣", " ").replaceAll("\\n", "↵\n");

async function unpacked(text) {
  const zipped = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function unpackedLogs({ bytes, low, step }) {
  const codes = new Uint8Array(await unpacked(bytes));
  return (i) => (codes[i] === 0 ? null : codes[i] === 1 ? 0 : low * Math.exp((codes[i] - 2) * step));
}

async function ribbon(widget, { texts }) {
  const data = texts[Number(widget.dataset.text)];
  const holder = part(widget, ".tokens");
  const n = data.token.length;
  const spans = data.token.map((token, i) => element("span", { role: "option", id: `${widget.dataset.source}-${widget.dataset.text}-${i}`, "aria-selected": "false" }, visible(token)));
  holder.append(...spans);
  const measure = () => control(widget, "measure").value;
  const spent = () => data.bits?.[Number(control(widget, "setting").value)] ?? null; // by the chosen setting
  const shown = () => (measure() === "bits" ? spent().per_value : data[measure()]);
  const enable = () => {
    const [layer, setting] = ["layer", "setting"].map((name) => control(widget, name));
    if (layer) layer.disabled = measure() !== "attention_received";
    if (setting) setting.disabled = measure() !== "bits";
  };
  enable();
  colour(spans, shown(), measure());
  let chosen = -1;
  let details = { show() {}, watchers: () => [] };

  const choose = (i, scroll = false) => {
    spans[chosen]?.setAttribute("aria-selected", "false");
    holder.querySelectorAll(".watching").forEach((span) => span.classList.remove("watching"));
    chosen = i;
    spans[i].setAttribute("aria-selected", "true");
    holder.setAttribute("aria-activedescendant", spans[i].id);
    if (scroll) spans[i].scrollIntoView({ block: "nearest" });
    part(widget, ".figures").replaceChildren(...figures(data, i, spent()));
    for (const row of details.watchers(i)) spans[row.index].classList.add("watching");
    details.show(i, choose);
  };
  const pointed = (event) => { // spans are the holder's own children
    const i = spans.indexOf(event.target);
    if (i >= 0 && i !== chosen) choose(i);
  };
  holder.addEventListener("pointerover", pointed);
  holder.addEventListener("click", pointed);
  holder.addEventListener("focus", () => { if (chosen < 0) choose(0); });
  holder.addEventListener("keydown", (event) => {
    const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, ArrowDown: chosen + 10, ArrowUp: chosen - 10, Home: 0, End: n - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.min(n - 1, Math.max(0, to)), true);
  });
  details = data.by_head ? await byHead(widget, data) : details;
  const recolourTokens = () => {
    enable();
    const layer = control(widget, "layer");
    const one = layer && layer.value !== "" && measure() === "attention_received";
    colour(spans, one ? details.inLayer(Number(layer.value)) : shown(), measure());
    part(widget, ".figures").replaceChildren(...figures(data, chosen, spent()));
  };
  widget.addEventListener("change", recolourTokens);
  choose(0);
}

const LOGARITHMIC = new Set(["attention_received", "bits"]);

function colour(spans, values, measure) {
  const scale = LOGARITHMIC.has(measure) ? (x) => (x > 0 ? Math.log(x) : null) : (x) => x;
  const scaled = values.map((x) => (x === null ? null : scale(x)));
  const known = scaled.filter((x) => x !== null).sort((a, b) => a - b);
  const low = known[Math.floor(known.length / 20)];
  const span = known[known.length - 1] - low || 1;
  spans.forEach((one, i) => {
    const w = scaled[i] === null ? 0 : Math.min(1, Math.max(0, (scaled[i] - low) / span));
    one.style.setProperty("--w", w.toFixed(3));
    one.classList.toggle("strong", w > 0.6);
  });
}

function figures(data, i, spent) {
  const said = [["position", whole(data.position[i])]];
  if (data.attention_received) said.push(["attention received", percent(data.attention_received[i])]);
  if (data.importance) said.push(["importance (a heuristic)", digits(data.importance[i])]);
  if (spent) said.push([`bits spent by ${spent.label}`, bitsSaid(spent.per_value[i], spent.mean)]);
  if (data.key_norm) said.push(["key norm", digits(data.key_norm[i])], ["value norm", digits(data.value_norm[i])]);
  if (data.seen_by) said.push(["seen by", `${whole(data.seen_by[i])} queries`]);
  const pairs = said.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const few = data.well_seen && !data.well_seen[i] ? element("p", { class: "note" }, "Few queries see it: its mean says little.") : null;
  return [element("h3", {}, `“${visible(data.token[i]).trim() || data.token[i]}”`), element("dl", {}, ...pairs), few].filter(Boolean);
}

const bitsSaid = (x, mean) =>
  x === null ? "not told" : `${digits(x)} bits per value, ${digits(x / mean)} times the mean`;

async function byHead(widget, data) {
  const { layers, heads } = data.by_head;
  const n = data.token.length;
  const received = await unpackedLogs(data.by_head.received); // (layers, heads, tokens)
  const weight = await unpackedLogs(data.by_head.watcher_weight); // (layers, tokens)
  const watcher = new Int32Array(await unpacked(data.by_head.watcher));
  const cells = (i) => layers.flatMap((layer, l) =>
    Array.from({ length: heads }, (_, head) => ({ layer, head, received: received((l * heads + head) * n + i) })).filter((cell) => cell.received !== null));
  const indexOf = new Map(data.position.map((position, i) => [position, i]));
  const watchers = (i) => {
    const found = new Map();
    layers.forEach((layer, l) => {
      const index = indexOf.get(watcher[l * n + i]);
      if (index === undefined) return;
      const row = found.get(index) ?? { index, n: 0, weight: 0, layer };
      const w = weight(l * n + i) ?? 0;
      found.set(index, { index, n: row.n + 1, weight: Math.max(row.weight, w), layer: w > row.weight ? layer : row.layer });
    });
    return [...found.values()].sort((a, b) => b.n - a.n || b.weight - a.weight).slice(0, 5);
  };
  const view = await chart(part(widget, ".chart"), cells(0), { description: "Attention that the chosen token receives in each layer and KV head." });
  return {
    watchers,
    inLayer: (l) => Array.from({ length: n }, (_, i) => {
      const known = Array.from({ length: heads }, (_, head) => received((l * heads + head) * n + i)).filter((x) => x !== null);
      return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    }),
    show(i, choose) {
      view.data("rows", cells(i)).runAsync();
      const lines = watchers(i).map((row) => {
        const button = element("button", { type: "button" }, `“${visible(data.token[row.index]).trim() || data.token[row.index]}”`);
        button.addEventListener("click", () => choose(row.index, true));
        return element("li", {}, button, `at ${whole(data.position[row.index])}, most in ${row.n} of ${layers.length} layers, up to ${percent(row.weight)} in layer ${row.layer}`);
      });
      part(widget, ".watchers").replaceChildren(
        element("strong", {}, "Who looks at it"),
        lines.length ? element("ul", {}, ...lines) : element("p", { class: "note" }, "No later token was seen to."),
      );
    },
  };
}

// ---- tables: made when they are opened

function openTable(details) {
  const id = details.dataset.table;
  const columns = dataOf(id);
  const names = Object.keys(columns);
  const rows = rowsOf(columns).map((row) => ({ row, words: names.map((name) => String(row[name] ?? "")).join(" ").toLowerCase() }));
  const isNumber = (name) => columns[name].every((value) => value === null || typeof value === "number");
  const body = element("tbody");
  const heads = names.map((name) => {
    const button = element("button", { type: "button" }, name);
    const head = element("th", { scope: "col", "aria-sort": "none", class: isNumber(name) ? "n" : null }, button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort((a, b) => (down ? -1 : 1) * compared(a.row[name], b.row[name]));
      show();
    });
    return head;
  });
  const search = part(details, "input");
  const show = () => {
    const sought = search.value.trim().toLowerCase();
    const hits = rows.filter((row) => row.words.includes(sought));
    body.replaceChildren(...hits.map(({ row }) => element("tr", {}, ...names.map((name) => element("td", { class: isNumber(name) ? "n" : null }, cell(row[name]))))));
    part(details, ".hits").textContent = sought ? `${hits.length} of the ${rows.length} rows here hold “${search.value.trim()}”.` : "";
  };
  search.addEventListener("input", show);
  show();
  part(details, ".scroll").append(element("table", {}, element("caption", {}, id && part(details, "summary").firstChild.textContent.trim()), element("thead", {}, element("tr", {}, ...heads)), body));
}

const cell = (value) => (typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en") : aligned(value)) : value ?? "");
const aligned = (x) => (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6 ? x.toExponential(3) : x.toPrecision(4));
const compared = (a, b) => {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
};

// ---- the page

function sectionsInSight() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  document.querySelectorAll("section[id]").forEach((section) => seen.observe(section));
}

const painted = () => new Promise((done) => { requestAnimationFrame(() => setTimeout(done)); });

theme();
sectionsInSight();
document.querySelectorAll("details.table").forEach((details) => details.addEventListener("toggle", () => openTable(details), { once: true }));
document.querySelectorAll(".copied").forEach((box) => part(box, ".copy").replaceWith(copyButton(part(box, "code"), "the command")));
const WIDGETS = { ribbon, changed, ledger, frontier, in_time };
for (const widget of document.querySelectorAll("[data-widget]")) {
  await painted(); // what is written is seen before what takes longer
  await WIDGETS[widget.dataset.widget](widget, dataOf(widget.dataset.source));
}
root.dataset.ready = "";
