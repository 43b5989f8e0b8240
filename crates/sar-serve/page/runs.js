// The tab Runs.

import { $, ask, make, picture, say, send, tell } from "./api.js";
import { chart, short } from "./chart.js";

const EVERY = 2000;
const NAMES = { tokenizer: "Tokenizer", pretrain: "Pre-training", sar: "SAR", control: "Control" };
const STATES = { running: "running", stopping: "stopping", stopped: "stopped", done: "done" };
/** What the sheets of a stage show. */
const SHEETS = {
  tokenizer: "Reconstructions over time: originals above, then every scale, finest first",
  pretrain: "Samples over time, in pre-training",
  sar: "Samples over time, in SAR",
  control: "Samples over time, in the control",
};
/** What is worth a chart: the stage, what it is called, its series in training and held out, which is also there by scale. */
const CHARTS = [
  ["tokenizer", "loss", "total", null],
  ["tokenizer", "PSNR, dB", null, "held_out_psnr_db"],
  ["pretrain", "teacher loss", "teacher", "held_out_teacher"],
  ["sar", "student loss", "student", "held_out_student"],
  ["sar", "teacher loss", "teacher", "held_out_teacher"],
  ["control", "teacher loss", "teacher", "held_out_teacher"],
];
const PICTURES = {
  "reconstructions.png": "Reconstructions: originals above, then every scale, finest first",
  "samples-before.png": "Samples before SAR",
  "samples-after.png": "Samples after SAR",
};

