/** The parts of Kubernetes objects that the page reads. The API's objects are open: fields that no code reads are dropped on arrival. */

export interface OwnerReference {
  kind: string;
  name: string;
  uid: string;
  controller?: boolean;
}

export interface Meta {
  name: string;
  namespace?: string;
  uid: string;
  resourceVersion?: string;
  generation?: number;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: OwnerReference[];
}

/** An object of any kind. `spec` and `status` have the shapes of the Kubernetes API. */
export type Open = any;

export interface Obj {
  apiVersion?: string;
  kind?: string;
  metadata: Meta;
  spec?: Open;
  status?: Open;
  [field: string]: Open;
}

export const controllerOf = (meta: Meta): OwnerReference | undefined => meta.ownerReferences?.find((owner) => owner.controller);

/** `NAMESPACE/NAME`, or the name alone of an object without a namespace. */
export const keyOf = (namespace: string | undefined, name: string): string => (namespace ? `${namespace}/${name}` : name);

/** Without what is long and never shown. */
export function trimmed(object: Obj): Obj {
  const { managedFields: _, ...metadata } = object.metadata as Meta & { managedFields?: unknown };
  const { "kubectl.kubernetes.io/last-applied-configuration": __, ...annotations } = metadata.annotations ?? {};
  return { ...object, metadata: { ...metadata, annotations } };
}

/** Whether labels satisfy a selector of `matchLabels` and `matchExpressions`. An empty selector matches nothing here. */
export function selects(selector: Open, labels: Record<string, string> | undefined): boolean {
  const equal = Object.entries<string>(selector?.matchLabels ?? {});
  const expressions: Open[] = selector?.matchExpressions ?? [];
  if (equal.length + expressions.length === 0) return false;
  const has = labels ?? {};
  return equal.every(([key, value]) => has[key] === value) && expressions.every((term) => satisfies(term, has));
}

function satisfies(term: Open, labels: Record<string, string>): boolean {
  const value = labels[term.key];
  const values: string[] = term.values ?? [];
  switch (term.operator) {
    case "In": return value !== undefined && values.includes(value);
    case "NotIn": return value === undefined || !values.includes(value);
    case "Exists": return value !== undefined;
    case "DoesNotExist": return value === undefined;
    default: return false;
  }
}

/** A selector as the API's query parameter. */
export function selectorText(selector: Open): string {
  const equal = Object.entries<string>(selector?.matchLabels ?? {}).map(([key, value]) => `${key}=${value}`);
  const expressions = ((selector?.matchExpressions ?? []) as Open[]).map((term) => {
    const values = `(${(term.values ?? []).join(",")})`;
    switch (term.operator) {
      case "In": return `${term.key} in ${values}`;
      case "NotIn": return `${term.key} notin ${values}`;
      case "Exists": return term.key;
      default: return `!${term.key}`;
    }
  });
  return [...equal, ...expressions].join(",");
}
