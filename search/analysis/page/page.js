// The report's interaction: one state (which trials are brushed, which is chosen, which kinds are hidden, which theme),
// and pictures and a table that are drawn from it. All text reaches the page as text, never as markup.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);
const at = new Map(data.trial.map((trial, row) => [trial, row]));
const state = { brushed: null, chosen: null, hidden: new Set(["infeasible"]), sort: { column: null, up: true }, shown: 50 };

// ---------------------------------------------------------------- small helpers

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Plotly reads tags in its texts.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, longest) => (text.length > longest ? text.slice(0, longest - 1) + "…" : text);

// The colour that a variable of the style sheet stands for under the present theme, as rgb(…).
const probe = document.body.appendChild(element("span", { hidden: true }));
function colour(name) {
  probe.style.color = "var(" + name + ")";
  return getComputedStyle(probe).color;
}

function format(column, value) {
  if (value === null || value === undefined) return "–";
  if (column.kind === "share") return (100 * value).toFixed(1) + " %";
  if (column.kind === "metric") return value.toFixed(4);
  for (const [factor, prefix] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (column.kind === "count" && Math.abs(value) >= factor) return (value / factor).toFixed(1) + prefix;
  }
  return Math.abs(value) >= 1e3 && Math.abs(value) < 1e9 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

// 12, 12, 12, 9 reads 12x3 9.
function runs(counts) {
  const parts = [];
  for (let from = 0; from < counts.length;) {
    let to = from;
    while (to < counts.length && counts[to] === counts[from]) to++;
    parts.push(to - from > 1 ? counts[from] + "x" + (to - from) : String(counts[from]));
    from = to;
  }
  return parts.join(" ");
}

function about(row) {
  const kind = data.kinds[data.kind[row]].name;
  return data.kind[row] !== "front" && data.front[row] ? kind + ", on the front" : kind;
}

// How sure a point of the front is: "0.85"; only what is certain is "1.00". Null off the front.
function sure(trial) {
  const found = data.sure[trial];
  if (!found) return null;
  return found[0] >= 0.995 && found[0] < 1 ? ">0.99" : found[0] > 0 && found[0] < 0.005 ? "<0.01" : found[0].toFixed(2);
}

function standing(trial) {
  const found = data.sure[trial];
  if (!found) return "";
  const like = found[1] === null ? "" : "; cannot be told from trial " + found[1] + ", which is cheaper";
  return "on the front with probability " + sure(trial) + like;
}

// ---------------------------------------------------------------- pictures

const plots = [];

function hover(trial) {
  const row = at.get(trial);
  if (row === undefined) return "";
  const lines = ["<b>trial " + trial + "</b> · " + plain(about(row))];
  data.columns.forEach((column, number) => {
    if (column.objective) lines.push(plain(cut(column.label, 40)) + " " + format(column, data.values[row][number]));
  });
  if (data.sure[trial]) lines.push(plain(standing(trial)));
  if (data.heads[row]) lines.push("heads " + runs(data.heads[row]), "neurons " + runs(data.neurons[row]));
  return lines.join("<br>");
}

function masked(bars, keep) {
  if (!bars || !bars.array) return bars;
  const only = (ends) => ends.map((end, point) => (keep(point) ? end : null));
  return { ...bars, array: only(bars.array), arrayminus: only(bars.arrayminus) };
}

// A scatter plot's traces as the state wants them.
function traces(plot) {
  const keep = (trial) => state.brushed === null || state.brushed.has(trial);
  const drawn = plot.traces.map((trace) => {
    if (trace.meta === "line") return { ...trace, visible: state.brushed === null };
    const points = (point) => keep(trace.customdata[point]);
    return {
      ...trace,
      visible: !state.hidden.has(trace.meta),
      selectedpoints: state.brushed === null ? null : trace.customdata.map((_, point) => point).filter(points),
      unselected: { marker: { opacity: 0.07 } },
      error_x: state.brushed === null ? trace.error_x : masked(trace.error_x, points),
      error_y: state.brushed === null ? trace.error_y : masked(trace.error_y, points),
    };
  });
  const ring = { x: [], y: [], mode: "markers", hoverinfo: "skip", meta: "ring",
    marker: { symbol: "circle-open", size: 20, color: colour("--ink"), line: { width: 2.5 } } };
  for (const trace of plot.traces) {
    const point = trace.customdata ? trace.customdata.indexOf(state.chosen) : -1;
    if (point >= 0) { ring.x.push(trace.x[point]); ring.y.push(trace.y[point]); }
  }
  return [...drawn, ring];
}

function layout(plot) {
  const ink = colour("--ink"), card = colour("--card"), rule = colour("--rule");
  const themed = { ...plot.layout, font: { ...plot.layout.font, color: ink },
    hoverlabel: { bgcolor: card, bordercolor: rule, font: { color: ink, size: 12 }, align: "left" } };
  return themed;
}

const touch = matchMedia("(pointer: coarse)").matches;
const options = {
  showSendToCloud: false, plotlyServerURL: "", // plotly would offer to upload the chart
  responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { filename: data.file, scale: 2 },
};

function draw(plot) {
  Plotly.react(plot.place, plot.isScatter ? traces(plot) : plot.traces, layout(plot), options);
}

function startPlots() {
  for (const [id, figure] of Object.entries(data.figures)) {
    const isScatter = id.startsWith("scatter");
    const plot = { place: document.getElementById(id), traces: figure.data, layout: figure.layout, isScatter };
    if (!touch && isScatter) plot.layout.dragmode = "zoom";
    if (!isScatter) plot.layout.dragmode = false;
    if (isScatter) {
      for (const trace of plot.traces) {
        if (!trace.customdata) continue;
        trace.text = trace.customdata.map(hover);
        trace.hovertemplate = "%{text}<extra></extra>";
      }
    }
    plots.push(plot);
    draw(plot);
    if (isScatter) plot.place.on("plotly_click", (event) => choose(event.points[0].customdata));
    if (id.startsWith("layers")) plot.place.on("plotly_click", (event) => choose(Number(event.points[0].y)));
  }
}

const SYMBOLS = {
  circle: ["circle", { cx: 7, cy: 7, r: 5 }],
  "circle-open": ["circle", { cx: 7, cy: 7, r: 4, fill: "none" }],
  square: ["rect", { x: 2, y: 2, width: 10, height: 10 }],
  diamond: ["path", { d: "M7 0.5 13.5 7 7 13.5 0.5 7Z" }],
  star: ["path", { d: "M7 0.3 8.9 5H13.8L9.9 8.1 11.3 13 7 10.1 2.7 13 4.1 8.1 0.2 5H5.1Z" }],
  "x-thin-open": ["path", { d: "M3 3 11 11M11 3 3 11", fill: "none" }],
};

function startLegend() {
  for (const [key, kind] of Object.entries(data.kinds)) {
    if (!data.kind.includes(key)) continue;
    const [tag, attributes] = SYMBOLS[kind.symbol];
    const icon = shape("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
    icon.append(shape(tag, { fill: kind.colour, stroke: kind.colour, "stroke-width": 1.6, ...attributes }));
    const button = element("button", { type: "button" }, icon, kind.name);
    button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(key)) state.hidden.add(key);
      button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
      plots.filter((plot) => plot.isScatter).forEach(draw);
    });
    find("#legend").append(button);
  }
}