export function startRuns(model) {
  if (!model.runs) return () => {};
  $("run-course").replaceChildren();
  let runs = [];
  let cut = false;
  /** Whether the last question had no answer: that is said once. */
  let lost = false;
  /** Until when a second click stops a run, by its name. */
  const asked = new Map();
  let [first, second] = [null, null];
  let timer = null;
  const known = new Map();
  /** The step whose sheet is looked at, by run and stage; without one it is the newest. */
  const chosen = new Map();
  /** Whether somebody drags a slider, which is not made anew meanwhile. */
  let dragging = false;
  /** When a stage was how far: for the time to go. */
  const pace = new Map();

  const share = ({ steps, done }) => (steps ? Math.min(1, done / steps) : done ? 1 : 0);
  function bar(stages) {
    return make("span", { class: "stages", "aria-hidden": "true" }, ...stages.map((stage) => {
      const done = make("b");
      done.style.width = `${100 * share(stage)}%`;
      return make("i", {}, done);
    }));
  }
  function listed(run) {
    const item = make("button", { type: "button", "aria-pressed": String(run.name === first), onclick() {
      first = run.name;
      if (second === first) second = null;
      refresh();
    } },
      make("span", { class: "name" }, make("span", {}, run.name), make("span", { class: `state ${run.state}` }, STATES[run.state])),
      bar(run.stages));
    item.dataset.run = run.name;
    return make("li", {}, item);
  }
  function list() {
    const focused = document.activeElement?.dataset?.run;
    $("run-list").replaceChildren(...runs.map(listed),
      ...(cut ? [make("li", { class: "hint" }, `Of more runs, ${runs.length} are shown.`)] : []));
    if (focused) [...$("run-list").querySelectorAll("button")].find((button) => button.dataset.run === focused)?.focus();
    $("beside-field").hidden = runs.length < 2;
    const others = ["", ...runs.map(({ name }) => name).filter((name) => name !== first)];
    const now = [...$("beside").options].map(({ value }) => value);
    if (others.join("\n") !== now.join("\n")) {
      $("beside").replaceChildren(...others.map((name) => make("option", { value: name }, name || "nothing")));
    }
    $("beside").value = second ?? "";
  }
  $("beside").addEventListener("change", () => {
    second = $("beside").value || null;
    refresh();
  });

  /** Seconds to the end of the stage at hand, by its pace since the page looks. */
  function toGo(run) {
    if (run.state !== "running") return null;
    const stage = run.stages.find(({ steps, done }) => steps && done < steps);
    if (!stage) return null;
    const key = `${run.name}\n${stage.name}`;
    const seen = pace.get(key) ?? [];
    const now = performance.now() / 1000;
    if (!seen.length || seen[seen.length - 1][1] !== stage.done) seen.push([now, stage.done]);
    if (seen.length > 40) seen.shift();
    pace.set(key, seen);
    const [[t0, d0], [t1, d1]] = [seen[0], seen[seen.length - 1]];
    return d1 > d0 ? { stage: NAMES[stage.name], seconds: Math.max(0, ((stage.steps - d1) * (t1 - t0)) / (d1 - d0) - (now - t1)) } : null;
  }
  const clock = (s) => (s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

  function head(run) {
    const rest = toGo(run);
    // The button is made anew while the run goes on; what was asked stays asked.
    const isAsked = () => (asked.get(run.name) ?? 0) > performance.now();
    const label = () => (stop.textContent = isAsked() ? "Really stop it?" : "Stop with a checkpoint");
    const stop = make("button", { type: "button", class: "small", "data-key": `stop ${run.name}` });
    label();
    if (isAsked()) setTimeout(label, asked.get(run.name) - performance.now() + 20);
    stop.addEventListener("click", async () => {
      if (!isAsked()) {
        asked.set(run.name, performance.now() + 4000);
        label();
        setTimeout(label, 4020);
        return;
      }
      asked.delete(run.name);
      try {
        await send(`api/runs/${encodeURIComponent(run.name)}/stop`, {});
        tell("The run writes a checkpoint and stops");
        refresh();
      } catch (error) {
        say(error.message);
      }
    });
    const wall = run.report?.wall_s;
    return make("div", { class: "run-head" },
      make("div", { class: "row" }, make("h2", {}, run.name), run.state === "running" ? stop : null),
      make("p", { class: "hint" }, [
        run.recipe && `recipe ${run.recipe}`,
        STATES[run.state],
        rest && `${rest.stage} ends in about ${clock(rest.seconds)}`,
        wall != null && `took ${clock(wall)}`,
        run.state === "stopped" && "goes on with ",
      ].filter(Boolean).join(" · "), run.state === "stopped" ? make("code", {}, "sar train --resume") : null),
      make("div", { class: "progress" }, ...run.stages.flatMap((stage) => {
        const id = `progress-${run.name}-${stage.name}`;
        const done = make("progress", { max: 1, value: share(stage), "aria-label": `${NAMES[stage.name]}, ${run.name}` });
        done.id = id;
        return [make("span", {}, NAMES[stage.name]), done, make("span", {}, stage.steps ? `${stage.done} of ${stage.steps}` : `${stage.done}`)];
      })));
  }

  /** Charts of both runs over each other. */
  function curves(a, b) {
    const panels = CHARTS.map(([stage, called, training, heldOut]) => {
      const of = (run, style) => {
        const named = b ? `${run.name}, ` : "";
        const series = (key) => run.series[stage]?.[key] ?? [];
        const both = training && heldOut;
        return [
          training && { points: series(training), style, name: both ? `${named}training` : run.name, faint: both && series(heldOut).length > 0 },
          heldOut && { points: series(heldOut), style, name: both ? `${named}held out` : run.name },
        ].filter(Boolean);
      };
      return chart(`${NAMES[stage]}: ${called}`, [...of(a, "a"), ...(b ? of(b, "b") : [])]);
    });
    return make("div", { class: "charts" }, ...panels);
  }

  /** The series of a list, in the order of its places. */
  const byPlace = (series, stage, key) => Object.entries(series[stage] ?? {})
    .filter(([name]) => name.startsWith(`${key}/`))
    .map(([name, points]) => [Number(name.slice(key.length + 1)), points])
    .sort(([a], [b]) => a - b);

  /** What every stage measured by scale, over its steps: the finer a scale, the stronger its line. */
  function scalesOverTime({ report, series }) {
    const names = report?.held_out?.after.by_scale.map(({ scale }) => scale) ?? [];
    const charts = CHARTS.filter(([, , , heldOut]) => heldOut).map(([stage, called, , heldOut]) => {
      const scales = byPlace(series, stage, `${heldOut}_scales`);
      const shade = (i) => (0.4 + (0.6 * (i + 1)) / scales.length).toFixed(2);
      const lines = scales.map(([k, points], i) => ({ points, style: "a", name: names[k] ?? `#${k + 1}`, shade: shade(i) }));
      return chart(`${NAMES[stage]}, by scale: ${called}`, lines);
    });
    return charts.some(Boolean) ? make("div", { class: "charts" }, ...charts) : null;
  }

  /** What every stage measured last by scale: all there is before the report. */
  function byScaleSoFar(series) {
    const last = (stage, key) => byPlace(series, stage, key).map(([k, points]) => [k, points[points.length - 1][1]]);
    const stages = [["pretrain", "pre-training", "b"], ["sar", "SAR", "a"], ["control", "control", "c"], ["tokenizer", "tokenizer", "a"]];
    const charts = [
      ["Student loss", "held_out_student_scales"],
      ["Teacher loss", "held_out_teacher_scales"],
      ["PSNR in dB", "held_out_psnr_db_scales"],
      ["Perplexity of the codes", "held_out_perplexity"],
    ].map(([called, key]) => {
      const lines = stages.map(([stage, name, style]) => ({ name, style, points: last(stage, key) }));
      const places = lines.flatMap(({ points }) => points.map(([k]) => k));
      const names = Array.from({ length: Math.max(-1, ...places) + 1 }, (_, k) => `#${k + 1}`);
      return chart(`${called} by scale so far`, lines, { names });
    });
    return charts.some(Boolean) ? make("div", { class: "charts" }, ...charts) : null;
  }

  function byScale({ report, series }) {
    const held = report?.held_out;
    if (!held) return byScaleSoFar(series);
    const kinds = [["before", "before SAR", "b"], ["after", "after SAR", "a"], ["control", "control", "c"]];
    const names = held.after.by_scale.map(({ scale }) => scale);
    const of = (key) => kinds.filter(([kind]) => held[kind]).map(([kind, name, style]) => ({
      name, style,
      points: held[kind].by_scale.map((row, i) => [i, row[key]]).filter(([, y]) => y != null),
    }));
    const psnr = report.tokenizer?.by_scale;
    return make("div", { class: "charts" },
      chart("Student loss by scale", of("student_loss"), { names }),
      chart("Teacher loss by scale", of("teacher_loss"), { names }),
      psnr && chart("PSNR by scale, dB", [{ name: "tokenizer", style: "a", points: psnr.map((row, i) => [i, row.psnr_db]) }], { names: psnr.map(({ scale }) => scale) }));
  }

  /** Names of columns, and rows of a name and what it is in each column. */
  function table(title, columns, rows) {
    const cell = (value) => typeof value === "object" && value
      ? make("td", {}, short(value.mean), value.low == null ? null : make("small", {}, `${short(value.low)} to ${short(value.high)}`))
      : make("td", {}, short(value));
    return make("div", { class: "panel scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, title), ...columns.map(([, name]) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), ...columns.map(([kind]) => cell(value(kind))))))));
  }

  /** How samples were judged as each stage ended: all there is before the report. */
  function figuresSoFar(series) {
    const last = (stage, key) => series[stage]?.[key]?.at(-1)[1];
    const of = (key) => (stage) => ({ mean: last(stage, key), low: last(stage, `${key}_interval/0`), high: last(stage, `${key}_interval/1`) });
    const stages = Object.entries(NAMES).filter(([stage]) => last(stage, "kid_effnetlite0") != null);
    return stages.length ? table("Samples so far", stages, [
      ["KID, times 1000", (stage) => scaled(of("kid_effnetlite0")(stage), 1000)],
      ["Fréchet distance", of("fd_effnetlite0")],
      ["class accuracy", of("class_accuracy")],
    ]) : null;
  }

  function figures({ report, series }) {
    const held = report?.held_out;
    if (!held) return figuresSoFar(series);
    const kinds = [["before", "before"], ["after", "after SAR"], ["control", "control"]].filter(([kind]) => held[kind]);
    const { quality } = report;
    const rows = [
      ["teacher loss", (kind) => held[kind].teacher_loss],
      ["student loss", (kind) => held[kind].student_loss],
      ["exposure gap", (kind) => held[kind].exposure_gap],
      quality && ["KID, times 1000", (kind) => scaled(quality[kind]?.kid_effnetlite0, 1000)],
      quality && ["Fréchet distance", (kind) => quality[kind]?.fd_effnetlite0],
      quality && ["class accuracy", (kind) => quality[kind]?.class_accuracy],
    ].filter(Boolean);
    return table("Held out", kinds, rows);
  }
  const scaled = (estimate, by) => estimate && Object.fromEntries(Object.entries(estimate).map(([key, value]) => [key, value == null ? null : value * by]));

  /** A picture that opens large. */
  const linked = ({ url, changed }, alt, key = url) =>
    make("a", { href: url, "data-key": key, target: "_blank", rel: "noopener" }, picture(`${url}?${changed}`, alt));

  /** What the weights of a stage made, step by step. */
  function overTime(run, stage) {
    const sheets = run.sheets.filter((sheet) => sheet.stage === stage);
    if (!sheets.length) return null;
    const key = `${run.name} ${stage}`;
    const steps = run.stages.find(({ name }) => name === stage)?.steps;
    const last = sheets.length - 1;
    const said = make("span", { class: "value" });
    const slider = make("input", { type: "range", min: 0, max: last, "aria-label": `Step, ${NAMES[stage]}, ${run.name}`, "data-key": `step ${key}` });
    const told = ({ step }) => (steps ? `${step} of ${steps}` : String(step));
    const alt = (sheet) => `${SHEETS[stage]}. Step ${told(sheet)}`;
    function turn(sheet) {
      said.textContent = told(sheet);
      slider.setAttribute("aria-valuetext", `step ${told(sheet)}`);
    }
    const found = sheets.findIndex(({ step }) => step === chosen.get(key));
    slider.value = found < 0 ? last : found;
    turn(sheets[slider.value]);
    const link = linked(sheets[slider.value], alt(sheets[slider.value]), `sheet ${key}`);
    slider.addEventListener("input", () => {
      const sheet = sheets[slider.value];
      if (sheet === sheets[last]) chosen.delete(key);
      else chosen.set(key, sheet.step);
      turn(sheet);
      link.href = sheet.url;
      Object.assign(link.firstChild, { src: `${sheet.url}?${sheet.changed}`, alt: alt(sheet) });
    });
    return make("figure", {}, link,
      make("div", { class: "field" }, make("span", {}, "Step ", said), last ? slider : null),
      make("figcaption", { class: "hint" }, SHEETS[stage]));
  }
  function sheets(run) {
    const figures = Object.keys(SHEETS).map((stage) => overTime(run, stage)).filter(Boolean);
    const cut = run.sheets_left_out ? make("p", { class: "hint" }, `Of more sheets, the last ${run.sheets.length} are shown.`) : null;
    return figures.length ? make("div", { class: "run-pictures sheets" }, ...figures, cut) : null;
  }

  const pictures = ({ pictures }) => make("div", { class: "run-pictures" }, ...pictures.map((one) =>
    make("figure", {}, linked(one, PICTURES[one.name]), make("figcaption", { class: "hint" }, PICTURES[one.name]))));

  /** Puts parts into a place; whoever is at a button, a picture or a slider there stays at it. */
  function put(place, ...parts) {
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    place.replaceChildren(...parts.filter(Boolean));
    if (focused) [...place.querySelectorAll("[data-key]")].find(({ dataset }) => dataset.key === focused)?.focus({ preventScroll: true });
  }
  function show() {
    const [a, b] = [known.get(first)?.answer, second ? known.get(second)?.answer : null];
    if (!a) return;
    const columns = (part) => {
      const parts = [a, b].filter(Boolean).map(part);
      return parts.some(Boolean) ? make("div", { class: b ? "run-columns two" : "run-columns" }, ...parts.map((part) => make("div", { class: "run" }, part))) : null;
    };
    put($("run-course"), columns(head), curves(a, b));
    showSheets([a, b], columns);
    put($("run-results"), columns(byScale), columns(scalesOverTime), columns(figures), columns(pictures));
  }

  /** Sheets are made anew only where there is another one, and not under the hand of somebody. */
  function showSheets(runs, columns) {
    const drawn = JSON.stringify(runs.map((run) => {
      const last = run?.sheets[run.sheets.length - 1];
      return run && [run.name, run.stages.map(({ steps }) => steps), run.sheets.length, last?.url, last?.changed];
    }));
    if (dragging || $("run-sheets").dataset.shown === drawn) return;
    put($("run-sheets"), columns(sheets));
    $("run-sheets").dataset.shown = drawn;
  }
  $("run-sheets").addEventListener("pointerdown", ({ target }) => (dragging = target.type === "range"));
  for (const end of ["pointerup", "pointercancel"]) {
    addEventListener(end, () => {
      if (!dragging) return;
      dragging = false;
      show();
    });
  }

  async function load(name) {
    const before = known.get(name);
    const headers = before?.etag ? { "If-None-Match": before.etag } : {};
    const answer = await ask(`api/runs/${encodeURIComponent(name)}`, { headers });
    if (answer) known.set(name, answer);
    return answer != null;
  }
  let busy = false;
  async function refresh() {
    if (busy) return;
    busy = true;
    try {
      ({ answer: { runs, cut } } = await ask("api/runs"));
      if (!runs.some(({ name }) => name === first)) first = runs[0]?.name ?? null;
      if (second === first || !runs.some(({ name }) => name === second)) second = null;
      list();
      if (first == null) {
        put($("run-course"), make("div", { class: "nothing wide" }, make("p", {}, "The folder holds no runs yet.")));
        for (const id of ["run-sheets", "run-results"]) put($(id));
        for (const id of ["run-stage", "run-sheets"]) delete $(id).dataset.shown;
        return;
      }
      const wanted = `${first}\n${second}`;
      const changed = await Promise.all([first, second].filter(Boolean).map(load));
      if (changed.some(Boolean) || $("run-stage").dataset.shown !== wanted) show();
      $("run-stage").dataset.shown = wanted;
      lost = false;
    } catch (error) {
      if (!lost) say(error.message);
      lost = true;
    } finally {
      busy = false;
    }
  }
  return (shown) => {
    clearInterval(timer);
    if (!shown) return;
    refresh();
    timer = setInterval(() => document.hidden || refresh(), EVERY);
  };
}
