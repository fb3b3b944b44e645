/** The dashboard's start. */
import { render } from "preact";
import { startHeartbeat } from "./api/client";
import { Shell } from "./ui/shell";
import { applyTheme } from "./ui/theme";

applyTheme();
startHeartbeat();
const root = document.getElementById("app")!;
root.replaceChildren();
render(<Shell />, root);
