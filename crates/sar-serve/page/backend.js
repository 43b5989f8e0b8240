// The server, for the page. Where there is none another file has this name.

import { ask, send } from "./api.js";

const png = (base64) => `data:image/png;base64,${base64}`;

/** What the model is. */
export const model = () => ask("api/model").then(({ answer }) => answer);

/** Asks for a job: "sample" or "edit". */
export const submit = (kind, request) => send(`api/${kind}`, request);

/** Calls `tell` with the name and the data of each event of a job. */
export function watch(id, tell) {
  const events = new EventSource(`api/jobs/${id}/events`);
  let ended = false;
  for (const name of ["queued", "begins", "scale", "done", "canceled", "failed"]) {
    events.addEventListener(name, (event) => {
      const data = JSON.parse(event.data);
      if (name === "scale") data.pictures = data.pictures.map(png);
      if (["done", "canceled", "failed"].includes(name)) {
        ended = true;
        events.close();
      }
      tell(name, data);
    });
  }
  events.addEventListener("error", () => {
    if (ended || events.readyState !== EventSource.CLOSED) return;
    ended = true;
    tell("failed", { error: "The server does not know the job any more." });
  });
}

export const cancel = (id) => ask(`api/jobs/${id}`, { method: "DELETE" });

/** Whoever leaves wants no more. */
export const leave = (id) => fetch(`api/jobs/${id}`, { method: "DELETE", keepalive: true });
