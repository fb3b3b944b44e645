"""The dashboard in Chromium, over `between.Between`. The environment names the server, tokens and the folder (dashboard.sh)."""
import contextlib, json, os, re, ssl, threading, time, urllib.error, urllib.request

from between import Between, Crowd
from browser import chromedriver, until

SERVER, ADMIN, VIEWER, SHOP, WORK = (os.environ[name] for name in ("SERVER", "ADMIN", "VIEWER", "SHOP", "WORK"))
CA = f"{WORK}/ca.crt"
PODS = 5000
# A busy machine computes each of the page's steps late; a step that never comes fails all the same.
SECONDS = 90
DEPLOYMENTS = "/apis/apps/v1/namespaces/shop/deployments/"


def api(method, path, body=None, media="application/merge-patch+json"):
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {ADMIN}", "content-type": media}
    request = urllib.request.Request(SERVER + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30, context=ssl.create_default_context(cafile=CA)) as answer:
        return json.load(answer)


class Page:
    """The dashboard, with what a person does and sees."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def visit(self, route, token=None):
        """Opens an address as a new page; a token in it replaces the former one."""
        self.browser.open("about:blank")
        self.browser.open(f"{self.address}/dashboard/#" + (f"token={token}" if token else route))
        if token:
            self.see("the page with its token", "nav.sidebar a")
            self.go(route)

    def go(self, route):
        self.browser.run("location.hash = arguments[0]", route)

    def see(self, what, css, pattern=""):
        """Waits for an element with such a text, and returns the matching ones."""
        matching = lambda: [text for text in self.browser.text(css) if re.search(pattern, text, re.S)]
        return until(f"{what}, {css} with {pattern}", matching, SECONDS)

    def gone(self, what, css):
        until(what, lambda: not self.browser.text(css), SECONDS)

    def value(self, script, *args):
        return self.browser.run("return " + script, *args)

    def click(self, css, text):
        """Clicks the element of this text, as soon as it is there and enabled."""
        script = """const found = [...document.querySelectorAll(arguments[0])].find((each) => each.innerText.trim() === arguments[1] && !each.disabled);
                    if (found) found.click(); return Boolean(found)"""
        until(f"{css} with {text}", lambda: self.browser.run(script, css, text), SECONDS)

    def focus_by_tab(self, what, script, most=60):
        """Presses Tab until the focused element satisfies the script, and checks that its focus is visible."""
        for _ in range(most):
            self.browser.press("Tab")
            if self.value(f"((element) => {script})(document.activeElement)"):
                ring = "[element.matches(':focus-visible'), getComputedStyle(element).outlineStyle, getComputedStyle(element.closest('.terminal') ?? element).outlineStyle]"
                visible, own, around = self.value(f"((element) => {ring})(document.activeElement)")
                assert visible and (own != "none" or around != "none"), f"{what}: the focus is not visible"
                return
        raise SystemExit(f"Tab does not reach {what}")


def signing_in(page):
    page.browser.open(f"{page.address}/dashboard/")
    page.see("the form for a token", "form h1", "Sign in")
    assert "kubectl create token" in "".join(page.browser.text("form pre"))
    page.browser.type("#token", "nonsense")
    page.click("form button", "Sign in")
    page.see("that the token is wrong", "form p", "rejects the token")
    page.browser.type("#token", ADMIN)
    page.click("form button", "Sign in")
    page.see("the user", ".user", "system:serviceaccount:default:admin")
    page.visit("/overview", ADMIN)
    assert "token" not in page.value("location.href"), "the token stays in the address"
    print("· a token is asked for, checked, and not kept in the address")


def overview(page):
    page.see("both nodes", "#nodes", r"coracle-1.*Ready.*coracle-2")
    page.see("a workload", "#workloads", r"frontend\s+shop\s+3/3")
    page.see("the pod that no node takes, with the scheduler's words", "#problems", r"nowhere.*Pending.*nodes are available")
    page.see("the crashing pod, explained", "#problems", r"crash-.*CrashLoopBackOff.*several times")
    page.see("warnings", "#warnings", "FailedScheduling")
    page.see("requests", ".figure", r"Requests/s\s+[\d.<]+")
    print("· the overview: nodes, workloads, what fails and why")


def keyboard(page):
    browser = page.browser
    browser.press("g", "p")
    page.see("the pods' page", "h1", "Pods")
    page.see("pods", ".grid .row", "frontend-")
    browser.press("/")
    until("the filter has the focus", lambda: page.value("document.activeElement.id === 'filter'"))
    browser.press(*"users-")
    until("the users' pods alone", lambda: (rows := browser.text(".grid .window .row")) and all("users-" in row for row in rows), SECONDS)
    assert "q=users-" in page.value("location.hash"), "the filter is part of the address"
    browser.press("Escape")
    page.focus_by_tab("the list", "element.getAttribute('role') === 'grid'")
    browser.press("Down", "Enter")
    page.see("a pod's page", "h1", "users-")
    page.focus_by_tab("the log's tab", "element.innerText === 'Log'")
    browser.press("Enter")
    page.see("the log", ".loglines", r"GET /")
    browser.press("?")
    page.see("the keys", "dialog dt", "g")
    browser.press("Escape")
    page.gone("the dialog", "dialog")
    for key, title in zip("owmfsnep", ("Overview", "Workloads", "Map", "Plugins", "Services", "Nodes", "Events", "Pods")):
        browser.press("g", key)
        page.see(title, "h1", title)
        assert page.value("document.querySelector('.sidebar [aria-current]').innerText").startswith(title)
    print("· the keyboard alone reaches all pages, the filter, a list and a pod")


def a_pod(page):
    (crash,) = [each["metadata"]["name"] for each in api("GET", "/api/v1/namespaces/default/pods?labelSelector=app%3Dcrash")["items"]]
    page.go(f"/pods/default/{crash}")
    page.see("how it ended", ".alert", r"exit code \d+")
    page.go(f"/pods/default/{crash}/events")
    page.see("its events", "table", "BackOff")
    page.go("/pods/shop/nowhere")
    page.see("why it has no node", ".alert", r"Unschedulable.*No node takes the pod.*nodes are available")
    user = next(each["metadata"]["name"] for each in api("GET", "/api/v1/namespaces/shop/pods?labelSelector=app%3Dusers")["items"])
    page.go(f"/pods/shop/{user}/logs")
    lines = lambda: int((found := re.search(r"(\d+) lines", " ".join(page.browser.text(".logs .hint")))) and found[1] or 0)
    before = until("lines", lines, SECONDS)
    until("more lines", lambda: lines() > before, SECONDS)
    page.click(".logs button", "Pause")
    page.see("that it is paused", ".logs .hint", "paused")
    page.go(f"/pods/shop/{user}/exec")
    page.click("form button", "Start")
    page.see("the prompt", ".terminal .screen", r"#")
    page.browser.press(*"echo su''m $((40+2))", "Enter")
    page.see("what the shell prints", ".terminal .screen", r"sum 42")
    page.browser.press(*"exit", "Enter")
    page.see("the end of the session", "form .hint", "session has ended")
    print("· a pod: why it ended, its events, its log, and a shell")


def a_workload(page):
    page.go("/workloads/Deployment/shop/users")
    before = api("GET", DEPLOYMENTS + "users")
    number = int(before["metadata"]["annotations"]["deployment.kubernetes.io/revision"])
    page.see("its pods", "table", "users-")
    page.click("button", "Scale")
    page.see("the dialog", "dialog", "Replicas")
    page.browser.type("dialog input", "3")
    page.click("dialog button", "Scale")
    until("three replicas", lambda: api("GET", DEPLOYMENTS + "users")["status"].get("readyReplicas") == 3, SECONDS)
    page.see("three replicas on the page", ".figure", "3 of 3")
    api("PATCH", DEPLOYMENTS + "users", {"spec": {"template": {"metadata": {"annotations": {"changed": "yes"}}}}})
    page.see("the next revision", "tr", rf"^{number + 1}\s+current")
    page.click("button", "Undo to this")
    page.see("the question", "dialog", f"revision {number} ")
    page.click("dialog button", "Undo to this")
    after = until("the former template", lambda: (now := api("GET", DEPLOYMENTS + "users"))["metadata"]["generation"] > before["metadata"]["generation"] + 2 and now, SECONDS)
    assert after["spec"]["template"] == before["spec"]["template"], after["spec"]["template"]
    page.see("the revision after it", "tr", rf"^{number + 2}\s+current")
    page.click("button", "Restart")
    page.click("dialog button", "Restart")
    until("the restart", lambda: "kubectl.kubernetes.io/restartedAt" in api("GET", DEPLOYMENTS + "users")["spec"]["template"]["metadata"].get("annotations", {}), SECONDS)
    page.go("/workloads/Deployment/shop/catalog")
    page.click("button", "Scale")
    page.see("who holds the replicas", "dialog", r"HorizontalPodAutoscaler\s+catalog-load")
    page.browser.press("Escape")
    print("· a workload: scaled, undone, restarted; an autoscaler is named")


def other_pages(page):
    page.go("/services/shop/catalog")
    page.see("its endpoints", "table", r"catalog-.*Ready")
    page.go("/services?ns=shop")
    page.see("Services", ".grid .row", r"frontend.*ready.*NodePort")
    page.go("/nodes/coracle-1")
    page.see("conditions", "table", r"Ready: yes")
    page.see("its pods", "h2", "Pods of the node")
    page.go("/events?ns=shop&q=FailedScheduling")
    page.see("events", ".grid .row", r"FailedScheduling.*shop/nowhere")
    page.go("/nothing")
    page.see("that there is no such page", "main", "no page")
    colors = set()
    for _ in range(3):
        colors.add(page.value("getComputedStyle(document.body).backgroundColor"))
        page.browser.run("document.querySelector('[aria-label^=Colors]').click()")
    assert len(colors) == 2, colors
    print("· Services, nodes, events; light and dark")


def the_map(page):
    served = {each["name"] for each in api("GET", "/apis/custom.metrics.k8s.io/v1beta2")["resources"]}
    page.go("/map?ns=shop")
    if "services/http_calls_per_second" not in served:
        page.see("that there is no data", ".alert", "No data")
        page.see("the Services all the same", ".chip", "catalog")
        return print("· the map, without its metric")
    page.see("who calls the catalog", "table tr", r"shop/frontend\s+shop/catalog\s+[\d.<]+")
    page.see("who calls the frontend", "table tr", r"Outside\s+shop/frontend")
    page.see("a line with a rate", ".picture .edge text", r"/s")
    print("· the map: who calls whom")


def plugins(page):
    page.go("/plugins?ns=default")
    page.see("the plugin and its functions", ".cards", r"greeter.*introduce")
    page.go("/plugins/default/greeter")
    form = "form[data-function='coracle:samples/greeter/introduce']"
    page.see("the form", f"{form} label", "language")
    page.browser.type(f"{form} textarea", "ada")
    page.browser.run("const list = document.querySelector(arguments[0]); list.value = 'french'; list.dispatchEvent(new Event('change', { bubbles: true }))", f"{form} select")
    page.click(f"{form} button", "Call")
    page.see("the result", f"{form} .result", r"bonjour ada")
    page.see("the status", f"{form} .state", "200")
    form = "form[data-function='coracle:samples/greeter/[constructor]guest-book']"
    page.browser.type(f"{form} textarea", "ours")
    page.click(f"{form} button", "Call")
    page.see("the session", ".alert", "goes with each call")
    print("· a plugin is called by a form, with its session")


def slow_and_lost(page, between):
    between.delay = 2
    page.visit("/pods?ns=shop", ADMIN)
    page.see("that it waits", ".missing", "Waiting for pods in shop")
    page.see("pods of a slow API", ".grid .row", "frontend-")
    between.delay = 0
    between.cut(True)
    page.see("that the API is lost", ".connection", r"API last seen \d+s ago, retrying")
    assert page.browser.text(".grid .window .row"), "the list stays"
    between.cut(False)
    page.see("that it is back", ".connection", "Live")
    name = "after-the-cut"
    api("POST", "/api/v1/namespaces/shop/pods", {"metadata": {"name": name}, "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "a", "image": "registry.local/crash:v1"}]}}, "application/json")
    page.see("a change after the cut", ".grid .row", name)
    between.cut(True)
    page.visit("/nodes", ADMIN)
    page.see("that no answer came yet", ".connection", "No answer from the API yet, retrying")
    page.see("what is missing", ".missing", "No answer for nodes yet")
    between.cut(False)
    page.see("the nodes", ".grid .row", "coracle-1")
    print("· a slow API, a lost one, and one that comes back")


def thousands(page, crowd):
    page.go("/pods?ns=crowd")
    page.see("all of them", "h1 .counted", rf"^5.000$")
    assert [limit for limit, _ in crowd.lists] == [500] * 10 and [token for _, token in crowd.lists][:2] == [None, "500"], crowd.lists
    rows = lambda: len(page.browser.text(".grid .window .row"))
    assert 10 <= rows() <= 80, rows()
    page.focus_by_tab("the list", "element.getAttribute('role') === 'grid'")
    page.browser.press("End")
    page.see("the last one", ".grid .row", "pod-04999")
    assert 10 <= rows() <= 80, rows()
    until("the watch", lambda: crowd.watches, SECONDS)
    crowd.delete(17)
    page.see("one less", "h1 .counted", r"^4.999$")
    crowd.expire()
    until("a new list", lambda: len(crowd.lists) >= 20, SECONDS)
    page.see("the same", "h1 .counted", r"^4.999$")
    print("· 5,000 pods: listed in chunks, watched, listed again after 410, and drawn where they are seen")


def one_namespace(page):
    page.visit("/pods", VIEWER)
    page.see("its own namespace, chosen", "h1", "Pods")
    page.see("its pod", ".grid .row", "lonely-")
    assert page.value("document.querySelector('input#namespace').value") == "one", "the namespace is a field"
    page.browser.press("g", "o")
    page.see("what it may not see", "#nodes", "You may not list nodes")
    page.see("what it may see", "#workloads", r"lonely\s+one\s+1/1")
    page.browser.type("#namespace", "shop")
    page.click(".namespace button", "Show")
    page.see("another namespace", "#workloads", "You may not list workloads")
    page.go("/workloads/Deployment/one/lonely?ns=one")
    page.see("its pods", "table", "lonely-")
    title = "[...document.querySelectorAll('.actions button')].find((each) => each.innerText === 'Scale')?.title"
    until("a button without a right says so", lambda: "You may not patch deployments/scale" in (page.value(title) or ""), SECONDS)
    pod = api("GET", "/api/v1/namespaces/one/pods")["items"][0]["metadata"]["name"]
    page.go(f"/pods/one/{pod}/exec?ns=one")
    page.see("no shell", ".missing", "You may not run commands")
    print("· an account that may see one namespace")


@contextlib.contextmanager
def customers():
    """Requests to the shop, a few a second, until the end."""
    ended = threading.Event()

    def order():
        while not ended.wait(0.2):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{SHOP}/api/products", timeout=10).read()
            body = json.dumps({"product": "coracle", "user": "ada", "quantity": 1}).encode()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{SHOP}/api/orders", body, {"content-type": "application/json"}), timeout=10).read()

    thread = threading.Thread(target=order)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def judge(browser, address):
    """No error of the page, none of its security policy, and no request to another server."""
    mistakes = [entry["message"] for entry in browser.log("browser") if entry["level"] == "SEVERE" and entry["source"] != "network"]
    assert not mistakes, mistakes
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    # The browser's own first page isn't judged.
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = {each["request"]["url"] for each in sent if each["documentURL"].startswith(address)}
    asked |= {event["params"]["url"].replace("ws:", "http:") for event in events if event["method"] == "Network.webSocketCreated"}
    strangers = [url for url in asked if not url.startswith(f"{address}/")]
    assert len(asked) > 50 and not strangers, strangers
    print(f"· {len(asked)} addresses, all of the page's server; no error")


crowd = Crowd(PODS)
between = Between("dashboard/dist", SERVER, CA, crowd)
with customers(), chromedriver(WORK, logs=("browser", "performance"), flags=["--window-size=1400,900"]) as browser:
    page = Page(browser, between.address)
    try:
        signing_in(page)
        overview(page)
        keyboard(page)
        a_pod(page)
        a_workload(page)
        other_pages(page)
        the_map(page)
        plugins(page)
        slow_and_lost(page, between)
        thousands(page, crowd)
        one_namespace(page)
    except BaseException:
        print("the page:", *page.browser.text("main"), *page.browser.text(".connection"), *page.browser.text("dialog"), sep="\n")
        raise
    judge(browser, between.address)
