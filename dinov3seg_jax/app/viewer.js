// Draws what `view.py` packed: opacity, toggles, colours and the threshold change the drawing here, and ask nothing.
// Everything that a person typed reaches the page as text, never as HTML.
const NO_DATA = 65535, STEPS = 10000;
const state = { token: "", view: null, panes: [], opacity: 0.55, threshold: 0, heat: "", hidden: new Set(), colors: new Map() };
const find = (name) => element.querySelector("." + name);
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint16Array(await new Response(stream).arrayBuffer());
}

function undo(differences, width) {
  for (let i = 0; i < differences.length; i++) if (i % width) differences[i] += differences[i - 1];
  return differences;
}

const colorOf = (pane, place) => state.colors.get(pane.classes[place].name) || pane.classes[place].color;
const numbers = (color) => [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16));
const isHidden = (name) => state.hidden.has(name);

function draw(pane) {
  const { width, height } = state.view;
  pane.canvas.width = width;
  pane.canvas.height = height;
  const context = pane.canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const packed = (rgb) => (255 << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0];
  if (pane.heat) {
    const { data, width: w, height: h } = pane.heat;
    const ramp = Array.from({ length: 256 }, (_, level) => packed(warmth(level / 255)));
    const most = Math.max(pane.heat.most, 1);
    for (let y = 0; y < height; y++) {
      const row = Math.floor(((2 * y + 1) * h) / (2 * height)) * w;
      for (let x = 0; x < width; x++) {
        const score = data[row + Math.floor(((2 * x + 1) * w) / (2 * width))];
        out[y * width + x] = ramp[Math.min(255, Math.round((255 * score) / most))];
      }
    }
  } else {
    const colors = pane.classes.map((one, place) => (isHidden(one.name) ? 0 : packed(numbers(colorOf(pane, place)))));
    const grey = isHidden("") ? 0 : packed(numbers(state.view.unknown.color));
    const limit = state.threshold * (STEPS / 100);
    for (let i = 0; i < out.length; i++) {
      const label = pane.labels[i];
      if (label !== NO_DATA) out[i] = pane.scores[i] < limit ? grey : colors[label];
    }
  }
  context.putImageData(image, 0, 0);
  pane.canvas.style.opacity = state.opacity;
}

// From black over violet and orange to pale yellow: as light grows, so does the score, for the colour-blind too.
function warmth(level) {
  const stops = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const place = Math.min(level * 4, 3.999), first = Math.floor(place), part = place - first;
  return stops[first].map((value, channel) => Math.round(value + (stops[first + 1][channel] - value) * part));
}

function legend(pane) {
  const rows = pane.classes.map((one, place) => ({ name: one.name, place, pixels: one.counts[state.threshold] }));
  const valid = pane.classes.reduce((sum, one) => sum + one.counts[0], 0);
  const known = rows.reduce((sum, row) => sum + row.pixels, 0);
  rows.sort((a, b) => b.pixels - a.pixels || a.place - b.place);
  if (known < valid) rows.push({ name: "", place: -1, pixels: valid - known });
  pane.list.replaceChildren(...rows.map((row) => entry(pane, row, valid)));
}

function entry(pane, row, valid) {
  const item = make("li", isHidden(row.name) ? "off" : "");
  const label = make("label");
  const box = make("input");
  box.type = "checkbox";
  box.checked = !isHidden(row.name);
  box.title = "show this class";
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(row.name);
    else state.hidden.add(row.name);
    redraw();
  });
  const swatch = make("input");
  swatch.type = "color";
  swatch.value = row.place < 0 ? state.view.unknown.color : colorOf(pane, row.place);
  swatch.disabled = row.place < 0;
  swatch.title = "change the colour";
  swatch.addEventListener("input", () => {
    state.colors.set(row.name, swatch.value);
    state.panes.forEach(draw);
  });
  swatch.addEventListener("change", redraw);
  const share = valid ? (100 * row.pixels) / valid : 0;
  const shown = row.pixels && share < 0.1 ? "< 0.1 %" : share.toFixed(1) + " %";
  label.append(box, make("span", "name", row.place < 0 ? state.view.unknown.name : row.name));
  item.append(swatch, label, make("span", "share", shown));
  return item;
}

function readOut(event) {
  const canvas = event.currentTarget, box = canvas.getBoundingClientRect();
  const { width, height } = state.view;
  const x = Math.floor(((event.clientX - box.left) / box.width) * width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * height);
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const i = y * width + x;
  for (const pane of state.panes) {
    const label = pane.labels[i];
    let text = "no data";
    if (pane.heat) {
      const { data, width: w, height: h, name } = pane.heat;
      const place = Math.floor(((2 * y + 1) * h) / (2 * height)) * w + Math.floor(((2 * x + 1) * w) / (2 * width));
      text = name + ": " + (data[place] / STEPS).toFixed(3);
    } else if (label !== NO_DATA) {
      const score = (pane.scores[i] / STEPS).toFixed(3), name = pane.classes[label].name;
      const below = pane.scores[i] < state.threshold * (STEPS / 100);
      text = below ? state.view.unknown.name + " (" + name + ": " + score + ")" : name + ": " + score;
    }
    pane.tip.textContent = text;
    pane.tip.hidden = false;
    const right = x > width / 2;
    pane.tip.style.left = right ? "" : (100 * x) / width + "%";
    pane.tip.style.right = right ? 100 - (100 * x) / width + "%" : "";
    pane.tip.style.top = (100 * y) / height + "%";
    pane.tip.classList.toggle("above", y > height / 2);
  }
}

