// build.mjs dist FOLDER | tests FOLDER | size FOLDER: the steps of `build`.
import * as fs from "node:fs";
import * as path from "node:path";
import * as zlib from "node:zlib";
import * as esbuild from "esbuild";

/** The files of dist/, in the order in which the page needs them. The API server embeds exactly these. */
const FILES = ["index.html", "app.css", "app.js", "icon.svg"];
/** All files, each gzipped at level 9. A page over a slow tunnel loads in seconds. */
const GZIPPED_BYTES_MAX = 300_000;

/** Libraries in app.js, whose licences ask for their text with each copy. */
const LIBRARIES = ["preact", "@xterm/headless"];

function notices() {
  const texts = LIBRARIES.map((name) => {
    const folder = path.join("node_modules", name);
    const licence = ["LICENSE", "LICENSE.md"].map((file) => path.join(folder, file)).find((file) => fs.existsSync(file));
    const text = licence ? fs.readFileSync(licence, "utf8") : "Copyright (c) The xterm.js authors and SourceLair Private Company; MIT License, as above.";
    return `${name}\n${text.trim()}`;
  });
  return `/*\n${texts.join("\n\n").replaceAll("*/", "* /")}\n*/`;
}

const common = { bundle: true, charset: "utf8", legalComments: "none", logLevel: "warning", target: "es2022" };

async function dist(folder) {
  fs.mkdirSync(folder, { recursive: true });
  const jsx = { jsx: "automatic", jsxImportSource: "preact", define: { "process.env.NODE_ENV": '"production"' } };
  await esbuild.build({ ...common, ...jsx, entryPoints: ["src/app.tsx"], outfile: path.join(folder, "app.js"), format: "esm", platform: "browser", minify: true, banner: { js: notices() } });
  await esbuild.build({ ...common, entryPoints: ["src/app.css"], outfile: path.join(folder, "app.css"), minify: true });
  for (const name of ["index.html", "icon.svg"]) fs.copyFileSync(path.join("src", name), path.join(folder, name));
}

async function tests(folder) {
  const entryPoints = fs.readdirSync("tests").filter((name) => name.endsWith(".test.ts")).map((name) => path.join("tests", name));
  await esbuild.build({ ...common, entryPoints, outdir: folder, format: "esm", platform: "node", outExtension: { ".js": ".mjs" }, sourcemap: "inline" });
}

function size(folder) {
  const found = fs.readdirSync(folder).sort();
  if (found.join() !== [...FILES].sort().join()) throw new Error(`${folder} has ${found}, expected ${FILES}`);
  const gzipped = FILES.map((name) => zlib.gzipSync(fs.readFileSync(path.join(folder, name)), { level: 9 }).length);
  const sum = gzipped.reduce((a, b) => a + b);
  console.log(`${FILES.map((name, n) => `${name} ${gzipped[n]}`).join(", ")}: ${sum} bytes gzipped of ${GZIPPED_BYTES_MAX}`);
  if (sum > GZIPPED_BYTES_MAX) throw new Error("the page is too large");
}

const [step, folder] = process.argv.slice(2);
try {
  await { dist, tests, size }[step](folder);
} catch (error) {
  console.error(String(error));
  process.exitCode = 1;
}
