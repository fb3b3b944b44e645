// greet.mjs URL [SECONDS]: calls the sample `greeter`, for so long; prints the calls. Any call that fails ends it with an error.
const [url, seconds = '0'] = process.argv.slice(2);

async function call(name, args) {
  const answer = await fetch(`${url}/${encodeURI(name)}`, { // no URL of its own: a name may begin with `word:`
    method: 'POST', body: JSON.stringify(args), headers: { 'content-type': 'application/json' },
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${answer.status} ${text || answer.headers.get('coracle-reason')}`);
  return JSON.parse(text);
}

const end = Date.now() + Number(seconds) * 1000;
let calls = 0;
while (calls === 0 || Date.now() < end) {
  const text = await call('coracle:samples/greeter/greet', { name: String(calls) });
  if (text !== `hello ${calls}`) throw new Error(text);
  calls += 1;
}
console.log(calls);
