/** Light and dark: the system's, until the user chooses. */
import { Observable } from "../api/observable";

export type Theme = "system" | "light" | "dark";

const KEY = "coracle-theme";
const THEMES: Theme[] = ["system", "light", "dark"];

function stored(): Theme {
  const value = localStorage.getItem(KEY) as Theme | null;
  return value && THEMES.includes(value) ? value : "system";
}

export const theme = new Observable<Theme>(stored());

export function applyTheme(): void {
  if (theme.get() === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.get();
}

export function nextTheme(): void {
  theme.set(THEMES[(THEMES.indexOf(theme.get()) + 1) % THEMES.length]!);
  localStorage.setItem(KEY, theme.get());
  applyTheme();
}
