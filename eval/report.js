"use strict";
// Draws every plot of the page from the JSON in #data.  State lives in the controls and in the URL (?x=&metric=&task=).
const DATA = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const control = (name) => document.querySelector(`[data-control="${name}"]`);
const hidden = new Set();

const look = () => dark.matches
  ? { ink: "#c9d0d6", grid: "#2a3036", color: (s) => s.dark, heat: "Cividis" }
  : { ink: "#4a525a", grid: "#e9ebee", color: (s) => s.light, heat: "Cividis" };
const unknown = { group: "—", light: "#888", dark: "#888", dash: "solid" };
const shapeOf = (i) => (i === null ? unknown : DATA.shapes[i]);
const fade = (hex, alpha) => {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
};

function layout(xTitle, yTitle, more = {}) {
  const { ink, grid } = look();
  const axis = (title) => ({ title: { text: title, standoff: 8 }, gridcolor: grid, zeroline: false, automargin: true, linecolor: grid });
  const { xaxis, yaxis, ...rest } = more;
  return {
    margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 11.5, family: 'system-ui, "DejaVu Sans", sans-serif' }, showlegend: false, hovermode: "closest",
    xaxis: { ...axis(xTitle), ...xaxis }, yaxis: { ...axis(yTitle), ...yaxis }, ...rest,
  };
}

const draw = (div, traces, lay) =>
  Plotly.react(div, traces, lay, { displayModeBar: false, responsive: true });

// A line over its band; rows where x or y is not defined are left out.
function bandAndLine(shape, x, series, { dash = shape.dash, name = shape.group, hover = [] } = {}) {
  const keep = x.map((v, i) => i).filter((i) => x[i] !== null && series.mean[i] !== null);
  const at = (list) => keep.map((i) => list[i]);
  const color = look().color(shape);
  const band = {
    x: [...at(x), ...at(x).reverse()], y: [...at(series.high), ...at(series.low).reverse()],
    fill: "toself", fillcolor: fade(color, 0.2), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
  };
  const line = {
    x: at(x), y: at(series.mean), mode: "lines+markers", marker: { size: 4 }, line: { color, width: 2, dash }, name, type: "scatter",
    text: at(hover.length ? hover : x.map(() => "")),
    hovertemplate: `<b>${name}</b>, ${series.seeds} seeds<br>%{text}<br>x %{x:.4g}, y %{y:.4g}<extra></extra>`, marker_color: color,
  };
  return series.seeds > 1 ? [band, line] : [line];
}

function drawLines(shape, x, draws) {
  const color = fade(look().color(shape), 0.35);
  const joined = { x: [], y: [] };
  for (const values of draws) { joined.x.push(...x, null); joined.y.push(...values, null); }
  return [{ ...joined, mode: "lines", line: { color, width: 0.8 }, hoverinfo: "skip", type: "scatter" }];
}

const settings = () => ({
  x: control("x").value, metric: control("metric").value, task: control("task").value,
  draws: control("draws").checked, common: control("common").checked, log: control("log").checked,
});

// A logarithmic axis has no place for 0, the undegraded model.
const isLog = (axis) => DATA.logarithmic.includes(axis);
const along = (axis, x) => (isLog(axis) ? x.map((v) => (v > 0 ? v : null)) : x);

function curveTraces(panel, state) {
  const traces = [];
  for (const curve of panel.curves) {
    const shape = DATA.shapes[curve.shape];
    const x = along(state.x, curve.x[state.x]);
    const series = (curve.series[state.metric] || {})[state.task];
    if (hidden.has(curve.shape) || !series || new Set(x.filter((v) => v !== null)).size < 2) continue;
    if (state.draws && series.draws) traces.push(...drawLines(shape, x, series.draws));
    traces.push(...bandAndLine(shape, x, series, { hover: curve.setting }));
  }
  return traces;
}

// From the least to the largest of x or y, and a little more.
function span(tracesOfPanels, coordinate, log) {
  const values = tracesOfPanels.flat().flatMap((t) => t[coordinate]).filter((v) => v !== null && (!log || v > 0));
  if (!values.length) return undefined;
  const [low, high] = [Math.min(...values), Math.max(...values)].map((v) => (log ? Math.log10(v) : v));
  const pad = 0.04 * (high - low || 1);
  return [low - pad, high + pad];
}

