// Builds build/{{name}}.wasm of src/app.js. The tools of package-lock.json are installed on the first run.
import { execSync } from 'node:child_process';
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises';

const changedAt = (file) => stat(file).then(({ mtimeMs }) => mtimeMs, () => 0);
if (await changedAt('node_modules/.package-lock.json') < await changedAt('package-lock.json')) {
  execSync('npm ci --no-audit --no-fund', { stdio: 'inherit' });
}
const { componentize } = await import('@bytecodealliance/componentize-js');
const { component } = await componentize({
  sourcePath: 'src/app.js',
  witPath: 'wit',
  worldName: '{{world}}',
  disableFeatures: [{{disabled}}],
});
await mkdir('build', { recursive: true });
await writeFile('build/{{name}}.wasm.new', component);
await rename('build/{{name}}.wasm.new', 'build/{{name}}.wasm');
