"""The shop's page in Chromium, driven over WebDriver (W3C) by chromedriver: page.py URL FOLDER."""
import contextlib, json, os, re, subprocess, sys, time, urllib.error, urllib.request

URL, FOLDER = sys.argv[1:]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, WebDriver §12.1


class Driver:
    """A separate browser; its profile is in FOLDER."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={FOLDER}/profile"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium rejects its own sandbox for root
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}}}
        self.base += "/session/" + self.call("POST", "/session", wanted)["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def find(self, css):
        return [found[ELEMENT] for found in self.call("POST", "/elements", {"using": "css selector", "value": css})]

    def text(self, css):
        # In one step: the page may recreate an element between finding and reading it.
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText)"
        return self.call("POST", "/execute/sync", {"script": script, "args": [css]})

    def type(self, css, text):
        (element,) = self.find(css)
        self.call("POST", f"/element/{element}/clear", {})
        self.call("POST", f"/element/{element}/value", {"text": text})

    def click(self, css):
        (element,) = self.find(css)
        self.call("POST", f"/element/{element}/click", {})


def until(what, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"never seen: {what}")
    return seen


@contextlib.contextmanager
def chromedriver():
    process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(m[1] for line in process.stdout if (m := re.search(r"started successfully on port (\d+)", line)))
        yield Driver(port)
    finally:
        process.kill()
        process.wait()


with chromedriver() as browser:
    browser.call("POST", "/url", {"url": URL})
    try:
        shown = until("three products", lambda: len(items := browser.text("#products li")) >= 3 and items)
        assert all(re.search(r"\S+\n?.*€\d+\.\d\d", item, re.S) for item in shown), shown
        result = lambda word: until(word, lambda: word in (told := "".join(browser.text("#result"))) and told)

        browser.click("#order button")
        assert re.fullmatch(r"€[\d,]+\.\d\d paid, thank you\. Your order is \S+\.", result("paid")), browser.text("#result")

        browser.type("[name=user]", "nobody")
        browser.click("#order button")
        result("No order")

        # The page's own errors; the rejected order above is a response of the API, which Chromium logs as a failed resource.
        mistakes = [e["message"] for e in browser.call("POST", "/se/log", {"type": "browser"}) if e["level"] == "SEVERE" and e["source"] != "network"]
        assert not mistakes, mistakes
    finally:
        browser.call("DELETE", "")
