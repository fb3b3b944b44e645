/** The status and the text of a response. */
export function respond(method, path) {
  if (method !== 'GET') return [405, 'method not allowed\n'];
  if (path === '/') return [200, 'hello from {{name}}\n'];
  const [, name] = /^\/hello\/(.+)$/.exec(path) ?? [];
  return name ? [200, `hello ${name}\n`] : [404, 'not found\n'];
}