// ---------------------------------------------------------------- parallel coordinates

const TOP = 58, BOTTOM = 26, SIDE = 36, ZONE = 40;

function startCoordinates() {
  const box = find("#coordinates"), canvas = box.querySelector("canvas"), svg = box.querySelector("svg");
  const rows = data.trial.map((_, row) => row).filter((row) => data.kind[row] !== "infeasible");
  const axes = data.columns
    .map((column, number) => ({ column, number, brush: null }))
    .filter(({ column, number }) =>
      (column.objective || column.name === "encoder_share") && rows.some((row) => data.values[row][number] !== null));
  if (!rows.length || axes.length < 2) { find("#parallel").hidden = true; return; }
  for (const axis of axes) {
    const values = rows.map((row) => data.values[row][axis.number]).filter((value) => value !== null);
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    [axis.worst, axis.best] = axis.column.better === "up" ? [low, high] : [high, low];
  }
  // 0 is the worst, 1 the best of an axis; null where it was not measured.
  const height = (axis, row) => {
    const value = data.values[row][axis.number];
    if (value === null) return null;
    return axis.best === axis.worst ? 0.5 : (value - axis.worst) / (axis.best - axis.worst);
  };
  const heights = rows.map((row) => axes.map((axis) => height(axis, row)));
  const passes = (each) => axes.every(({ brush }, number) =>
    !brush || (each[number] !== null && each[number] >= brush[0] - 1e-9 && each[number] <= brush[1] + 1e-9));
  const order = rows.map((_, number) => number).sort((a, b) => data.front[rows[a]] - data.front[rows[b]]);

  const size = () => ({ width: box.clientWidth, tall: box.clientHeight });
  const across = (number) => SIDE + (number * (size().width - 2 * SIDE)) / (axes.length - 1);
  const down = (share) => TOP + (1 - share) * (size().tall - TOP - BOTTOM);
  const share = (y) => Math.min(1, Math.max(0, 1 - (y - TOP) / (size().tall - TOP - BOTTOM)));

  function paint() {
    const { width, tall } = size(), ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio; canvas.height = tall * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const blue = colour("--front"), grey = colour("--grey"), ink = colour("--ink");
    for (const number of order) {
      const row = rows[number], chosen = data.trial[row] === state.chosen;
      pen.strokeStyle = chosen ? ink : data.front[row] ? blue : grey;
      pen.lineWidth = chosen ? 2.5 : data.front[row] ? 1.4 : 1;
      const strength = data.front[row] ? 0.75 : Math.min(0.35, 60 / rows.length + 0.08);
      pen.globalAlpha = chosen ? 1 : passes(heights[number]) ? strength : 0.03;
      pen.beginPath();
      let isDown = false;
      heights[number].forEach((each, axis) => {
        if (each === null) { isDown = false; return; }
        if (isDown) pen.lineTo(across(axis), down(each)); else pen.moveTo(across(axis), down(each));
        isDown = true;
      });
      pen.stroke();
    }
  }

  function frame() {
    svg.replaceChildren();
    axes.forEach((axis, number) => {
      // A name wider than its place is broken into two lines; the outer axes have the margin's width only.
      const x = across(number), isOuter = number === 0 || number === axes.length - 1;
      const letters = Math.max(6, Math.floor(Math.min(across(1) - across(0), isOuter ? 2 * SIDE : Infinity) / 6.4));
      const words = axis.column.label.length <= letters
        ? [axis.column.label] : axis.column.label.split(/[_ ]/).slice(0, 2).map((word) => cut(word, letters));
      words.forEach((word, line) => {
        const text = shape("text", { x, y: 14 + 14 * line + (words.length === 1 ? 14 : 0) });
        text.textContent = word;
        text.append(shape("title", {}));
        text.querySelector("title").textContent = axis.column.label;
        svg.append(text);
      });
      for (const [value, y] of [[axis.best, TOP - 8], [axis.worst, size().tall - BOTTOM + 16]]) {
        const text = shape("text", { x, y, class: "end" });
        text.textContent = format(axis.column, value);
        svg.append(text);
      }
      svg.append(shape("line", { x1: x, x2: x, y1: down(1), y2: down(0) }));
      if (axis.brush) {
        const [low, high] = axis.brush;
        svg.append(shape("rect", { class: "brush", x: x - 8, width: 16, y: down(high), height: Math.max(2, down(low) - down(high)), rx: 3 }));
      }
      const zone = shape("rect", { class: "zone", x: x - ZONE / 2, width: ZONE, y: TOP - 6, height: size().tall - TOP - BOTTOM + 12 });
      zone.dataset.axis = number;
      svg.append(zone);
    });
  }

  const repaint = () => { frame(); paint(); };
  const place = (event) => share(event.clientY - box.getBoundingClientRect().top);

  svg.addEventListener("pointerdown", (event) => {
    if (event.target.dataset.axis === undefined) return;
    event.preventDefault();
    const axis = axes[event.target.dataset.axis], from = place(event), startY = event.clientY;
    let moved = false;
    const move = (now) => {
      moved = moved || Math.abs(now.clientY - startY) > 3;
      if (moved) { axis.brush = [Math.min(from, place(now)), Math.max(from, place(now))]; requestAnimationFrame(repaint); }
    };
    const end = () => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", end);
      window.removeEventListener("pointercancel", end);
      if (!moved) axis.brush = null;
      settle();
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", end);
    window.addEventListener("pointercancel", end);
  });

  function settle() {
    const isBrushed = axes.some((axis) => axis.brush);
    const kept = rows.filter((_, number) => passes(heights[number]));
    state.brushed = isBrushed ? new Set(kept.map((row) => data.trial[row])) : null;
    find("#brushed").textContent = isBrushed ? kept.length + " of " + rows.length + " trials pass." : "";
    find("#clear").hidden = !isBrushed;
    repaint();
    plots.filter((plot) => plot.isScatter).forEach(draw);
    fillTable();
  }

  find("#clear").addEventListener("click", () => { axes.forEach((axis) => { axis.brush = null; }); settle(); });
  new ResizeObserver(repaint).observe(box);
  startCoordinates.repaint = repaint;
  repaint();
}

