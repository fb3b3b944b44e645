/** The module's own file: the package's entry names a file that it doesn't have. */
declare module "@xterm/headless/lib-headless/xterm-headless.mjs" {
  export { Terminal, type IBuffer, type IBufferCell } from "@xterm/headless";
}
