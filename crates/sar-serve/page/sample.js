// The tab Sample.

import { $, anySeed, climb, ladder, make, numberOf, picture, say, slide, tell } from "./api.js";
import { cancel, leave } from "./backend.js";
import { draw as drawn } from "./jobs.js";

const MANY = 24;
const MOST_CHIPS = 60;
const MOST_CARDS = 240;

const DOWN = "M10 3v10M5.5 9 10 13.5 14.5 9M4 17h12";
const PEN = "M4 16l.8-3.2L13.6 4l2.4 2.4-8.8 8.8L4 16z";
const icon = (path) => make("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, make("path", { d: path }));

export function startSample(model, edit) {
  const { classes, sampler, limits } = model;
  let chosen = classes.length ? 0 : null;
  let running = null;
  let isBusy = false;
  let command = "";
  /** Addresses of the pictures of now, which live until the next are there. */
  let hung = [];

  // Classes
  const radio = (index, name) => {
    const input = make("input", { type: "radio", name: "class", value: index ?? "", checked: index === chosen });
    input.addEventListener("change", () => (chosen = index));
    return make("label", {}, input, make("span", {}, name));
  };
  function chips(query = "") {
    const wanted = query.trim().toLowerCase();
    const found = classes
      .map((name, i) => [i, name])
      .filter(([i, name]) => name.toLowerCase().includes(wanted) || String(i) === wanted);
    const shown = found.slice(0, MOST_CHIPS);
    // The chosen one stays in sight.
    if (chosen != null && !shown.some(([i]) => i === chosen)) shown.unshift([chosen, classes[chosen]]);
    $("classes").replaceChildren(
      ...shown.map(([i, name]) => radio(i, name)),
      radio(null, "No class"),
    );
    const hidden = found.length - Math.min(found.length, MOST_CHIPS);
    $("class-hint").hidden = hidden === 0 && found.length > 0;
    $("class-hint").textContent = found.length ? `${hidden} more; search for them.` : "No class of that name.";
  }
  $("class-search-field").hidden = classes.length <= MANY;
  $("class-search").addEventListener("input", () => chips($("class-search").value));
  chips();
  const nameOf = (index) => (index == null ? "no class" : classes[index]);

  // Settings
  const outputs = [["guidance", 1], ["top-p", 2]];
  const show = () => outputs.forEach(([id, digits]) => {
    const value = numberOf(id);
    const text = value.toFixed(digits);
    $(`${id}-out`).textContent = id === "top-p" && value === 0 ? "all" : Number(text) === value ? text : String(value);
  });
  $("guidance").max = Math.max(10, 2 * sampler.guidance);
  $("count").max = limits.count;
  function reset() {
    slide("guidance", sampler.guidance);
    slide("top-p", sampler.top_p);
    $("top-k").value = sampler.top_k;
    $("scales").value = model.scales;
    $("size").value = `${model.height}x${model.width}`;
    $("more-smooth").checked = false;
    show();
  }
  reset();
  outputs.forEach(([id]) => $(id).addEventListener("input", show));
  $("reset").addEventListener("click", reset);
  const option = (value) => make("option", { value });
  $("scale-presets").append(...[model.scales, ...model.presets].map(option));
  const { unit } = model;
  const sides = [0.5, 1, 1.5, 2].map((x) => Math.round((model.height * x) / unit) * unit).filter((side) => side >= unit);
  $("sizes").append(...sides.map((side) => option(`${side}x${side}`)),
    option(`${model.height}x${2 * model.width}`), option(`${2 * model.height}x${model.width}`));
  if (model.fixed_scales) $("scales").disabled = $("size").disabled = true;
  $("dice").addEventListener("click", () => ($("seed").value = anySeed()));

  // What differs from the weights' own is said; the rest is theirs.
  function settings() {
    const unless = (value, own) => (value == null || value === own ? null : value);
    const size = $("size").value.replaceAll(/\s/g, "");
    const scales = $("scales").value.trim();
    const own = `${model.height}x${model.width}`;
    return {
      class: chosen == null ? null : String(chosen),
      seed: Number($("seed").value),
      count: Number($("count").value),
      guidance: unless(numberOf("guidance"), sampler.guidance),
      top_k: unless(numberOf("top-k"), sampler.top_k),
      top_p: unless(numberOf("top-p"), sampler.top_p),
      more_smooth: $("more-smooth").checked,
      // Scales that are said have a size of their own.
      scales: scales === "" || scales === model.scales ? null : scales,
      size: size === "" || size === own ? null : size,
    };
  }
  function use(said) {
    chosen = said.class == null ? null : Number(said.class);
    chips($("class-search").value);
    $("classes").querySelector(":checked")?.parentElement.scrollIntoView({ block: "nearest", inline: "center" });
    reset();
    $("seed").value = said.seed;
    $("count").value = said.count;
    $("new-seed").checked = false;
    if (said.guidance != null) slide("guidance", said.guidance);
    if (said.top_k != null) $("top-k").value = said.top_k;
    if (said.top_p != null) slide("top-p", said.top_p);
    if (said.scales != null) $("scales").value = said.scales;
    if (said.size != null) $("size").value = said.size;
    $("more-smooth").checked = said.more_smooth;
    show();
  }

  // The pictures of now
  const tiles = $("tiles");
  function layOut(count, height = model.height, width = model.width) {
    const columns = Math.ceil(Math.sqrt(count));
    tiles.style.setProperty("--columns", columns);
    tiles.classList.toggle("one", count === 1);
    tiles.classList.toggle("many", count > 4);
    tiles.replaceChildren(...Array.from({ length: count }, () => {
      const tile = make("div", { class: "tile waiting" });
      tile.style.aspectRatio = `${width} / ${height}`;
      return tile;
    }));
  }
  function hang(urls, alt) {
    urls.forEach((url, i) => {
      const tile = tiles.children[i];
      const there = tile.querySelector("img");
      if (there) [there.src, there.alt] = [url, alt(i)];
      else tile.replaceChildren(picture(url, alt(i)));
      tile.classList.remove("waiting");
    });
  }
  const describe = (said) => {
    const parts = [nameOf(said.class == null ? null : Number(said.class)), `seed ${said.seed}`];
    if (said.guidance != null) parts.push(`guidance ${said.guidance}`);
    if (said.top_k != null) parts.push(`top-k ${said.top_k}`);
    if (said.top_p != null) parts.push(`top-p ${said.top_p}`);
    if (said.size != null) parts.push(said.size);
    if (said.scales != null) parts.push(`scales ${said.scales}`);
    if (said.more_smooth) parts.push("smoother");
    return parts.join(" · ");
  };

  function busy(is) {
    isBusy = is;
    $("now").classList.toggle("busy", is);
    // Whoever is at a button that goes finds the other one.
    if (document.activeElement === $("cancel")) $("draw").focus();
    $("cancel").hidden = !is;
    // A button that is disabled would lose the focus.
    $("draw").setAttribute("aria-disabled", is);
    $("draw").textContent = is ? "Drawing" : "Draw";
  }
  async function draw() {
    if (isBusy) return;
    const said = settings();
    const named = nameOf(chosen);
    const alt = (i) => `${named}, picture ${i + 1} of ${said.count}`;
    busy(true);
    layOut(said.count);
    ladder($("ladder"), said.scales?.includes("_") ? said.scales : model.scales);
    $("caption").textContent = describe(said);
    $("now-actions").hidden = true;
    $("command").hidden = true;
    tell(`Drawing ${said.count} of ${named}`);
    try {
      // An index whatever the names are: some are numbers.
      const request = { ...said, class: said.class == null ? null : `#${said.class}` };
      let job;
      const urls = await drawn("sample", request, {
        job(accepted) {
          job = accepted;
          running = job.id;
        },
        queued: (ahead) => ahead && ($("caption").textContent = `${ahead} before it`),
        begins({ scales, height, width }) {
          $("caption").textContent = describe(said);
          layOut(said.count, height, width);
          ladder($("ladder"), scales);
        },
        scale(scale, of, previews) {
          hang(previews, alt);
          climb($("ladder"), scale, of);
        },
      });
      if (urls == null) {
        layOut(said.count);
        $("caption").textContent = "Canceled";
        tell("Canceled");
        return;
      }
      const files = await Promise.all(urls.map(async (url) => (await fetch(url)).blob()));
      hung.forEach((url) => URL.revokeObjectURL(url));
      hung = files.map((file) => URL.createObjectURL(file));
      hang(hung, alt);
      command = job.command;
      $("now-actions").hidden = false;
      files.forEach((file, i) => card(file, said, i, named));
      tell(`${said.count} pictures of ${named} are done`);
      if ($("new-seed").checked) $("seed").value = anySeed();
    } catch (error) {
      layOut(said.count);
      $("caption").textContent = "";
      say(error.message);
    } finally {
      running = null;
      busy(false);
    }
  }
  $("sample-form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  $("cancel").addEventListener("click", () => {
    if (running) Promise.resolve(cancel(running)).catch((error) => say(error.message));
  });
  // Whoever leaves wants no more.
  addEventListener("pagehide", () => {
    if (running) leave(running);
  });
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      say("The command that draws these pictures is copied.");
    } catch {
      // Without TLS browsers have no clipboard but on this machine: it is shown to be copied by hand.
      const field = $("command");
      field.value = command;
      field.hidden = false;
      field.focus();
      field.select();
      tell("The command is selected, copy it");
    }
  });

  // The gallery
  const cards = [];
  function card(file, said, i, named) {
    const url = URL.createObjectURL(file);
    const what = `${named}, seed ${said.seed}, picture ${i + 1}`;
    const item = make("li", { class: "card" },
      make("button", { type: "button", "aria-label": `Use the settings of ${what}`, title: `${describe(said)}\nClick to use these settings`,
        onclick() {
          use(said);
          tell("The settings are set");
          // The place of the pictures belongs to those that are drawn.
          if (isBusy) return;
          layOut(1, ...(said.size ?? `${model.height}x${model.width}`).split("x").map(Number));
          hang([url], () => what);
          ladder($("ladder"), model.scales);
          $("caption").textContent = `${describe(said)} · its settings are set`;
          $("now-actions").hidden = true;
          $("command").hidden = true;
        } }, picture(url, "")),
      make("div", { class: "bar" }, make("span", {}, named),
        make("span", { class: "tools" },
          make("a", { href: url, download: `${named.replaceAll(/[^\p{L}\p{N}]+/gu, "-").toLowerCase()}-${said.seed}-${i}.png`, "aria-label": `Download ${what}`, title: "Download" }, icon(DOWN)),
          make("button", { type: "button", "aria-label": `Edit ${what}`, title: "Edit",
            onclick: () => edit({ file, named, label: said.class }) }, icon(PEN)))));
    item.dataset.seed = said.seed;
    $("gallery").prepend(item);
    $("gallery-title").hidden = false;
    cards.push([item, url]);
    while (cards.length > MOST_CARDS) {
      const [oldest, address] = cards.shift();
      oldest.remove();
      URL.revokeObjectURL(address);
    }
  }

  layOut(Number($("count").value));
  ladder($("ladder"), model.scales);
  $("caption").textContent = "Choose a class, and draw.";
}