// ---------------------------------------------------------------- table

const COLUMNS = [
  { label: "trial", value: (row) => data.trial[row], show: (row) => element("button", { type: "button" }, String(data.trial[row])) },
  { label: "kind", words: true, value: (row) => about(row), show: (row) => about(row) },
  { label: "on front", title: "Probability that no trial dominates it; ~ and the number of a cheaper point it cannot be told from", better: "up",
    value: (row) => (data.sure[data.trial[row]] ? data.sure[data.trial[row]][0] : null),
    show: (row) => {
      const found = data.sure[data.trial[row]];
      return found ? sure(data.trial[row]) + (found[1] === null ? "" : " ~" + found[1]) : "–";
    } },
  ...data.columns.map((column, number) => ({
    label: cut(column.label, 60), title: column.label, better: column.better,
    value: (row) => data.values[row][number], show: (row) => format(column, data.values[row][number]),
  })),
  { label: "heads", words: true, plan: true, value: (row) => sum(data.heads[row]), show: (row) => (data.heads[row] ? runs(data.heads[row]) : "–") },
  { label: "neurons", words: true, plan: true, value: (row) => sum(data.neurons[row]), show: (row) => (data.neurons[row] ? runs(data.neurons[row]) : "–") },
];

function sum(counts) { return counts ? counts.reduce((a, b) => a + b, 0) : null; }

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

