/** A call that failed. `status` is the HTTP status, `reason` the header coracle-reason (trap, memory, timeout, …). */
export class PluginError extends Error {
  constructor(status, reason, message) {
    super(`${status} ${message || reason || ''}`.trim());
    this.status = status;
    this.reason = reason;
  }
}

/** A plugin's address, such as http://127.0.0.1:8080. */
export class Transport {
  /**
   * @param {string} url
   * @param {number} timeoutMs
   */
  constructor(url, timeoutMs = 70_000) {
    this.url = url.replace(/\/+$/, '');
    this.timeoutMs = timeoutMs;
  }

  async post(name, body, session) {
    const headers = { 'content-type': 'application/json' };
    if (session !== undefined) headers['coracle-session'] = session;
    const answer = await fetch(`${this.url}/${encodeURI(name)}`, {
      method: 'POST', body: JSON.stringify(body), headers, signal: AbortSignal.timeout(this.timeoutMs),
    });
    const text = await answer.text();
    if (answer.ok) return [JSON.parse(text), answer.headers.get('coracle-session') ?? undefined];
    let message = text;
    try {
      message = JSON.parse(text).error ?? text;
    } catch {
      // Not every error has a body in JSON.
    }
    throw new PluginError(answer.status, answer.headers.get('coracle-reason') ?? undefined, message);
  }
}

class Client {
  /**
   * @param {string | Transport} plugin
   * @param {string} [session]
   */
  constructor(plugin, session) {
    this._transport = typeof plugin === 'string' ? new Transport(plugin) : plugin;
    this._session = session;
  }

  async _call(name, args, result) {
    const call = { transport: this._transport, session: this._session };
    const body = Object.fromEntries(args.map(([key, codec, value]) => [key, codec.encode(value, call)]));
    const [answer, opened] = await this._transport.post(name, body, call.session);
    call.session = opened ?? call.session;
    return result === null ? undefined : result.decode(answer, call);
  }
}

/** A resource: a value that lives in the plugin's session. */
class Remote extends Client {
  constructor(transport, session, handle) {
    super(transport, session);
    this._handle = handle;
  }
}

const $plain = { encode: (value) => value, decode: (value) => value };
const $big = { encode: (value) => String(value), decode: (value) => BigInt(value) };
const $float = {
  encode: (value) => (Number.isFinite(value) ? value : String(value).replace('Infinity', 'inf')),
  decode: (value) => (typeof value === 'string' ? Number(value.replace('inf', 'Infinity')) : value),
};
const $bytes = {
  encode: (value) => btoa(Array.from(value, (byte) => String.fromCharCode(byte)).join('')),
  decode: (value) => Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0)),
};
const $list = (of) => ({
  encode: (value, call) => Array.from(value, (item) => of.encode(item, call)),
  decode: (value, call) => value.map((item) => of.decode(item, call)),
});
const $map = (key, of, isObject) => ({
  encode: (value, call) => {
    const pairs = Array.from(value, ([k, v]) => [key.encode(k, call), of.encode(v, call)]);
    return isObject ? Object.fromEntries(pairs) : pairs;
  },
  decode: (value, call) => {
    const pairs = isObject ? Object.entries(value) : value;
    return new Map(pairs.map(([k, v]) => [key.decode(k, call), of.decode(v, call)]));
  },
});
const $tuple = (...of) => ({
  encode: (value, call) => of.map((codec, at) => codec.encode(value[at], call)),
  decode: (value, call) => of.map((codec, at) => codec.decode(value[at], call)),
});
const $option = (of) => ({
  encode: (value, call) => (value === undefined || value === null ? null : of.encode(value, call)),
  decode: (value, call) => (value === null || value === undefined ? undefined : of.decode(value, call)),
});
const $some = (of) => ({
  encode: (value, call) => ({ some: of.encode(value.some, call) }),
  decode: (value, call) => ({ some: of.decode(value.some, call) }),
});
const $case = (cases, name, value, call, how) => {
  if (!Object.hasOwn(cases, name)) throw new TypeError(`${name} is no case of ${Object.keys(cases)}`);
  return cases[name] === null ? (how === 'encode' ? null : undefined) : cases[name][how](value, call);
};
const $result = (ok, err) => ({
  encode: (value, call) => {
    const [[name, item]] = Object.entries(value);
    return { [name]: $case({ ok, err }, name, item, call, 'encode') };
  },
  decode: (value, call) => {
    const [[name, item]] = Object.entries(value);
    return { [name]: $case({ ok, err }, name, item, call, 'decode') };
  },
});
const $variant = (cases) => ({
  encode: ({ tag, val }, call) => ({ [tag]: $case(cases, tag, val, call, 'encode') }),
  decode: (value, call) => {
    const [[tag, item]] = Object.entries(value);
    return cases[tag] === null ? { tag } : { tag, val: $case(cases, tag, item, call, 'decode') };
  },
});
const $record = (...fields) => ({
  encode: (value, call) => Object.fromEntries(fields.map(([key, name, of]) => [name, of.encode(value[key], call)])),
  decode: (value, call) => Object.fromEntries(fields.map(([key, name, of]) => [key, of.decode(value[name], call)])),
});
const $resource = (kind) => ({
  encode: (value, call) => {
    if (call.session !== undefined && call.session !== value._session) throw new Error('one call has resources of two sessions');
    call.session = value._session;
    return value._handle;
  },
  decode: (handle, call) => new (kind())(call.transport, call.session, handle),
});
