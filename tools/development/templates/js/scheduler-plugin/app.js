// A scheduler plugin: it rejects nodes with the label `{{name}}/avoid` and full nodes, and prefers nodes with few pods.
const AVOID = '{{name}}/avoid';
const SCORE_MAX = 100;

class Instance {
  avoided = new Set();

  constructor(podsMax) {
    this.podsMax = podsMax;
  }

  static open(config) {
    const { podsMax = Infinity } = config === '' ? {} : parse(config);
    if (typeof podsMax !== 'number') throw 'config.podsMax is no number';
    return new Instance(podsMax);
  }

  setNodes(nodes) {
    for (const { name, object } of nodes) {
      if (JSON.parse(object).metadata?.labels?.[AVOID] === undefined) this.avoided.delete(name);
      else this.avoided.add(name);
    }
  }

  removeNodes(names) {
    names.forEach((name) => this.avoided.delete(name));
  }

  filter(pod, candidates) {
    return candidates.flatMap(({ node, pods }, candidate) => {
      if (this.avoided.has(node)) return [{ candidate, reason: `node(s) had the label ${AVOID}`, unresolvable: true }];
      // Preemption may remove pods, so this is resolvable.
      if (pods >= this.podsMax) return [{ candidate, reason: `node(s) had ${this.podsMax} pods`, unresolvable: false }];
      return [];
    });
  }

  score(pod, candidates) {
    return candidates.map(({ pods }) => Math.max(0, SCORE_MAX - pods));
  }
}

function parse(config) {
  try {
    return JSON.parse(config);
  } catch (error) {
    throw `config: ${error.message}`;
  }
}

export const plugin = { Instance };
