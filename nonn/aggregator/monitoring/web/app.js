// The dashboard: polls /api/state every second and draws the result. Text is inserted as text, never as HTML.
"use strict";

const EVERY_MS = 1000;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const write = (id, text) => { if (byId(id).textContent !== text) byId(id).textContent = text; };

// As many digits as the test set supports; a value below 1 is never rounded up to 100.
let digits = 2;
const percent = (x) => (x === null || x === undefined ? "–"
  : `${(x < 1 ? Math.min(100 * x, 100 - 10 ** -digits) : 100).toFixed(digits)} %`);
const between = (ends) => (ends ? ` (${percent(ends[0])} to ${percent(ends[1])})` : "");
const millis = (s) => (s === null || s === undefined ? "–" : `${(1000 * s).toFixed(s < 0.01 ? 2 : 0)} ms`);
const points = (x) => `${x >= 0 ? "+" : "−"}${Math.abs(100 * x).toFixed(2)}`;
const megabytes = (b) => (b === null ? "–" : `${(b / 1e6).toFixed(0)} MB`);
const clock = (t) => new Date(1000 * t).toLocaleTimeString();
const look = (node) => (node.drift.alarm && node.state === "up" ? "drift" : node.state);
const word = (node) => (node.drift.alarm ? `${node.state}, drifting` : node.state);

const span = (s) => (s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`);
const heard = (node) => (node.heard_s === null ? "no reply yet" : `last reply ${span(node.heard_s)} ago`);

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function html(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function headline(state) {
  const up = state.nodes.filter((node) => node.state === "up").length;
  const students = `${state.students_up} of ${state.devices} students`;
  if (!state.ready) return `Only ${students} are up: below the quorum of ${state.quorum}, requests fail.`;
  const whole = state.students_up === state.devices ? `All ${state.devices} students are up` : `${students} are up`;
  return `${whole}, on ${up} of ${state.nodes.length} nodes: expected accuracy ${percent(state.accuracy.now)}${between(state.accuracy.interval)}.`;
}

function tiles(state) {
  const { accuracy, requests } = state;
  write("accuracy-now", percent(accuracy.now));
  const tile = document.getElementById("accuracy-now").parentElement;
  tile.classList.toggle("degraded", state.ready && state.students_up < state.devices);
  tile.classList.toggle("down", !state.ready);
  const range = accuracy.interval ? `${percent(accuracy.interval[0])} to ${percent(accuracy.interval[1])} (95 %); ` : "";
  write("accuracy-of", `${range}${percent(accuracy.all)} with all, ${percent(accuracy.teacher)} the teacher`);
  write("accuracy-next", percent(accuracy.next_worst));
  write("accuracy-next-node", accuracy.next_worst_node
    ? `at worst, ${accuracy.next_worst_node}${between(accuracy.next_worst_interval)}; `
      + `${percent(accuracy.next_mean)}${between(accuracy.next_mean_interval)} on average` : "no node is up");
  const failed = (requests.by_outcome.below_quorum || 0) + (requests.by_outcome.exhausted || 0);
  write("rate", requests.per_second.toFixed(1));
  write("totals", `${requests.total} in all, ${requests.by_outcome.degraded || 0} degraded, ${failed} failed`);
  write("latency", millis(requests.latency_p50_s));
  write("latency-p99", `99 % are below ${millis(requests.latency_p99_s)}`);
}

function picture(state) {
  const count = state.nodes.length;
  const radius = 130;
  const size = Math.max(0.9, Math.min(2, 22 / count));
  const links = [];
  const shapes = [];
  state.nodes.forEach((node, i) => {
    const angle = (2 * Math.PI * i) / count - Math.PI / 2;
    const [x, y] = [radius * Math.cos(angle), radius * Math.sin(angle)];
    links.push(svg("line", { class: `link ${node.state}`, x1: 0, y1: 0, x2: x, y2: y }));
    const group = svg("g", { transform: `translate(${x} ${y})`, "data-node": node.id, "data-state": word(node) });
    group.append(
      svg("title", {}, `${node.id}: ${word(node)}, ${heard(node)}, part ${node.part}, ${points(node.value)} points`),
      svg("use", { href: `#shape-${look(node)}`, transform: `scale(${size})` }),
    );
    if (count <= 16) {
      const side = y < -1 ? -1 : 1;
      group.append(
        svg("text", { y: side < 0 ? -34 : 32 }, node.id.length > 14 ? `${node.id.slice(0, 13)}…` : node.id),
        svg("text", { y: side < 0 ? -21 : 45, class: "value" }, `part ${node.part}, ${points(node.value)}`),
      );
    }
    shapes.push(group);
  });
  const hub = svg("g", {});
  hub.append(svg("circle", { r: 38, class: "hub" }), svg("text", { y: -2 }, "now"), svg("text", { y: 14 }, percent(state.accuracy.now)));
  byId("cluster").replaceChildren(...links, hub, ...shapes);
}

