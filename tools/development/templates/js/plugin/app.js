// A plugin: the functions of wit/plugin.wit. The host calls each in an instance of its own.
const hellos = { english: 'hello', french: 'bonjour', german: 'hallo', spanish: 'hola' };

export function greet(name) {
  return `hello ${name}`;
}

// Its WIT result is an error if the function throws a value with `payload`, or a string.
export function writeCard(name, language = 'english') {
  if (name === '') throw 'the name is empty';
  const text = `${hellos[language]} ${name}`;
  return { text, letters: [...text].filter((letter) => letter.toLowerCase() !== letter.toUpperCase()).length };
}
