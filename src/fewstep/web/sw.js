/** Keeps the files of the page, so that it works offline after the first visit. */

const CACHE = "fewstep-{{version}}";
const FILES = {{files}};

self.addEventListener("install", (event) => {
  // the browser's own cache may hold files of an earlier export
  const requests = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => {
  const names = caches.keys().then((all) => all.filter((name) => name !== CACHE));
  const deleted = names.then((old) => Promise.all(old.map((name) => caches.delete(name))));
  event.waitUntil(deleted.then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const { request } = event, options = { ignoreSearch: true };
  const found = caches.open(CACHE).then((cache) => cache.match(request, options));
  event.respondWith(found.then((response) => response ?? fetch(request)));
});