// A round number of at least this size, for the end of an axis.
function nice(value) {
  if (!(value > 0)) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * step).find((end) => end >= value * 0.999);
}

// A line over the last minute with its axes. Seconds without a value are gaps.
function spark(id, values, low, high, label) {
  const box = byId(id);
  const [width, height] = [Math.max(160, box.clientWidth), 96];
  const [left, right, top, bottom] = [52, width - 10, 8, height - 20];
  const x = (i) => left + ((right - left) * i) / (values.length - 1);
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
  box.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const axes = [low, (low + high) / 2, high].flatMap((value) => [
    svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, label(value)),
  ]);
  for (const [i, text, anchor] of [[0, `${values.length} s ago`, "start"], [(values.length - 1) / 2, `${values.length / 2} s`, "middle"], [values.length - 1, "now", "end"]]) {
    axes.push(svg("text", { class: "tick", x: x(i), y: height - 5, "text-anchor": anchor }, text));
  }
  const runs = [[]];
  values.forEach((value, i) => {
    if (value === null) { if (runs[runs.length - 1].length) runs.push([]); return; }
    runs[runs.length - 1].push(`${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  });
  box.replaceChildren(...axes, ...runs.filter((run) => run.length).map((run) =>
    svg("polyline", run.length === 1 ? { class: "lone", points: `${run[0]} ${run[0]}` } : { points: run.join(" ") })));
}

function sparks(seconds) {
  const known = (values) => values.filter((value) => value !== null);
  const top = (values) => Math.max(0, ...known(values));
  spark("spark-latency", seconds.latency_p50_s, 0, nice(top(seconds.latency_p50_s) || 0.01), (value) => `${Number((1000 * value).toPrecision(2))} ms`);
  write("latency-scale", known(seconds.latency_p50_s).length ? `up to ${millis(top(seconds.latency_p50_s))}` : "–");
  spark("spark-rate", seconds.requests, 0, nice(Math.max(2, top(seconds.requests))), (value) => String(value));
  write("rate-scale", `up to ${top(seconds.requests)}`);
  const accuracy = known(seconds.accuracy);
  const [low, high] = accuracy.length ? [Math.min(...accuracy), Math.max(...accuracy)] : [0, 1];
  const [floor, ceiling] = [Math.max(0, Math.floor(100 * low - 0.5) / 100), Math.min(1, Math.ceil(100 * high + 0.5) / 100)];
  spark("spark-accuracy", seconds.accuracy, floor, ceiling, (value) => `${(100 * value).toFixed(1)} %`);
  write("accuracy-scale", accuracy.length ? (percent(low) === percent(high) ? percent(low) : `${percent(low)} to ${percent(high)}`) : "–");
}

function valueBar(node, most) {
  const bar = svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  const width = most > 0 ? Math.max(0, (100 * node.value) / most) : 0;
  bar.append(svg("rect", { width, height: 10, class: node.state === "up" ? "" : "gone" }));
  return bar;
}

function table(state) {
  const most = Math.max(0, ...state.nodes.map((node) => node.value));
  byId("nodes").replaceChildren(...state.nodes.map((node) => {
    const shape = svg("svg", { viewBox: "-10 -10 20 20", "aria-hidden": "true" });
    shape.append(svg("use", { href: `#shape-${look(node)}` }));
    const share = node.answered_share === null ? "–" : `${(100 * node.answered_share).toFixed(1)} %`;
    const number = (text) => html("td", { class: "number" }, text);
    return html("tr", { "data-node": node.id, "data-state": word(node) },
      html("td", {}, node.id),
      html("td", { title: heard(node) }, shape, word(node), html("span", { class: "note" }, node.heard_s === null ? "" : ` ${span(node.heard_s)} ago`)),
      number(String(node.part)),
      html("td", {}, valueBar(node, most), points(node.value)),
      number(millis(node.latency_p50_s)), number(millis(node.latency_p99_s)), number(share),
      number(megabytes(node.rss_bytes)), html("td", {}, node.version || "–"), html("td", {}, node.address));
  }));
}

