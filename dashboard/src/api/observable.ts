/** A value with subscribers, and the hook that renders it. */
import { useEffect, useReducer } from "preact/hooks";

export class Observable<T> {
  private readonly subscribers = new Set<() => void>();

  constructor(private current: T) {}

  get(): T {
    return this.current;
  }

  set(value: T): void {
    if (Object.is(value, this.current)) return;
    this.current = value;
    for (const subscriber of [...this.subscribers]) subscriber();
  }

  subscribe(subscriber: () => void): () => void {
    this.subscribers.add(subscriber);
    return () => void this.subscribers.delete(subscriber);
  }

  /** Renders the component again when the value changes. */
  use(): T {
    const [, render] = useReducer((n: number) => n + 1, 0);
    useEffect(() => this.subscribe(() => render(undefined as never)), [this]);
    return this.current;
  }
}