function startTable() {
  const line = element("tr");
  COLUMNS.forEach((column, number) => {
    const button = element("button", { type: "button", title: column.title || "" }, column.label);
    button.addEventListener("click", () => {
      const again = state.sort.column === number;
      // The best comes first; the second press turns it around.
      state.sort = { column: number, up: again ? !state.sort.up : column.better !== "up" };
      fillTable();
    });
    line.append(element("th", { scope: "col", className: column.words ? "words" : "" }, button));
  });
  find("#table thead").append(line);
  find("#only-front").addEventListener("change", () => { state.shown = 50; fillTable(); });
  find("#more").addEventListener("click", () => { state.shown += 200; fillTable(); });
  find("#table tbody").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.trial));
  });
  fillTable();
}

function fillTable() {
  const only = find("#only-front").checked;
  let rows = data.trial.map((_, row) => row)
    .filter((row) => !only || data.front[row] || data.kind[row] === "dense")
    .filter((row) => state.brushed === null || state.brushed.has(data.trial[row]));
  const { column, up } = state.sort;
  if (column !== null) {
    const value = COLUMNS[column].value;
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return x === null || y === null ? compare(x, y) : (up ? 1 : -1) * compare(x, y);
    });
  }
  document.querySelectorAll("#table th").forEach((head, number) => {
    if (number === column) head.setAttribute("aria-sort", up ? "ascending" : "descending"); else head.removeAttribute("aria-sort");
  });
  const lines = rows.slice(0, state.shown).map((row) => {
    const line = element("tr", { className: data.trial[row] === state.chosen ? "chosen" : "" });
    line.dataset.trial = data.trial[row];
    for (const each of COLUMNS) {
      line.append(element("td", { className: (each.words ? "words " : "") + (each.plan ? "plan" : "") }, each.show(row)));
    }
    return line;
  });
  find("#table tbody").replaceChildren(...lines);
  find("#count").textContent = lines.length < rows.length ? lines.length + " of " + rows.length + " listed" : rows.length + " listed";
  find("#more").hidden = lines.length === rows.length;
}

