// An HTTP service: POST /slug turns a title into the end of an address.

function slug(title) {
  return title
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "");
}

async function serve(request) {
  const { pathname } = new URL(request.url);
  if (pathname === "/") return new Response("POST a title to /slug\n");
  if (pathname !== "/slug") return new Response("not found\n", { status: 404 });
  if (request.method !== "POST") return new Response("POST only\n", { status: 405, headers: { allow: "POST" } });
  const body = JSON.stringify({ slug: slug(await request.text()) });
  return new Response(body, { headers: { "content-type": "application/json" } });
}

addEventListener("fetch", (event) => event.respondWith(serve(event.request)));
