// The model in a worker of this page, in the place of a server: the same calls as the server's `backend.js`.

const FAULT = "A fault in the program; what it said is in the browser's console.";
const png = (base64) => `data:image/png;base64,${base64}`;

/** What a worker begins with. It is kept: another one begins without a network. */
let parts;
let worker;
/** Whether the worker has its weights. */
let isReady = false;
/** The first one is drawn, the others wait. */
const queue = [];
let isDrawing = false;
let n = 0;

async function get(path) {
  const response = await fetch(path).catch(() => null);
  if (!response?.ok) throw new Error(`${path} cannot be loaded. Is there a network?`);
  return response;
}

async function load() {
  const text = (path) => get(path).then((response) => response.text());
  const bytes = (path) => get(path).then((response) => response.arrayBuffer());
  const [glue, script, code, tokenizer, backbone] = await Promise.all([
    text("sar.js"),
    text("worker.js"),
    bytes("sar_bg.wasm").then((code) => WebAssembly.compile(code)),
    bytes("weights/tokenizer.safetensors"),
    bytes("weights/backbone.safetensors"),
  ]);
  const address = URL.createObjectURL(new Blob([glue, "\n", script], { type: "text/javascript" }));
  return { address, code, tokenizer, backbone };
}

/** Starts a worker; what the model is, once it has its weights. */
function start() {
  isReady = isDrawing = false;
  worker = new Worker(parts.address);
  const { code, tokenizer, backbone } = parts;
  worker.postMessage({ code, tokenizer, backbone });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data: { name, data } }) => {
      if (name === "ready") {
        isReady = true;
        next();
        resolve(data);
      } else if (!isReady) {
        reject(new Error(name === "fault" ? FAULT : data.error));
      } else {
        seen(queue[0], name, data);
      }
    };
    worker.onerror = () => {
      if (isReady) seen(queue[0], "fault");
      else reject(new Error(FAULT));
    };
  });
}

function restart() {
  worker.terminate();
  start().catch((error) => [...queue].forEach((job) => end(job, "failed", { error: error.message })));
}

function next() {
  if (!isReady || isDrawing || !queue.length) return;
  isDrawing = true;
  const [{ kind, request }] = queue;
  worker.postMessage({ kind, request: JSON.stringify(request) });
}

function seen(job, name, data) {
  if (!job) return;
  if (name === "accepted") {
    job.command = data.command;
  } else if (name === "fault") {
    end(job, "failed", { error: FAULT });
    restart();
  } else {
    for (const list of ["before", "pictures"]) if (data[list]) data[list] = data[list].map(png);
    if (name === "done" || name === "failed") {
      isDrawing = false;
      end(job, name, data);
      next();
    } else {
      job.tell(name, data);
    }
  }
}

function end(job, name, data) {
  queue.splice(queue.indexOf(job), 1);
  job.tell(name, data);
  queue.forEach((waiting, ahead) => waiting.tell("queued", { ahead }));
}

/** What the model is. */
export async function model() {
  if (!("WebAssembly" in window)) throw new Error("This browser has no WebAssembly.");
  parts = await load();
  // The page opens without a network from then on; where a browser keeps nothing it works all the same.
  navigator.serviceWorker?.register("keep.js").catch(() => {});
  return start();
}

/** Asks for a job: "sample", "edit", or "tokens". What is wrong with it is told by its event `failed`. */
export async function submit(kind, request) {
  const missed = [];
  const job = { id: String(++n), kind, request, command: "", missed, tell: (...event) => missed.push(event) };
  queue.push(job);
  job.tell("queued", { ahead: queue.length - 1 });
  next();
  return job;
}

/** Calls `tell` with the name and the data of each event of a job. */
export function watch(id, tell) {
  const job = queue.find((job) => job.id === id);
  if (!job) return tell("failed", { error: "There is no such job." });
  job.missed.forEach((event) => tell(...event));
  job.tell = tell;
}

/** A job that is drawn ends at once, with its worker. */
export function cancel(id) {
  const job = queue.find((job) => job.id === id);
  if (!job) return;
  const isDrawn = isDrawing && queue[0] === job;
  end(job, "canceled", {});
  if (isDrawn) restart();
}

/** The worker ends with its page. */
export const leave = () => {};
