"""greet.py URL [SECONDS]: calls the sample `greeter`, for so long; prints the calls. Any call that fails ends it with an error."""
import http.client, json, sys, time, urllib.parse

def call(connection, function, **arguments):
    connection.request("POST", base.path.rstrip("/") + "/" + urllib.parse.quote(function, safe="/:@"), json.dumps(arguments))
    answer = connection.getresponse()
    result = json.load(answer) if answer.status in (200, 400, 404) else answer.read() and None
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {result or answer.getheader('coracle-reason')}")
    return result

base = urllib.parse.urlsplit(sys.argv[1])
connection = http.client.HTTPConnection(base.netloc, timeout=60)
end, calls = time.monotonic() + float((sys.argv + ["0"])[2]), 0
while calls == 0 or time.monotonic() < end:
    text = call(connection, "coracle:samples/greeter/greet", name=str(calls))
    assert text == f"hello {calls}", text
    calls += 1
print(calls)
