// An HTTP service: a `fetch` event for each request, in an instance of its own. `fetch('http://NAME/')` calls a Service of the namespace.
import { respond } from './routes.js';

addEventListener('fetch', (event) => {
  const [status, text] = respond(event.request.method, new URL(event.request.url).pathname);
  event.respondWith(new Response(text, { status, headers: { 'content-type': 'text/plain' } }));
});
