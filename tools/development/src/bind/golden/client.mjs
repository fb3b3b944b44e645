// A client of a plugin, written by `coracle bind` from types.wit.

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

export class Counter extends Remote {
  /**
   * Adds, and returns the sum.
   * @param {bigint} by
   * @returns {Promise<{ ok: bigint } | { err: string }>}
   */
  async add(by) {
    return this._call('example:all/kinds@1.2.0/[method]counter.add', [['self', $t0, this], ['by', $big, by]], $result($big, $plain));
  }
}

const $t0 = $resource(() => Counter);

/**
 * Keywords of languages are names.
 * @typedef {object} Class
 * @property {string} type
 * @property {number | undefined} [self]
 * @property {{ some: bigint | undefined } | undefined} [maybe]
 * @property {[number, number, number, bigint]} from
 */
const $t1 = $record(
  ['type', 'type', $plain],
  ['self', 'self', $option($plain)],
  ['maybe', 'maybe', $option($some($option($big)))],
  ['from', 'from', $tuple($plain, $plain, $plain, $big)],
);

/**
 * A point in the plane.
 * @typedef {object} Point
 * @property {number} x Along the first axis.
 * @property {number} y
 */
const $t2 = $record(
  ['x', 'x', $float],
  ['y', 'y', $float],
);

/** @typedef {{ tag: 'circle', val: Point } | { tag: 'nothing' } | { tag: 'named', val: string }} Shape */
const $t3 = $variant({
  'circle': $t2,
  'nothing': null,
  'named': $plain,
});

/** @typedef {'red' | 'dark-green' | 'none'} Color */
const $t4 = $plain;

/** @typedef {('read' | 'write-all')[]} Access */
const $t5 = $plain;

/**
 * @typedef {object} MoreShape
 * @property {Array<Point>} corners
 */
const $t6 = $record(
  ['corners', 'corners', $list($t2)],
);

export class AllClient extends Client {
  /**
   * A function of the world itself.
   * @param {string} text
   * @returns {Promise<string>}
   */
  async ping(text) {
    return this._call('ping', [['text', $plain, text]], $plain);
  }
}

/** Every type that a plugin may have. "Quotes", a \ and *\/ in docs are no syntax. */
export class KindsClient extends Client {
  /**
   * @param {bigint} start
   * @returns {Promise<Counter>}
   */
  async counter(start) {
    return this._call('example:all/kinds@1.2.0/[constructor]counter', [['start', $big, start]], $t0);
  }

  /**
   * @param {Counter} one
   * @param {Counter} other
   * @returns {Promise<Counter>}
   */
  async counterMerge(one, other) {
    return this._call('example:all/kinds@1.2.0/[static]counter.merge', [['one', $t0, one], ['other', $t0, other]], $t0);
  }

  /**
   * Returns its arguments.
   * @param {Class} class_
   * @param {Shape} shape
   * @param {Color} color
   * @param {Access} access
   * @returns {Promise<[Class, Shape, Color, Access]>}
   */
  async echo(class_, shape, color, access) {
    return this._call('example:all/kinds@1.2.0/echo', [['class', $t1, class_], ['shape', $t3, shape], ['color', $t4, color], ['access', $t5, access]], $tuple($t1, $t3, $t4, $t5));
  }

  /**
   * @param {Uint8Array} a
   * @param {Array<[Point, string]>} b
   * @param {Map<string, number>} c
   * @param {Map<bigint, Array<string>>} d
   * @returns {Promise<Uint8Array>}
   */
  async bytes(a, b, c, d) {
    return this._call('example:all/kinds@1.2.0/bytes', [['a', $bytes, a], ['b', $list($tuple($t2, $plain)), b], ['c', $map($plain, $plain, true), c], ['d', $map($big, $list($plain), false), d]], $bytes);
  }

  /**
   * @param {{ ok: undefined } | { err: undefined }} a
   * @param {{ ok: number } | { err: undefined }} b
   * @param {{ ok: undefined } | { err: Shape }} c
   * @returns {Promise<{ ok: boolean | undefined } | { err: Color }>}
   */
  async outcomes(a, b, c) {
    return this._call('example:all/kinds@1.2.0/outcomes', [['a', $result(null, null), a], ['b', $result($plain, null), b], ['c', $result(null, $t3), c]], $result($option($plain), $t4));
  }

  /** @returns {Promise<void>} */
  async import() {
    return this._call('example:all/kinds@1.2.0/import', [], null);
  }
}

export class MoreClient extends Client {
  /**
   * @param {MoreShape} of
   * @returns {Promise<number>}
   */
  async area(of) {
    return this._call('example:all/more@1.2.0/area', [['of', $t6, of]], $float);
  }
}