// ---------------------------------------------------------------- one trial

function choose(trial) {
  const row = at.get(trial);
  if (row === undefined) return;
  state.chosen = trial;
  const panel = find("#panel");
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", leave);
  const title = element("h2", { id: "panel-title" }, "Trial " + trial);
  const values = element("table");
  data.columns.forEach((column, number) => {
    const ends = data.intervals[row] && data.intervals[row][number];
    values.append(element("tr", {},
      element("td", { className: "words wide" }, cut(column.label, 80)),
      element("td", {}, format(column, data.values[row][number])),
      element("td", { className: "plan" }, ends ? format(column, ends[0]) + " to " + format(column, ends[1]) : "")));
  });
  const children = [element("header", {}, title, close), element("p", { className: "kicker" }, about(row)), values];
  if (data.heads[row]) {
    children.push(element("div", { className: "layer" }, element("b", {}, ""), element("b", {}, "heads"), element("b", {}, "neurons")));
    data.heads[row].forEach((heads, layer) => {
      children.push(element("div", { className: "layer" }, element("b", {}, String(layer)),
        bar(heads, data.shape.heads), bar(data.neurons[row][layer], data.shape.neurons)));
    });
  }
  if (data.sure[trial]) children.push(element("p", { className: "note" }, "It is " + standing(trial) + "."));
  if (data.notes[trial]) children.push(element("p", { className: "note" }, data.notes[trial]));
  children.push(element("p", { className: "note" }, element("code", {}, "paretobert show " + data.study + " " + trial)));
  panel.replaceChildren(...children);
  if (!panel.open) panel.show();
  refresh();
}

function bar(kept, full) {
  const filled = element("i");
  filled.style.width = (100 * kept) / full + "%";
  return element("div", { className: "share" }, filled, element("span", {}, kept + " of " + full));
}

function leave() {
  state.chosen = null;
  find("#panel").close();
  refresh();
}

function refresh() {
  plots.filter((plot) => plot.isScatter).forEach(draw);
  if (startCoordinates.repaint) startCoordinates.repaint();
  fillTable();
}

// ---------------------------------------------------------------- theme

function isDark() {
  const given = document.documentElement.dataset.theme;
  return given ? given === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme() {
  find("#theme").textContent = isDark() ? "Light" : "Dark";
  find("#theme").setAttribute("aria-pressed", String(isDark()));
  plots.forEach(draw);
  if (startCoordinates.repaint) startCoordinates.repaint();
}

find("#theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && find("#panel").open) leave(); });
document.querySelectorAll("[data-choose]").forEach((card) =>
  card.addEventListener("click", () => choose(Number(card.dataset.choose))));

startLegend();
startPlots();
startTable();
startCoordinates();
showTheme();
document.documentElement.dataset.ready = "yes";
})();
