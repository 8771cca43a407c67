"use strict";
// Plots, drawn by Vega-Lite in the colors of the theme.

const root = document.documentElement;
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const specs = read("specs"), data = read("data"), reference = read("reference");
const drawn = new Map(); // element -> function that draws its plot again
const dark = () => root.dataset.theme === "dark";

function draw(element, spec) {
  const style = getComputedStyle(root), color = (name) => style.getPropertyValue(name).trim();
  const ink = color("--ink"), soft = color("--soft"), line = color("--line");
  const config = {
    background: "transparent", font: "system-ui, sans-serif",
    view: { stroke: "transparent" },
    axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 500 },
    legend: { labelColor: ink, titleColor: soft, labelLimit: 120 },
    text: { color: ink }, line: { color: color("--accent") }, point: { color: color("--accent") },
    range: { category: dark()
      ? ["#8fb0ff", "#f2a65a", "#7fd89a", "#ff9d93", "#c9a2ff", "#67d3dc", "#f0c765", "#b9c0c8", "#ff8fc7"]
      : ["#2f5fd0", "#c8660a", "#1c7c3c", "#b3362b", "#7a3fc0", "#0c7b87", "#8a6100", "#5b6068", "#b0307a"] },
  };
  drawn.set(element, () => draw(element, spec));
  const schema = "https://vega.github.io/schema/vega-lite/v6.json"; // a name, never fetched
  return vegaEmbed(element, { $schema: schema, config, ...spec }, { actions: false, ast: true, renderer: "svg" })
    .catch((error) => { element.textContent = "This plot cannot be drawn: " + error.message; console.error(error); });
}

// Names beside the points where there is room for them, else below the plot
function uncrowded(spec) {
  if (innerWidth >= 640 && spec.data.values.length <= 7) return spec;
  const color = { ...spec.encoding.color, title: null, legend: { orient: "bottom", columns: innerWidth < 640 ? 2 : 4 } };
  return { ...spec, layer: spec.layer.filter((layer) => layer.mark.type !== "text"), encoding: { ...spec.encoding, color } };
}

function drawCosts(units) {
  const show = (name) => {
    for (const button of $$("button", units)) button.setAttribute("aria-pressed", String(button.textContent === name));
    draw($("#cost-chart"), uncrowded(specs.cost[name]));
  };
  for (const name of Object.keys(specs.cost)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => show(name));
    units.append(button);
  }
  if (units.firstChild) show(units.firstChild.textContent);
}

// A sample's curves by a method; in words where there are none or nothing was optimized
function drawCurves(sample, method) {
  const panels = $(".curves", sample), without = $(".uncurved", sample);
  if (!panels) return;
  const { curves, queries } = data[sample.dataset.id];
  const rows = curves[method], asked = queries[method];
  panels.hidden = !rows || rows.length < 2;
  without.hidden = !panels.hidden;
  if (panels.hidden) {
    without.textContent = rows
      ? `${method} took no step here: the loss of the one-step prediction was ${rows[0]?.loss?.toPrecision(2)} from the start.`
      : `${method} optimizes nothing, so that it has no curves.`;
    return;
  }
  draw($(".chart.loss", sample), { ...specs.loss[method], data: { values: rows } });
  const values = rows.flatMap((row) => Object.keys(row).filter((name) => name.startsWith("p_yes_")).map((name, number) => ({
    step: row.step, p: row[name], question: name.slice(6).replace("_", " "), text: asked[number] || "",
  })));
  draw($(".chart.questions-chart", sample), { ...specs.questions, data: { values } });
}
