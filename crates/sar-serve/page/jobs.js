// Jobs of the page, whoever draws them: `backend.js` is a server here, and a worker where there is none.

import { submit, watch } from "./backend.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/**
 * Draws what is asked for, from the job to its end. Scales come at a pace that eyes can follow.
 * `seen` has job(job), queued(n), begins(facts), scale(k, of, urls).
 * Returns the addresses of the pictures, or null when it was canceled.
 */
export async function draw(kind, request, seen) {
  const job = await submit(kind, request);
  seen.job(job);
  let shown = Promise.resolve();
  const then = (work) => (shown = shown.then(work));
  return new Promise((resolve, reject) => {
    const on = {
      queued: ({ ahead }) => seen.queued?.(ahead),
      begins: (facts) => seen.begins?.(facts),
      async scale({ scale, of, pictures }) {
        seen.scale?.(scale, of, pictures);
        if (!calm.matches && scale < of) await pause(110);
      },
      done: ({ pictures }) => resolve(pictures),
      canceled: () => resolve(null),
      failed: ({ error }) => reject(new Error(error)),
    };
    watch(job.id, (name, data) => then(() => on[name](data)).catch(reject));
  });
}
