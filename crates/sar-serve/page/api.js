// Asking a server, making elements, and what tabs have in common.

export const $ = (id) => document.getElementById(id);

/** An element with attributes, listeners (on...) and children. */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "rect"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A request; its error is the server's sentence. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 304) return null;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answers ${response.status}.`);
  return { answer, etag: response.headers.get("etag") };
}

export const send = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).then(({ answer }) => answer);

let hiding;
/** A sentence that everybody sees for a while. */
export function say(text) {
  const toast = $("toast");
  toast.textContent = text.charAt(0).toUpperCase() + text.slice(1);
  toast.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (toast.hidden = true), 7000);
}

/** A sentence for screen readers. */
export const tell = (text) => ($("status").textContent = text);

/** Squares that grow as the scales do. */
export function ladder(element, scales) {
  const sides = scales.split("_").map((size) => Math.max(...size.split("x").map(Number)));
  const most = Math.max(...sides);
  element.replaceChildren(
    ...sides.map((side) => {
      const step = make("i");
      const length = `${5 + Math.round((19 * side) / most)}px`;
      step.style.width = step.style.height = length;
      return step;
    }),
  );
  climb(element, 0, sides.length);
}

export function climb(element, scale, of) {
  [...element.children].forEach((step, k) => step.classList.toggle("on", k < scale));
  element.setAttribute("aria-label", scale ? `Scale ${scale} of ${of}` : "No scale is drawn yet");
}

/** Small pictures have square pixels. */
export function picture(url, alt) {
  const image = make("img", { src: url, alt, decoding: "async" });
  image.addEventListener("load", () =>
    image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 256));
  image.classList.add("pixels");
  return image;
}

/** What a field says; of a slider that nobody has moved what it was set to, whether or not it is one of its steps. */
export const numberOf = (id) => {
  const text = $(id).dataset.exact ?? $(id).value.trim();
  return text === "" ? null : Number(text);
};

/** Sets a slider to any number. */
export function slide(id, value) {
  const slider = $(id);
  slider.value = slider.dataset.exact = value;
  slider.oninput = () => delete slider.dataset.exact;
}

export const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
