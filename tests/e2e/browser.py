"""Chromium in tests, driven over WebDriver (W3C) by chromedriver."""
import contextlib, json, os, re, subprocess, time, urllib.error, urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, WebDriver §12.1
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Shift": "\ue008", "Control": "\ue009", "Escape": "\ue00c", "End": "\ue010", "Home": "\ue011", "Up": "\ue013", "Down": "\ue015"}
STARTS_MAX = 5


class Driver:
    """A separate browser; its profile is in the folder."""

    def __init__(self, port, folder, logs=("browser",), flags=()):
        self.base = f"http://127.0.0.1:{port}"
        flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder}/profile", *flags]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium rejects its own sandbox for root
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {log: "ALL" for log in logs}}}}
        self.base += "/session/" + self.call("POST", "/session", wanted)["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=240) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def find(self, css):
        return [found[ELEMENT] for found in self.call("POST", "/elements", {"using": "css selector", "value": css})]

    def run(self, script, *args):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def text(self, css):
        # In one step: the page may recreate an element between finding and reading it.
        return self.run("return [...document.querySelectorAll(arguments[0])].map(element => element.innerText ?? element.textContent)", css)

    def type(self, css, text):
        (element,) = self.find(css)
        self.call("POST", f"/element/{element}/clear", {})
        self.call("POST", f"/element/{element}/value", {"text": text})

    def click(self, css):
        (element,) = self.find(css)
        self.call("POST", f"/element/{element}/click", {})

    def press(self, *keys):
        """Presses keys one after the other, wherever the focus is: a name of KEYS or a character each."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def log(self, name):
        return self.call("POST", "/se/log", {"type": name})


def until(what, condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"never seen: {what}")
        time.sleep(0.02)
    return seen


def start_driver():
    """A chromedriver and its port. It takes a free port of IPv4 and then the same one of IPv6, which another program may have."""
    for _ in range(STARTS_MAX):
        process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        said = (re.search(r"started successfully on port (\d+)", line) for line in process.stdout)
        port = next((match[1] for match in said if match), None)
        if port is not None:
            return process, port
        process.wait()
    raise SystemExit(f"chromedriver ended at each of {STARTS_MAX} starts")


@contextlib.contextmanager
def chromedriver(folder, **options):
    process, port = start_driver()
    try:
        driver = Driver(port, folder, **options)
        try:
            yield driver
        finally:
            driver.call("DELETE", "")
    finally:
        process.kill()
        process.wait()
