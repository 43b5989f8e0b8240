// Keeps the files of the page, so that it opens without a network. `files.js` names them, and their version.

importScripts("files.js");
const name = `sar ${VERSION}`;

addEventListener("install", (event) =>
  event.waitUntil(caches.open(name).then((kept) => kept.addAll(FILES)).then(() => skipWaiting())));

addEventListener("activate", (event) =>
  event.waitUntil(caches.keys().then((names) =>
    Promise.all(names.filter((other) => other.startsWith("sar ") && other !== name).map((other) => caches.delete(other))))));

addEventListener("fetch", (event) =>
  event.respondWith(caches.match(event.request).then((kept) => kept ?? fetch(event.request))));
