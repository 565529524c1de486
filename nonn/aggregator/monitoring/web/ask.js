// Pictures and switches: asks /api/predict, and in the page of nonn up switches devices by /api/devices.
"use strict";

const accepted = {};  // what /api/predict accepts
let file = null;
let asking = false;
let againAfter = false;
let nodes = [];
const wanted = new Map();  // node → whether it is to be on, until its state says so or ten seconds have passed

async function json(url, options) {
  const response = await fetch(url, options);
  const body = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(body.error || `status ${response.status}`), { status: response.status });
  return body;
}

function take(picked) {
  if (!picked) return;
  file = picked;
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `the picture ${file.name || "that was pasted"}`;
  preview.hidden = false;
  preview.onload = () => preview.classList.toggle("tiny", preview.naturalWidth <= 128);
  preview.onerror = () => { preview.hidden = true; };
  byId("again").disabled = false;
  ask();
}

async function ask() {
  if (!file) return;
  if (asking) { againAfter = true; return; }
  asking = true;
  byId("again").disabled = true;
  try {
    if (file.size > accepted.max_bytes) throw new Error(`The picture has ${megabytes(file.size)}; the limit is ${megabytes(accepted.max_bytes)}.`);
    const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "image/unknown" };
    if (byId("token").value) headers.Authorization = `Bearer ${byId("token").value}`;
    shown(await json(`api/predict${byId("resize").checked ? "?resize" : ""}`, { method: "POST", headers, body: file }));
  } catch (error) {
    if (error.status === 401) { byId("token-line").hidden = false; byId("token").focus(); }
    write("answer-error", error.message);
    byId("answer-error").hidden = false;
    byId("answer-found").hidden = byId("answer-none").hidden = true;
  }
  byId("again").disabled = asking = false;
  if (againAfter) { againAfter = false; ask(); }
}

function shown(answer) {
  byId("answer-error").hidden = byId("answer-none").hidden = true;
  byId("answer-found").hidden = false;
  write("answer-class", answer.class);
  write("answer-confidence", `confidence ${percent(answer.confidence)}`);
  const range = answer.expected_accuracy_interval;
  const between = range ? ` (95 %: ${percent(range[0])} to ${percent(range[1])})` : "";
  write("answer-devices", `${answer.answered.length} of ${answer.devices} devices answered in ${millis(answer.latency_s)}; ${answer.expected_accuracy_estimated ? `expected accuracy, estimated from other sets of ${answer.answered.length}` : "expected accuracy of exactly these"}: ${percent(answer.expected_accuracy)}${between}`);
  byId("answer-chips").replaceChildren(...Array.from({ length: answer.devices }, (_, i) => {
    const there = answer.answered.includes(i);
    const shape = svg("svg", { viewBox: "-10 -10 20 20", "aria-hidden": "true" });
    shape.append(svg("use", { href: there ? "#shape-up" : "#shape-out" }));
    return html("li", { "data-device": i, "data-answered": there, title: there ? "in the answer" : "missing" }, shape, `${i}`,
      html("span", { class: "hidden" }, there ? " answered" : " missing"));
  }));
  write("answer-why", Object.entries(answer.failures).map(([node, why]) => `${node}: ${why}`).join("; "));
}

// Buttons stay the same elements, so that the keyboard's focus stays where it is.
function chips() {
  const group = byId("switch-chips");
  if (group.children.length !== nodes.length || nodes.some((node, i) => group.children[i].dataset.node !== node.id)) {
    group.replaceChildren(...nodes.map((node) => {
      const button = html("button", { type: "button", role: "switch", "data-node": node.id });
      button.onclick = () => flip(node.id);
      return button;
    }));
  }
  nodes.forEach((node, i) => {
    const button = group.children[i];
    const known = wanted.get(node.id);
    const on = known ? known.on : node.state === "up";
    button.setAttribute("aria-checked", String(on));
    const text = `${node.id} ${known ? (on ? "starts …" : "stops …") : on ? "on" : "off"}`;
    if (button.textContent !== text) button.textContent = text;
  });
}

async function flip(id) {
  if (wanted.has(id)) return;
  const on = nodes.find((node) => node.id === id).state !== "up";
  wanted.set(id, { on, until: Infinity });
  chips();
  try {
    await json(`api/devices/${encodeURIComponent(id)}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Nonn-Switch-Token": new URLSearchParams(location.hash.slice(1)).get("switch") || "" },
      body: JSON.stringify({ on }),
    });
    wanted.set(id, { on, until: Date.now() + 10000 });
    write("switch-note", `${id} is ${on ? "on" : "off"}.${file ? " The picture was asked again." : ""}`);
    ask();
  } catch (error) {
    wanted.delete(id);
    write("switch-note", error.message);
  }
  chips();
}

document.addEventListener("state", (event) => {
  nodes = event.detail.nodes;
  for (const node of nodes) {
    const known = wanted.get(node.id);
    if (known && ((node.state === "up") === known.on || Date.now() > known.until) && known.until !== Infinity) {
      wanted.delete(node.id);
      if (known.on) ask();
    }
  }
  if (!byId("switches").hidden) chips();
});

async function begin() {
  Object.assign(accepted, await json("api/predict").catch(() => ({ images: false })));
  byId("ask").hidden = !accepted.images;
  if (accepted.images) {
    const [channels, height, width] = accepted.shape;
    byId("resizing").hidden = accepted.sized;
    byId("token-line").hidden = !accepted.token;
    byId("ask-form").hidden = accepted.certificate;
    if (accepted.certificate) write("answer-none", "This cluster answers clients with a certificate only, and this page is plain HTTP, where a browser shows none. Send pictures with nonn predict --tls, or start nonn serve with --http-tls.");
    write("accepts", `${accepted.sized ? "Any size, prepared as in training for" : "Exactly"} ${width}×${height} pixels, ${channels === 1 ? "grey" : "colour"}`);
    byId("file").onchange = (event) => take(event.target.files[0]);
    byId("resize").onchange = ask;
    byId("ask-form").onsubmit = (event) => { event.preventDefault(); ask(); };
    const drop = byId("drop");
    for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
    drop.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
    document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  }
  if (accepted.switches) {
    byId("switches").hidden = false;
    if (!location.hash.includes("switch=")) write("switch-note", "To switch devices, open the address that nonn up prints, with all that follows #.");
    chips();
  }
}

begin();
