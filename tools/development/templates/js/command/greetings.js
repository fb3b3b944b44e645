/** One line for each name. */
export function greetings(names) {
  if (names.length === 0) return ['hello from {{name}}'];
  const empty = names.indexOf('');
  if (empty >= 0) throw new Error(`name ${empty + 1} is empty`);
  return names.map((name) => `hello ${name}`);
}