async function choose(name) {
  state.heat = name;
  for (const pane of state.panes) {
    const place = pane.classes.findIndex((one) => one.name === name);
    pane.heat = null;
    if (name && place >= 0) {
      const token = state.token;
      say("asking for the scores of " + name + " ...");
      const found = await server.heat([token, pane.number, place]);
      if (token !== state.token || name !== state.heat) return;
      say(found.error || "");
      if (found.error) continue;
      const data = undo(await unpack(found.data), found.width);
      pane.heat = { data, width: found.width, height: found.height, name, most: data.reduce((a, b) => Math.max(a, b), 0) };
    }
  }
  const shown = state.panes.map((pane) => pane.heat).filter(Boolean);
  find("scale").hidden = !shown.length;
  find("most").textContent = shown.length ? (Math.max(...shown.map((heat) => heat.most)) / STEPS).toFixed(3) : "";
  const most = Math.max(...shown.map((heat) => heat.most));
  shown.forEach((heat) => (heat.most = most));
  redraw();
}

function say(sentence) {
  const notice = find("notice");
  notice.textContent = sentence;
  notice.hidden = !sentence;
}

function redraw() {
  state.panes.forEach((pane) => {
    draw(pane);
    legend(pane);
  });
}

async function paneOf(result, number) {
  const pane = { ...result, number, heat: null };
  const whole = await unpack(result.map);
  const pixels = state.view.width * state.view.height;
  pane.labels = whole.subarray(0, pixels);
  pane.scores = undo(whole.subarray(pixels), state.view.width);
  return pane;
}

function place(pane) {
  const figure = make("figure");
  const stack = make("div", "stack");
  const picture = make("img");
  picture.src = state.view.picture;
  picture.alt = "the picture";
  stack.append(picture);
  if (state.view.width < 500) stack.classList.add("small");
  stack.style.setProperty("--ratio", state.view.width / state.view.height);
  if (pane) {
    if (state.panes.length > 1) figure.append(make("figcaption", "", pane.title));
    pane.canvas = make("canvas");
    pane.tip = make("div", "tip");
    pane.tip.hidden = true;
    pane.list = make("ul", "legend");
    pane.canvas.addEventListener("pointermove", readOut);
    pane.canvas.addEventListener("pointerdown", readOut);
    pane.canvas.addEventListener("pointerleave", () => state.panes.forEach((one) => (one.tip.hidden = true)));
    stack.append(pane.canvas, pane.tip);
  }
  figure.append(stack);
  if (pane) figure.append(pane.list);
  return figure;
}

function option(value, text) {
  const made = make("option", "", text);
  made.value = value;
  return made;
}

async function update() {
  const token = props.value || "";
  state.token = token;
  say("");
  if (!token) return show(null, []);
  const view = await server.view(token);
  if (token !== state.token) return;
  if (view.error) {
    show(null, []);
    return say(view.error);
  }
  state.view = view;
  state.hidden.clear();
  state.heat = "";
  try {
    show(view, await Promise.all(view.results.map(paneOf)));
  } catch (error) {
    say("this browser cannot draw the answer (" + error + "); use a newer one");
  }
}

function show(view, panes) {
  state.panes = panes;
  find("empty").hidden = Boolean(view);
  find("tools").hidden = !panes.length;
  find("scale").hidden = true;
  const figures = view ? (panes.length ? panes.map(place) : [place(null)]) : [];
  find("panes").replaceChildren(...figures);
  find("panes").classList.toggle("two", panes.length > 1);
  const names = [...new Set(panes.flatMap((pane) => pane.classes.map((one) => one.name)))];
  find("heat").replaceChildren(option("", "best class"), ...names.map((name) => option(name, "score of " + name)));
  find("heatbox").hidden = !names.length;
  redraw();
  if (panes.length && window.innerWidth < 800) element.scrollIntoView({ behavior: "smooth", block: "start" });
}

find("opacity").addEventListener("input", (event) => {
  state.opacity = event.target.value / 100;
  state.panes.forEach((pane) => (pane.canvas.style.opacity = state.opacity));
});
find("threshold").addEventListener("input", (event) => {
  state.threshold = Number(event.target.value);
  find("threshold-value").textContent = (state.threshold / 100).toFixed(2);
  redraw();
});
find("heat").addEventListener("change", (event) => choose(event.target.value));

// A file that is dropped anywhere on the view is the next picture.
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", async (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (!file) return;
  say("uploading " + file.name + " ...");
  try {
    trigger("dropped", { path: (await upload(file)).path });
    say("");
  } catch (error) {
    say(file.name + " was not taken (" + error.message + ")");
  }
});

// What a download is drawn with.
window.dinov3seg = {
  drawing: () =>
    JSON.stringify({
      opacity: state.opacity,
      min_confidence: state.threshold / 100,
      colors: Object.fromEntries(state.colors),
    }),
};
watch("value", update);
update();