function drawCurves() {
  const state = settings();
  document.body.dataset.x = state.x;
  const metric = DATA.metrics[state.metric] || { title: "", unit: "" };
  const yTitle = metric.unit ? `${metric.title} (${metric.unit})` : metric.title;
  const all = DATA.panels.map((panel) => curveTraces(panel, state));
  const range = state.common ? span(all, "y", state.log) : undefined;
  const noise = isLog(state.x) && span(all, "x", true); // all methods have this axis in common
  DATA.panels.forEach((panel, i) => {
    const empty = `no ${metric.title} on ${state.task === "all" ? "all tasks" : state.task}<br>against a varying ${DATA.axes[state.x]}`;
    const ticks = state.x === "severity" ? Object.entries(Object.assign({}, ...panel.curves.map((c) => c.ticks))) : [];
    const at = ticks.map(([severity]) => +severity);
    const bits = { tickvals: at, ticktext: ticks.map(([, text]) => text), range: [Math.min(...at) - 0.02, Math.max(...at) + 0.02] };
    const more = {
      xaxis: noise ? { type: "log", exponentformat: "power", range: [...noise] } : state.x === "bits_per_weight" ? { autorange: "reversed" } : at.length ? bits : { rangemode: "tozero" },
      yaxis: { type: state.log ? "log" : "linear", ...(range ? { range } : {}) },
      annotations: all[i].length ? [] : [{ text: empty, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
    };
    draw(document.getElementById(`curve-${i}`), all[i], layout(at.length ? "bits" : DATA.axes[state.x], yTitle, more));
  });
}

function drawMasked() {
  const dashes = ["solid", "dash", "dot", "dashdot"];
  DATA.masked.forEach((panel, i) => {
    const traces = panel.lines.flatMap((line, k) =>
      bandAndLine(shapeOf(panel.shape), line.x, line, { dash: dashes[k % dashes.length], name: line.mode }));
    traces.forEach((t) => { t.showlegend = Boolean(t.name); });
    const more = { showlegend: true, legend: { x: 0.02, y: 0.98, bgcolor: "rgba(0,0,0,0)" } };
    draw(document.getElementById(`masked-${i}`), traces, layout("severity", "loss (nats/token)", more));
  });
}

function drawHeat() {
  // One colour scale for all shapes of a map, so that shapes can be compared.
  const top = (map) => Math.max(...DATA.heat.filter((m) => m.curve === map.curve && m.kind === map.kind)
    .flatMap((m) => m.values.flat()).filter((v) => v !== null));
  DATA.heat.forEach((map, i) => {
    const [down, across] = map.kind.split(" × ");
    const names = (list) => list.map((v) => (typeof v === "number" ? `${+v.toPrecision(4)}` : v));
    const trace = {
      type: "heatmap", z: map.values, x: names(map.columns), y: names(map.rows), colorscale: look().heat, xgap: 1, ygap: 1, zmin: 0, zmax: top(map),
      colorbar: { thickness: 10, outlinewidth: 0, title: { text: "nats", side: "right" } },
      hovertemplate: `${down} %{y}, ${across} %{x}<br>excess loss %{z:.4g}<extra></extra>`,
    };
    const more = { xaxis: { type: "category", showgrid: false }, yaxis: { type: "category", showgrid: false } };
    draw(document.getElementById(`heat-${i}`), [trace], layout(across, down, more));
  });
}

function drawTraining() {
  const div = document.getElementById("training-plot");
  if (!div) return;
  const traces = DATA.training.map((run) => {
    const shape = shapeOf(run.shape);
    return {
      x: run.tokens, y: run.loss, mode: "lines", type: "scatter", name: run.member, line: { width: 1.3, color: look().color(shape) },
      hovertemplate: `<b>${shape.group}</b> ${run.member}<br>%{x:.4g} tokens, loss %{y:.4g}<extra></extra>`,
    };
  });
  draw(div, traces, layout("tokens", "training loss (nats/token)", { yaxis: { type: "log" } }));
}

function offerTasks(wanted) {
  const metric = control("metric").value;
  const tasks = DATA.tasks[metric] || [];
  const chosen = tasks.includes(wanted) ? wanted : tasks[0];
  control("task").replaceChildren(...tasks.map((t) => new Option(t === "all" ? "all tasks" : t, t, false, t === chosen)));
}

function start() {
  if (DATA.panels.length) offerControls();
  dark.addEventListener("change", drawAll);
  drawAll();
}

function offerControls() {
  const asked = new URLSearchParams(location.search);
  for (const name of ["x", "metric"]) {
    const select = control(name);
    if ([...select.options].some((o) => o.value === asked.get(name))) select.value = asked.get(name);
  }
  offerTasks(asked.get("task"));
  for (const name of ["draws", "common", "log"]) control(name).checked = asked.get(name) === "1";
  document.querySelector(".controls").addEventListener("change", (event) => {
    if (event.target.dataset.shape !== undefined) {
      const i = Number(event.target.dataset.shape);
      if (event.target.checked) hidden.delete(i); else hidden.add(i);
    }
    if (event.target === control("metric")) offerTasks(control("task").value);
    remember();
    drawCurves();
  });
}

function remember() {
  const { x, metric, task, ...flags } = settings();
  const query = new URLSearchParams({ x, metric, task });
  for (const [name, on] of Object.entries(flags)) if (on) query.set(name, "1");
  try { history.replaceState(null, "", `?${query}`); } catch { /* some browsers forbid it for local files */ }
}

function drawAll() {
  if (DATA.panels.length) drawCurves();
  drawMasked();
  drawHeat();
  drawTraining();
}

start();
