// The page: tabs, and the model that all of them are about.

import { $, say } from "./api.js";
import { model as know } from "./backend.js";
import { startSample } from "./sample.js";
import { startEdit } from "./edit.js";
import { startRuns } from "./runs.js";

let names = ["sample", "edit", "runs"];
const listeners = {};

function show(name, focus = false) {
  for (const other of names) {
    const tab = $(`tab-${other}`);
    const on = other === name;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    $(`panel-${other}`).hidden = !on;
    if (on && focus) tab.focus();
    listeners[other]?.(on);
  }
  if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
}

function startTabs() {
  names.forEach((name, i) => {
    const tab = $(`tab-${name}`);
    tab.addEventListener("click", () => show(name));
    tab.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: names.length - 1 };
      const to = { Home: 0, End: names.length - 1 }[event.key] ??
        (event.key in steps ? (i + steps[event.key]) % names.length : null);
      if (to == null) return;
      event.preventDefault();
      show(names[to], true);
    });
  });
  const named = () => names.find((name) => location.hash === `#${name}`);
  addEventListener("hashchange", () => named() && show(named()));
  show(named() ?? "sample");
}

// A field that is wrong shows why, also where it is folded away.
addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);

try {
  const model = await know();
  if (model.runs == null) {
    // Nobody trains here.
    names = names.filter((name) => name !== "runs");
    $("tab-runs").remove();
  }
  const family = model.family.startsWith("var") ? "VAR" : "FlexVAR";
  $("model").textContent =
    `${family} · ${model.classes.length} classes · ${model.width} px · scales ${model.scales.replaceAll("_", " ")}`;
  const edit = startEdit(model);
  startSample(model, (picture) => {
    edit.take(picture);
    show("edit", true);
  });
  listeners.edit = edit.shown;
  listeners.runs = startRuns(model);
  startTabs();
  document.body.dataset.ready = "yes";
} catch (error) {
  startTabs();
  say(error.message);
}
