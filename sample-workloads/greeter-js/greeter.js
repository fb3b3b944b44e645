// The sample `greeter` in JavaScript: its interface is an object of functions, records are objects, an option may be undefined.
const hellos = { english: 'hello', french: 'bonjour', german: 'hallo', spanish: 'hola' };

export const greeter = {
  greet(name) {
    console.log(`greet ${name}`);
    return `hello ${name}`;
  },

  introduce({ name, language, title }) {
    const text = [hellos[language], title, name].filter((word) => word !== undefined).join(' ');
    return { text, language, letters: [...text].filter((letter) => letter.toLowerCase() !== letter.toUpperCase()).length };
  },
};
