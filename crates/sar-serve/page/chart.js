// Charts as inline SVG.

import { make } from "./api.js";

const [WIDTH, HEIGHT] = [250, 132];
const [LEFT, RIGHT, TOP, BOTTOM] = [30, 6, 8, 18];

/** Round numbers that cover a range, about `n` of them. */
export function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const raw = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= raw * 0.999);
  const found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step) found.push(Math.abs(x) < step / 1e6 ? 0 : x);
  return found;
}

export function short(x) {
  if (x == null || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && size < 0.001) return x.toExponential(1);
  if (size >= 10000) return `${Math.round(x / 1000)}k`;
  return String(Number(x.toPrecision(size >= 100 ? 4 : 3)));
}

/**
 * Lines over steps or over names.
 * `lines`: [{ points: [[x, y]], style: "a" | "b" | "c", name, faint, shade: 0 to 1 }]; `names`: those of x = 0, 1, 2, …
 */
export function chart(title, lines, { names = null, unit = "" } = {}) {
  const shown = lines.filter(({ points }) => points.length);
  if (!shown.length) return null;
  const all = shown.flatMap(({ points }) => points);
  const range = (i) => all.reduce(([a, b], point) => [Math.min(a, point[i]), Math.max(b, point[i])], [Infinity, -Infinity]);
  let [x0, x1] = names ? [0, names.length - 1] : range(0);
  let [y0, y1] = range(1);
  if (!names && all.length > 24) {
    // A first value far from all others hides what there is to see.
    const high = all.map((point) => point[1]).sort((a, b) => a - b)[Math.floor(0.97 * (all.length - 1))];
    if (y1 - y0 > 3 * (high - y0) && high > y0) y1 = high + 0.15 * (high - y0);
  }
  if (x1 === x0) [x0, x1] = [x0 - 1, x1 + 1];
  const room = y1 === y0 ? Math.max(1e-3, Math.abs(y0) * 0.1) : 0.06 * (y1 - y0);
  [y0, y1] = [y0 - room, y1 + room];
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => TOP + (1 - (Math.min(y, y1) - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);

  const svg = make("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  for (const y of ticks(y0, y1, 4)) {
    svg.append(
      make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }),
      make("text", { x: LEFT - 6, y: py(y) + 3.5, "text-anchor": "end" }, short(y)));
  }
  const marks = names ? names.map((name, i) => [i, name]) : ticks(x0, x1, 4).map((x) => [x, short(x)]);
  for (const [x, name] of marks) {
    svg.append(make("text", { x: px(x), y: HEIGHT - 4, "text-anchor": "middle" }, String(name)));
  }
  for (const { points, style, faint, shade } of shown) {
    svg.append(make("path", { class: faint ? `${style} faint` : style, opacity: shade, d: points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("") }));
    if (!faint && points.length <= 24) {
      svg.append(...points.map(([x, y]) => make("circle", { class: style, opacity: shade, cx: px(x), cy: py(y), r: 2.6 })));
    }
  }
  const told = shown.map(({ points, name }) => {
    const [from, to] = [points[0], points[points.length - 1]];
    const place = (x) => (names ? `scale ${names[x]}` : `step ${short(x)}`);
    return `${name}: ${short(from[1])} at ${place(from[0])}, ${short(to[1])} at ${place(to[0])}`;
  });
  svg.setAttribute("aria-label", `${title}. ${told.join("; ")}`);

  // Of many values the first and the last: all of them have no room.
  const row = (points) => {
    const values = points.map((point) => short(point[1]));
    return values.length > 4 ? `${values[0]} … ${values[values.length - 1]}` : values.join(" / ");
  };
  const end = () => row(shown.map(({ points }) => points[points.length - 1]));
  const value = make("span", { class: "last" }, end() + unit);
  const cross = make("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cross);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0);
    const near = shown.map(({ points }) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best)));
    cross.setAttribute("x1", px(near[0][0]));
    cross.setAttribute("x2", px(near[0][0]));
    cross.setAttribute("visibility", "visible");
    const place = names ? names[near[0][0]] : short(near[0][0]);
    value.textContent = `${place}: ${row(near)}${unit}`;
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    value.textContent = end() + unit;
  });
  const legend = shown.length > 1
    ? make("div", { class: "legend" }, ...shown.map(({ style, name, faint, shade }) =>
        make("span", {}, make("svg", { viewBox: "0 0 20 8", class: "key", "aria-hidden": "true" }, make("line", { class: faint ? `${style} faint` : style, opacity: shade, x1: 1, x2: 19, y1: 4, y2: 4 })), name)))
    : null;
  return make("div", { class: "panel" }, make("div", { class: "title" }, make("h3", {}, title), value), svg, legend);
}
