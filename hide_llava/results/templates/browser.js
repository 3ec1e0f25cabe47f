// The sample browser of a run's page (results/browser.py writes what it reads). No framework, and no request but for scripts and
// thumbnails in samples/ beside the page. Whatever a file says becomes text, never markup.
"use strict";
(() => {
  const PAGE = 20, AT_ONCE = 8;  // rows of a page; shards that are fetched at the same time for a search
  const DEFAULTS = {task: "", state: "", sort: "task", q: "", misrouted: false, format: false, page: 1};
  const root = document.getElementById("browser");
  const form = root.querySelector("form"), body = root.querySelector("tbody"), head = root.querySelector("thead");
  const status = document.getElementById("browser-status"), note = document.getElementById("browser-note");
  const pageBox = root.querySelector("[name=page]"), goers = root.querySelectorAll("[data-go]");
  let index, starts, state = {...DEFAULTS}, pages = 1, turn = 0;

  // ---- data --------------------------------------------------------------------------------------------------------
  const parts = new Map();  // name of a part → {promise, arrived}
  window.hideLlavaSamples = (name, content) => parts.get(name)?.arrived(content);

  function part(name) {
    if (!/^([0-9a-f]{20}|index)$/.test(name)) return Promise.reject(new Error("damaged index"));
    if (!parts.has(name)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => {
        entry.arrived = resolve;
        const script = document.createElement("script");
        script.src = `samples/${name}.js`;
        script.onload = () => script.remove();
        script.onerror = () => { parts.delete(name); script.remove(); reject(new Error(`samples/${name}.js cannot be read`)); };
        document.head.append(script);
      });
      parts.set(name, entry);
    }
    return parts.get(name).promise;
  }

  const shardOf = (k) => index.shards[Math.floor(k / index.size)];
  const detail = async (k) => (await part(shardOf(k)))[k % index.size];
  const taskOf = (k) => { let t = 0; while (starts[t + 1] <= k) t++; return t; };

  // ---- what is chosen ----------------------------------------------------------------------------------------------
  function chosen() {
    const t = index.tasks.findIndex((task) => task.id === state.task);
    const [first, end] = t < 0 ? [0, index.ids.length] : [starts[t], starts[t + 1]];
    const stage = /^lost-\d+$/.test(state.state) ? Number(state.state.slice(5)) - 1 : -1;
    const fits = {"": () => true, right: (k) => index.state[k] === "k", wrong: (k) => "ln".includes(index.state[k]),
      never: (k) => index.state[k] === "n", lost: (k) => index.state[k] === "l"}[state.state] || ((k) => index.lost[k] === stage);
    const flags = (state.misrouted ? 1 : 0) + (state.format ? 2 : 0), found = [];
    for (let k = first; k < end; k++) if (fits(k) && (Number(index.flags[k]) & flags) === flags) found.push(k);
    return found;
  }

  const texts = new Map();  // question → what a search looks at
  async function textOf(k) {
    if (!texts.has(k)) {
      const [prompt, expected, , answers] = await detail(k);
      texts.set(k, [index.ids[k], prompt, expected, ...answers.map((a) => a ? a[0] : "")].join("\n").toLowerCase());
    }
    return texts.get(k);
  }

  async function searched(found, old) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const names = [...new Set(found.map(shardOf))];
    for (let n = 0; n < names.length; n += AT_ONCE) {
      await Promise.all(names.slice(n, n + AT_ONCE).map(part));
      if (old()) return [];
      if (n) status.textContent = `Reading answers: ${Math.round(100 * n / names.length)} %`;
    }
    const kept = [];
    for (const k of found) {
      const text = texts.get(k) ?? await textOf(k);
      if (words.every((word) => text.includes(word))) kept.push(k);
    }
    return kept;
  }

  function sorted(found) {
    const last = Infinity, keys = {id: (k) => index.place[k], lost: (k) => index.lost[k] < 0 ? last : index.lost[k],
      low: (k) => index.score[k] ?? last, high: (k) => index.score[k] === null ? last : -index.score[k]};
    const key = keys[state.sort];
    if (!key) return found;
    return found.map((k) => [key(k), k]).sort((a, b) => a[0] === b[0] ? a[1] - b[1] : a[0] - b[0]).map((pair) => pair[1]);
  }

  // ---- drawing -----------------------------------------------------------------------------------------------------
  function el(tag, kind, ...children) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    made.append(...children);  // strings become text nodes
    return made;
  }
  const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

  function picture([copy, name]) {
    const absent = (why) => el("span", "absent", `${why}: ${name}`);
    if (!/^[0-9a-f]{32}$/.test(copy)) return absent(`picture ${copy}`);
    const image = el("img");
    Object.assign(image, {alt: `picture ${name}`, loading: "lazy", decoding: "async", src: `samples/pictures/${copy.slice(0, 2)}/${copy}.jpg`});
    image.onerror = () => image.replaceWith(absent("picture missing in samples"));
    return image;
  }

  function weights(shares, own) {
    const top = shares.reduce((best, w, e) => w > shares[best] || (w === shares[best] && own.includes(e)) ? e : best, 0);
    const bars = el("span", "weights", ...shares.map((w, e) => {
      const bar = el("i", own.includes(e) ? "own" : "");
      bar.style.height = `${100 * Math.min(1, w)}%`;
      bar.title = `${index.experts[e]}: ${w}`;
      return bar;
    }));
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", `weights: ${shares.map((w, e) => `${index.experts[e]} ${w}`).join(", ")}`);
    const astray = own.some((e) => shares[e] > 0) && !own.includes(top);
    return [bars, el("span", "routed" + (astray ? " no" : ""), `${astray ? "misrouted to " : ""}${index.experts[top]} ${shares[top]}`)];
  }

  function answer(given, task, lost) {
    if (!given) return [];
    const [text, verdict, kind, shares] = given, right = verdict >= 0.5;
    const cells = [text ? el("p", "", text) : el("p", "empty", "(empty)")];
    if (verdict !== null) {
      const named = kind !== null && index.kinds[kind] !== "other" ? index.kinds[kind] : "wrong";
      const more = [right ? "✓ right" : `✗ ${named}`, verdict !== 0 && verdict !== 1 ? ` ${verdict}` : "", lost ? ", lost here" : ""];
      cells.push(el("span", `verdict ${right ? "ok" : "no"}`, more.join("")));
    }
    return shares ? [...cells, ...weights(shares, task.own)] : cells;
  }

  const fate = (k) => ({k: "right at the end", n: "never right", u: "",
    l: `lost after ${index.stages[index.lost[k]]}`})[index.state[k]];

  function row(k, [prompt, expected, pictures, answers], stages) {
    const task = index.tasks[taskOf(k)], line = el("tr"), first = el("th"), ask = el("td", "ask");
    first.scope = "row";
    const shown = pictures === null ? [el("span", "absent", "picture not known: the questions were not found")] : pictures.map(picture);
    first.append(...(shown.length ? [el("div", "pictures", ...shown)] : []), el("span", "id", index.ids[k]), el("span", "what", task.title),
      el("span", `what${index.state[k] === "l" ? " no" : ""}`, fate(k)));
    ask.append(el("p", "", prompt));
    if (expected) ask.append(el("span", "what", "Expected"), el("p", "expected", expected));
    line.append(first, ask, ...stages.map((s) => {
      const cell = el("td", "answer" + (index.lost[k] === s ? " lost" : ""), ...answer(answers[s], task, index.lost[k] === s));
      cell.dataset.label = index.stages[s];
      return cell;
    }));
    line.tabIndex = -1;
    return line;
  }

  function draw(found, rows, details) {
    const asked = new Set(details.flatMap((d) => d[3].flatMap((a, s) => a ? [s] : [])));
    const stages = index.stages.map((_, s) => s).filter((s) => asked.has(s));
    head.replaceChildren(el("tr", "", ...["Picture", "Prompt and references", ...stages.map((s) => `After ${index.stages[s]}`)].map((title) => {
      const cell = el("th", "", title);
      cell.scope = "col";
      return cell;
    })));
    body.replaceChildren(...rows.map((k, n) => row(k, details[n], stages)));
    if (body.firstChild) body.firstChild.tabIndex = 0;
    fit();
    const share = found.length === index.ids.length ? "" : ` of ${index.ids.length.toLocaleString("en")}`;
    status.textContent = found.length ? `${plural(found.length, "question")}${share}` : "No question fits; clear a filter.";
    document.getElementById("browser-pages").textContent = `of ${pages.toLocaleString("en")}`;
    pageBox.value = state.page;
    pageBox.max = pages;
    for (const button of goers) button.disabled = state.page + Number(button.dataset.go) < 1 || state.page + Number(button.dataset.go) > pages;
  }

  // A head that stays in view is possible only where the table need not be scrolled sideways.
  function fit() {
    const frame = root.querySelector(".scroll");
    frame.classList.remove("fits");
    frame.classList.toggle("fits", frame.scrollWidth <= frame.clientWidth);
  }

  async function show(focus) {
    const mine = ++turn;
    remember();
    try {
      let found = chosen();
      if (state.q.trim()) found = await searched(found, () => mine !== turn);
      if (mine !== turn) return;
      found = sorted(found);
      pages = Math.max(1, Math.ceil(found.length / PAGE));
      state.page = Math.min(Math.max(1, state.page), pages);
      const rows = found.slice((state.page - 1) * PAGE, state.page * PAGE);
      const details = await Promise.all(rows.map(detail));
      if (mine !== turn) return;
      draw(found, rows, details);
      remember();
      if (focus) go(0);
    } catch (error) {
      status.textContent = `${error.message}; write the report again.`;
    }
  }

  // ---- the address: what is shown can be linked --------------------------------------------------------------------
  function remember() {
    const pairs = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]).map(([name, value]) => [name, value === true ? 1 : value]);
    const wanted = pairs.length ? `#${new URLSearchParams(pairs)}` : "";
    const other = location.hash && ![...new URLSearchParams(location.hash.slice(1)).keys()].some((name) => name in DEFAULTS);
    if (wanted !== location.hash && (wanted || !other)) history.replaceState(null, "", wanted || location.pathname + location.search);
  }

  function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    const linked = [...given.keys()].some((name) => name in DEFAULTS);
    state = {...DEFAULTS};
    for (const field of form.elements) {
      if (!(field.name in DEFAULTS)) continue;
      const value = given.get(field.name);
      if (field.type === "checkbox") field.checked = value === "1" && !field.disabled;
      else field.value = value ?? DEFAULTS[field.name];
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = DEFAULTS[field.name];
    }
    read();
    state.page = Math.max(1, parseInt(given.get("page"), 10) || 1);
    return linked;
  }

  function read() {
    for (const field of form.elements) if (field.name in DEFAULTS) state[field.name] = field.type === "checkbox" ? field.checked : field.value;
    const unknown = index.tasks.filter((task) => !task.known && (!state.task || state.task === task.id)).map((task) => task.title);
    note.hidden = !unknown.length;
    note.textContent = `The questions of ${unknown.join(", ")} were not found, or are others now, when this page was written: no pictures, no references. Write the report again where the run was started.`;
  }

  // ---- keys and buttons --------------------------------------------------------------------------------------------
  function go(by) {
    const rows = [...body.children], at = rows.indexOf(document.activeElement.closest?.("tbody tr"));
    const next = rows[at < 0 ? 0 : Math.min(Math.max(0, at + by), rows.length - 1)];
    if (!next) return;
    for (const line of rows) line.tabIndex = line === next ? 0 : -1;
    next.focus();
  }

  function turnTo(page, focus) {
    if (page < 1 || page > pages || page === state.page) return;
    state.page = page;
    show(focus);
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, textarea, summary")) return;
    const row = event.target.closest(".browse tbody tr"), moves = {j: 1, k: -1, ...(row ? {ArrowDown: 1, ArrowUp: -1} : {})};
    const turns = {n: 1, p: -1, ...(row ? {ArrowRight: 1, ArrowLeft: -1} : {})};
    if (event.key === "/") form.elements.q.focus();
    else if (event.key in moves) go(moves[event.key]);
    else if (event.key in turns) turnTo(state.page + turns[event.key], true);
    else if (event.key === "Enter" && row) row.classList.toggle("open");
    else return;
    event.preventDefault();
  }

  let waiting;
  function changed(event) {
    clearTimeout(waiting);
    waiting = setTimeout(() => { read(); state.page = 1; show(); }, event.target.name === "q" ? 200 : 0);
  }

  function listen() {
    form.addEventListener("input", changed);
    form.addEventListener("submit", (event) => { event.preventDefault(); go(0); });
    form.addEventListener("reset", () => setTimeout(() => { read(); state.page = 1; show(); }));
    for (const button of goers) button.addEventListener("click", () => turnTo(state.page + Number(button.dataset.go)));
    pageBox.addEventListener("change", () => turnTo(Math.min(Math.max(1, parseInt(pageBox.value, 10) || 1), pages)));
    body.addEventListener("click", (event) => { if (!getSelection().toString()) event.target.closest("tr")?.classList.toggle("open"); });
    document.addEventListener("keydown", onKey);
    window.addEventListener("resize", fit);
    window.addEventListener("hashchange", () => { recall(); show(); });
  }

  function fill() {
    const {task, state: became, misrouted} = form.elements, option = (value, text) => new Option(text, value);
    task.append(...index.tasks.map((one) => option(one.id, `${one.title} (${one.count.toLocaleString("en")})`)));
    const lost = [...new Set(index.lost)].filter((s) => s >= 0).sort((a, b) => a - b);
    became.append(...lost.map((s) => option(`lost-${s + 1}`, `lost after ${index.stages[s]}`)));
    misrouted.closest("label").hidden = misrouted.disabled = !index.routed;
    starts = index.tasks.reduce((sums, one) => [...sums, sums.at(-1) + one.count], [0]);
  }

  part("index").then((content) => {
    index = content;
    fill();
    root.hidden = false;
    document.getElementById("browser-off").hidden = true;
    document.getElementById("few-answers").hidden = true;
    const linked = recall();
    listen();
    show().then(() => { if (linked) document.getElementById("samples").scrollIntoView(); });
  }).catch((error) => { document.getElementById("browser-off").append(` (${error.message})`); });
})();
