/** Who the user is, and what the user may do. */
import { useEffect, useState } from "preact/hooks";
import type { Open } from "../core/kube";
import { retryDelay } from "../core/watch";
import { ApiError, request } from "./client";
import { Observable } from "./observable";
import { token } from "./session";

const TRIES_MAX = 20;

/** Repeats a question while no answer comes: the page requests its result once. */
async function persistently<T>(ask: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 0 || tries >= TRIES_MAX) throw error;
      await new Promise((resolve) => setTimeout(resolve, retryDelay(tries, Math.random())));
    }
  }
}

/** The user's name; empty until it is known. */
export const user = new Observable("");

export async function whoAmI(): Promise<void> {
  const body = { apiVersion: "authentication.k8s.io/v1", kind: "SelfSubjectReview" };
  const review: Open = await persistently(() => request("/apis/authentication.k8s.io/v1/selfsubjectreviews", { method: "POST", body }));
  user.set(review.status?.userInfo?.username ?? "");
}

export interface Right {
  verb: string;
  group: string;
  resource: string;
  subresource?: string;
  namespace?: string;
}

const answers = new Map<string, Promise<boolean>>();
token.subscribe(() => answers.clear());

/** Whether the user may do it. An API that doesn't answer allows nothing, for now. */
export function may(right: Right): Promise<boolean> {
  const key = JSON.stringify(right);
  let answer = answers.get(key);
  if (!answer) {
    const body = { apiVersion: "authorization.k8s.io/v1", kind: "SelfSubjectAccessReview", spec: { resourceAttributes: right } };
    answer = persistently(() => request("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", { method: "POST", body })).then((review) => Boolean(review.status?.allowed));
    answer.catch(() => answers.delete(key));
    answers.set(key, answer);
  }
  return answer;
}

/** Undefined until the API has answered. */
export function useMay(right: Right): boolean | undefined {
  const [allowed, set] = useState<boolean>();
  const key = JSON.stringify(right);
  useEffect(() => {
    let current = true;
    may(right).then((value) => current && set(value), () => current && set(undefined));
    return () => void (current = false);
  }, [key]);
  return allowed;
}
