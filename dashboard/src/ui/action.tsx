/** Buttons that change the cluster: with the user's rights, a confirmation, and the API's answer. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { pokeAll } from "../api/reflector";
import { useMay, type Right } from "../api/rights";
import { Dialog } from "./parts";

export interface ActionProps {
  label: string;
  right: Right;
  /** The question; without one the action runs at once. */
  confirm?: ComponentChildren;
  danger?: boolean;
  disabled?: string;
  run: () => Promise<unknown>;
  onDone?: (message: string, failed: boolean) => void;
  done: string;
}

const describe = (right: Right): string => `${right.verb} ${right.resource}${right.subresource ? `/${right.subresource}` : ""}`;

export function Action({ label, right, confirm, danger, disabled, run, onDone, done }: ActionProps) {
  const allowed = useMay(right);
  const [asking, setAsking] = useState(false);
  const [busy, setBusy] = useState(false);
  const act = async () => {
    setAsking(false);
    setBusy(true);
    try {
      await run();
      onDone?.(done, false);
      pokeAll();
    } catch (error) {
      onDone?.(error instanceof Error ? error.message : String(error), true);
    } finally {
      setBusy(false);
    }
  };
  const why = disabled || (allowed === false ? `You may not ${describe(right)} here.` : undefined);
  return (
    <>
      <button type="button" class={danger ? "danger" : ""} disabled={Boolean(why) || busy || allowed === undefined} title={why} onClick={() => (confirm ? setAsking(true) : void act())}>{busy ? "…" : label}</button>
      {asking && (
        <Dialog title={`${label}?`} onClose={() => setAsking(false)}>
          {confirm}
          <div class="actions">
            <button type="button" class="primary" onClick={() => void act()}>{label}</button>
            <button type="button" onClick={() => setAsking(false)}>Cancel</button>
          </div>
        </Dialog>
      )}
    </>
  );
}

/** The outcome of the last action. */
export function useOutcome(): [ComponentChildren, (message: string, failed: boolean) => void] {
  const [outcome, set] = useState<{ message: string; failed: boolean }>();
  const shown = outcome && <p class={`alert ${outcome.failed ? "" : "info"}`} role={outcome.failed ? "alert" : "status"}>{outcome.message}</p>;
  return [shown, (message, failed) => set({ message, failed })];
}
