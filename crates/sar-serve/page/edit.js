// The tab Edit: a picture, a mask, and what is drawn anew.

import { $, anySeed, climb, ladder, make, numberOf, picture, say, tell } from "./api.js";
import { cancel, leave } from "./backend.js";
import { draw as drawn } from "./jobs.js";

const LONGEST = 1024;
const MOST_UNDO = 30;
const HINTS = {
  inpaint: "Paint what is to be drawn anew; the rest stays.",
  expand: "The picture grows by these margins, which are drawn.",
  refine: "Details are drawn anew, the layout stays. Choose a larger size in the tab Sample.",
};
const SIDES = ["left", "top", "right", "bottom"];

export function startEdit(model) {
  const canvas = $("canvas");
  const mask = $("mask");
  const pen = mask.getContext("2d", { willReadFrequently: true });
  let loaded = false;
  let name = "picture";
  let running = null;
  /** Addresses of the results, which live until the next are there. */
  let hung = [];
  let isBusy = false;
  const undo = [];

  $("edit-classes").append(...model.classes.map((value) => make("option", { value })));
  // The name where it means the class, else the index.
  const queryOf = (label) => model.classes.indexOf(model.classes[label]) === label ? model.classes[label] : `#${label}`;
  $("edit-count").max = model.limits.count;
  $("canvas-frame").classList.add("empty");
  ladder($("edit-ladder"), model.scales);

  const mode = () => document.querySelector("input[name=mode]:checked").value;
  function showMode() {
    const now = mode();
    // Fields that nobody sees are not checked either.
    for (const other of Object.keys(HINTS)) $(`${other}-tools`).hidden = $(`${other}-tools`).disabled = other !== now;
    $("mode-hint").textContent = HINTS[now];
    mask.hidden = now !== "inpaint";
    $("easel").classList.toggle("painting", loaded && now === "inpaint");
    showSize();
  }
  document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", showMode));
  const margins = () => SIDES.map((side) => numberOf(`margin-${side}`) ?? 0);
  SIDES.forEach((side) => $(`margin-${side}`).addEventListener("input", showSize));
  function showSize() {
    if (!loaded) return;
    const { width, height } = canvas;
    const [left, top, right, bottom] = margins();
    const grown = mode() === "expand" ? `, to become ${width + left + right} x ${height + top + bottom}` : "";
    $("canvas-caption").textContent = `${name}, ${width} x ${height} pixels${grown}`;
  }

  // The picture
  async function load(file, as) {
    let image;
    try {
      image = await createImageBitmap(file);
    } catch {
      say("This file is no picture that the browser can read.");
      return;
    }
    // What is drawn of the picture before has no place any more.
    stop();
    const { sent_pixels: most } = model.limits;
    const shrink = Math.min(1, LONGEST / Math.max(image.width, image.height), Math.sqrt(most / (image.width * image.height)));
    const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * shrink)));
    for (const one of [canvas, mask]) [one.width, one.height] = [width, height];
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, width, height);
    const isSmall = Math.max(width, height) <= 256;
    for (const one of [canvas, mask]) one.classList.toggle("pixels", isSmall);
    loaded = true;
    name = as;
    undo.length = 0;
    $("nothing").hidden = true;
    $("canvas-frame").classList.remove("empty");
    canvas.setAttribute("aria-label", `${as}, ${width} by ${height} pixels`);
    $("edit-draw").disabled = false;
    const corners = { left: width / 4, top: height / 4, right: (3 * width) / 4, bottom: (3 * height) / 4 };
    for (const side of SIDES) {
      $(`box-${side}`).value = Math.round(corners[side]);
      $(`margin-${side}`).value = ["left", "right"].includes(side) ? Math.round(width / 4) : 0;
    }
    $("result").hidden = true;
    showMode();
    tell(`${as} is there`);
  }
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    if (file) load(file, file.name);
    $("file").value = "";
  });
  const panel = $("panel-edit");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    // Wherever it falls: beside the panel the browser would open the file in the place of the page.
    addEventListener(kind, (event) => {
      if (panel.hidden || !event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      $("easel").classList.toggle("over", kind === "dragover");
      const [file] = kind === "drop" ? event.dataTransfer.files : [];
      if (file) load(file, file.name);
    });
  }
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
    if (file && !panel.hidden) load(file, "pasted picture");
  });

  // The mask
  const showBrush = () => ($("brush-out").textContent = `${$("brush").value} %`);
  $("brush").addEventListener("input", showBrush);
  showBrush();
  const remember = () => {
    undo.push(pen.getImageData(0, 0, mask.width, mask.height));
    if (undo.length > MOST_UNDO) undo.shift();
  };
  const color = () => getComputedStyle(document.documentElement).getPropertyValue("--accent");
  function painted(draw) {
    pen.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
    pen.fillStyle = pen.strokeStyle = color();
    draw();
    pen.globalCompositeOperation = "source-over";
  }
  let last = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * mask.width, ((event.clientY - box.top) / box.height) * mask.height];
  };
  const radius = () => Math.max(0.5, (Number($("brush").value) / 200) * Math.min(mask.width, mask.height));
  function stroke(to) {
    painted(() => {
      pen.lineWidth = 2 * radius();
      pen.lineCap = pen.lineJoin = "round";
      pen.beginPath();
      pen.moveTo(...last);
      pen.lineTo(...to);
      pen.stroke();
      pen.beginPath();
      pen.arc(...to, radius(), 0, 2 * Math.PI);
      pen.fill();
    });
    last = to;
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (!loaded || mode() !== "inpaint" || event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    remember();
    last = at(event);
    stroke(last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last) for (const one of event.getCoalescedEvents?.() ?? [event]) stroke(at(one));
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (last = null));
  $("undo").addEventListener("click", () => {
    const before = undo.pop();
    if (before) pen.putImageData(before, 0, 0);
  });
  $("clear").addEventListener("click", () => {
    if (loaded) remember();
    pen.clearRect(0, 0, mask.width, mask.height);
  });
  $("add-box").addEventListener("click", () => {
    if (!loaded) return say("Choose a picture first.");
    const [left, top, right, bottom] = SIDES.map((side) => numberOf(`box-${side}`) ?? 0);
    if (left >= right || top >= bottom || right > mask.width || bottom > mask.height) {
      return say(`The box has to lie inside ${mask.width} x ${mask.height} pixels, left before right, top before bottom.`);
    }
    remember();
    painted(() => pen.fillRect(left, top, right - left, bottom - top));
    tell("The box is part of the mask");
  });
  const base64 = (of) => of.toDataURL("image/png").split(",")[1];
  /** White where it was painted, black elsewhere; null if nothing was. */
  function maskPng() {
    const { width, height } = mask;
    const pixels = pen.getImageData(0, 0, width, height);
    let any = false;
    for (let i = 0; i < pixels.data.length; i += 4) {
      const on = pixels.data[i + 3] >= 128;
      any ||= on;
      pixels.data.fill(on ? 255 : 0, i, i + 3);
      pixels.data[i + 3] = 255;
    }
    if (!any) return null;
    const sheet = make("canvas", { width, height });
    sheet.getContext("2d").putImageData(pixels, 0, 0);
    return base64(sheet);
  }

  // Results
  const wipe = $("wipe");
  function setWipe(percent) {
    wipe.value = percent;
    $("compare").style.setProperty("--wipe", `${percent}%`);
    $("compare").style.setProperty("--edge", percent > 0 && percent < 100 ? 1 : 0);
    wipe.setAttribute("aria-valuetext", `${Math.round(percent)} percent before`);
  }
  wipe.addEventListener("input", () => setWipe(Number(wipe.value)));
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = $("compare").getBoundingClientRect();
    setWipe(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  };
  $("compare").addEventListener("pointerdown", (event) => {
    event.preventDefault();
    $("compare").setPointerCapture(event.pointerId);
    drag(event);
  });
  $("compare").addEventListener("pointermove", drag);
  let files = [];
  let blobs = [];
  let chosen = 0;
  function choose(i) {
    chosen = i;
    $("after").src = files[i];
    [...$("results").querySelectorAll("button")].forEach((button, j) => button.setAttribute("aria-pressed", j === i));
    $("edit-download").href = files[i];
    $("edit-download").download = `${name.replace(/\.[^.]*$/, "")}-edited-${i}.png`;
  }
  function hang(urls) {
    files = urls;
    $("results").replaceChildren(...urls.map((url, i) =>
      make("li", {}, make("button", { type: "button", "aria-label": `Result ${i + 1}`, onclick: () => choose(i) }, picture(url, "")))));
    $("results").hidden = urls.length < 2;
    choose(Math.min(chosen, urls.length - 1));
  }
  function busy(is) {
    isBusy = is;
    if (document.activeElement === $("edit-cancel")) $("edit-draw").focus();
    $("edit-cancel").hidden = !is;
    $("edit-draw").setAttribute("aria-disabled", is);
    $("edit-draw").textContent = is ? "Drawing" : "Draw";
  }
  function request() {
    const now = mode();
    const edit = { image: base64(canvas), mode: now };
    if (now === "inpaint") {
      edit.mask = maskPng();
      if (edit.mask == null) throw new Error("Paint what is to be drawn anew first, or add a box.");
      edit.outside = $("outside").checked;
    }
    if (now === "expand") edit.margins = margins();
    if (now === "refine") edit.keep_scales = numberOf("keep-scales");
    if (now !== "refine" && $("blend").checked) edit.blend = 2;
    const own = `${model.height}x${model.width}`;
    const size = $("size").value.replaceAll(/\s/g, "");
    const { sampler } = model;
    const unless = (value, other) => (value === other ? null : value);
    edit.sampling = {
      class: $("edit-class").value.trim() || null,
      seed: Number($("edit-seed").value),
      count: Number($("edit-count").value),
      guidance: unless(numberOf("guidance"), sampler.guidance),
      top_k: unless(numberOf("top-k"), sampler.top_k),
      top_p: unless(numberOf("top-p"), sampler.top_p),
      size: now === "refine" && size !== own ? size : null,
    };
    return edit;
  }
  async function draw() {
    if (isBusy || !loaded) return;
    busy(true);
    try {
      const edit = request();
      let all = 0;
      const urls = await drawn("edit", edit, {
        job({ id }) {
          running = id;
          setWipe(0);
          chosen = 0;
          $("result-actions").hidden = true;
          tell("Drawing");
        },
        queued: (ahead) => ahead && ($("edit-caption").textContent = `${ahead} before it`),
        begins({ scales, before, notes, width, height }) {
          all = scales.split("_").length;
          $("result").hidden = false;
          $("edit-caption").textContent = notes.join(" ");
          ladder($("edit-ladder"), scales);
          $("compare").style.aspectRatio = `${width} / ${height}`;
          const small = Math.max(width, height) <= 256;
          for (const id of ["before", "after"]) $(id).classList.toggle("pixels", small);
          $("before").src = before[edit.mode === "expand" ? 1 : 0];
          hang([before[1]]);
        },
        scale(scale, of, previews) {
          if (previews.length) hang(previews);
          climb($("edit-ladder"), scale, of);
        },
      });
      if (urls == null) {
        $("edit-caption").textContent = "Canceled";
        return tell("Canceled");
      }
      climb($("edit-ladder"), all, all);
      blobs = await Promise.all(urls.map(async (url) => (await fetch(url)).blob()));
      hung.forEach((url) => URL.revokeObjectURL(url));
      hung = blobs.map((blob) => URL.createObjectURL(blob));
      hang(hung);
      $("result-actions").hidden = false;
      setWipe(50);
      tell(`${urls.length} results are done`);
      $("edit-seed").value = anySeed();
    } catch (error) {
      say(error.message);
    } finally {
      running = null;
      busy(false);
    }
  }
  $("edit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  function stop() {
    if (running) Promise.resolve(cancel(running)).catch((error) => say(error.message));
  }
  $("edit-cancel").addEventListener("click", stop);
  addEventListener("pagehide", () => {
    if (running) leave(running);
  });
  $("go-on").addEventListener("click", () => load(blobs[chosen], "the result"));
  showMode();

  return {
    /** A picture of the gallery. */
    take({ file, named, label }) {
      $("edit-class").value = label == null ? "" : queryOf(Number(label));
      load(file, named);
    },
    shown() {},
  };
}