// Nodes that do not answer: since when, why, and what helps.
function down(state) {
  const advice = (node, reason) => {
    if (node.state === "unknown") return `It has never answered: start its process, and check that ${node.address} is its address.`;
    if (/quarantine|contradict/.test(reason)) return "Check its sensor and its student; it returns when it answers known inputs correctly.";
    if (/bundle/.test(reason)) return "It runs another bundle: give it the served one (nonn fleet push, or restart it).";
    if (/silent|deadline/.test(reason)) return `It does not answer in time: check that its process runs at ${node.address}, its load and its link.`;
    if (!byId("switches").hidden) return "Switch it on, or press r in the terminal of nonn up.";
    return `Start its process again at ${node.address}, or check its power and its link.`;
  };
  const list = state.nodes.filter((node) => node.state !== "up").map((node) => {
    const fault = state.faults.find((each) => each.node === node.id && each.before === "up")
      || state.faults.find((each) => each.node === node.id);
    const since = fault ? ` since ${clock(fault.time)}` : "";
    const reason = fault && fault.reason ? ` (${fault.reason})` : "";
    return html("li", {}, html("b", {}, `${node.id}`), ` is ${node.state}${since}${reason}, ${heard(node)}. ${advice(node, fault ? fault.reason : "")}`);
  });
  byId("down").hidden = !list.length;
  byId("down-list").replaceChildren(...list);
}

function faults(state) {
  const list = state.faults.map((fault) => {
    const change = fault.before ? `${fault.before} → ${fault.after || "removed"}` : fault.after;
    const reason = fault.reason ? `: ${fault.reason}` : "";
    return html("li", {}, html("time", { datetime: new Date(1000 * fault.time).toISOString() }, clock(fault.time)),
      `${fault.node || "all nodes"} ${change}${reason}`);
  });
  byId("faults").replaceChildren(...(list.length ? list : [html("li", {}, "None since the start.")]));
}

function show(state) {
  if (state.accuracy.samples) digits = Math.max(0, Math.min(2, Math.ceil(Math.log10(state.accuracy.samples)) - 2));
  document.title = `${percent(state.accuracy.now)} · nonn ${state.experiment}`;
  write("experiment", `${state.experiment}, bundle ${state.bundle.slice(0, 12)}`);
  write("headline", headline(state));
  const bad = state.drift.alarms;
  byId("drift").hidden = !bad.length;
  write("drift", `${bad.join(", ")} ${bad.length === 1 ? "answers" : "answer"} but no longer ${bad.length === 1 ? "agrees" : "agree"} with the other nodes as built: check sensor, weights and inputs.`);
  tiles(state);
  picture(state);
  sparks(state.requests.seconds);
  table(state);
  down(state);
  faults(state);
  const watching = state.drift.watching ? "watching for drift" : `not watching for drift: ${state.drift.reason}`;
  write("footer", `nonn ${state.version}, up for ${Math.round(state.uptime_s)} s, ${watching}`);
}

// When the last state came; the page says how old it is.
let shownAt = 0;
let latest = null;

function age() {
  if (shownAt) write("age", `State of ${new Date(shownAt).toLocaleTimeString()}, ${Math.round((Date.now() - shownAt) / 1000)} s old`);
}

async function refresh() {
  try {
    const response = await fetch("api/state", { signal: AbortSignal.timeout(5 * EVERY_MS) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    latest = await response.json();
    shownAt = Date.now();
    show(latest);
    document.dispatchEvent(new CustomEvent("state", { detail: latest }));
    byId("lost").hidden = true;
  } catch (error) {
    if (byId("lost").hidden) write("lost", `The aggregator has not answered since ${new Date().toLocaleTimeString()}; the page shows the last state.`);
    byId("lost").hidden = false;
  }
  age();
  setTimeout(refresh, EVERY_MS);
}

// One bar for each window: as high as its stated accuracy, hollow where too few units sensed.
const STRIP = 120;
const strip = [];

function sensed(answer) {
  strip.push(answer);
  if (strip.length > STRIP) strip.shift();
  byId("answers").hidden = false;
  const shown = answer.smoothed || answer;
  const accuracy = `${percent(shown.expected_accuracy)}${between(shown.interval)}`;
  write("answer-now", answer.label ? `${shown.label}, ${accuracy} with ${answer.devices.length} units` : "no unit senses");
  write("answer-missing", Object.entries(answer.missing).map(([node, why]) => `${node}: ${why}`).join("; "));
  byId("strip").replaceChildren(...strip.map((each, i) => {
    const height = each.label ? 58 * each.expected_accuracy : 58;
    const bar = svg("rect", { x: 5 * i, y: 59 - height, width: 4, height, class: each.label ? "sensed" : "unsensed" });
    bar.append(svg("title", {}, `${clock(each.time)} ${each.label || "no answer"}, ${percent(each.expected_accuracy)}`));
    return bar;
  }));
}

async function follow() {
  const response = await fetch("api/sensing").catch(() => null);
  if (!response || !response.ok || !("hop_s" in await response.json())) return;
  const source = new EventSource("api/answers");
  source.onopen = () => { strip.length = 0; };  // the stream begins with the last answers
  source.onmessage = (event) => sensed(JSON.parse(event.data));
}

follow();
refresh();
