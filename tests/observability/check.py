#!/usr/bin/env python3
"""check.py files|data

files  The rules, their tests, the dashboard and the documentation fit together: each alert has a test, a severity and a section that
       exists; panels have unique ids and places, units, descriptions and known metrics.
data   At the Prometheus of $PROMETHEUS, every expression of every rule and panel has data: an alert's without its last comparison. The
       annotations of firing alerts are well formed.
"""
import json, os, re, sys, time, urllib.parse, urllib.request

import yaml

DATA_SECONDS_MAX = 75
DOCS = "docs/observability.md"
FILES = "packaging/observability"
# Of Prometheus itself.
OWN = {"up", "ALERTS"}
SEVERITIES = {"critical", "warning"}
VARIABLES = {"$__rate_interval": "30s", "$__range": "1h", "$namespace": ".*", "$pod": ".*", "$node": ".*"}
COMPARISON = re.compile(r"\s(>|<)\s*(\d+(\.\d+)?)$")
WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "group_left", "group_right", "offset", "bool"}
problems = []


def expect(condition, problem):
    if not condition:
        problems.append(problem)


def read(name):
    with open(f"{FILES}/{name}") as file:
        return file.read()


def rules():
    return [rule for group in yaml.safe_load(read("coracle.rules.yaml"))["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads(read("grafana-dashboard.json"))


def metrics(expression):
    """The names of the metrics in a PromQL expression."""
    text = re.sub(r'"(\\.|[^"\\])*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    names = re.findall(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", text)
    return {name for name in names if name not in WORDS}


def documented():
    """The names in the tables of the section "Metrics"."""
    with open(DOCS) as file:
        section = re.search(r"\n## Metrics\n(.*?)\n## ", file.read(), re.S).group(1)
    names = set()
    for line in section.splitlines():
        if line.startswith("|"):
            names |= {re.sub(r"\{.*", "", name) for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    prefix = "apiserver_admission_webhook"
    return names | {name.replace("…", prefix) for name in names}


def anchors():
    with open(DOCS) as file:
        titles = re.findall(r"^#+ (.*)$", file.read(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def known(expression, where, recorded, documented):
    for name in metrics(expression):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        expect({name, base} & (recorded | documented | OWN), f"{where}: {name} is not in {DOCS}, \"Metrics\"")


def check_rules(recorded, documented):
    sections, seen = anchors(), set()
    tests = yaml.safe_load(read("coracle.rules.test.yaml"))["tests"]
    tested = {test["name"] for test in tests if test["promql_expr_test"][0]["exp_samples"]}
    expect("healthy" in {test["name"] for test in tests} - tested, "coracle.rules.test.yaml: no test of a healthy cluster")
    with open(DOCS) as file:
        text = file.read()
    for rule in rules():
        name = rule.get("record") or rule["alert"]
        known(rule["expr"], name, recorded, documented)
        if "record" in rule:
            continue
        seen.add(name)
        annotations = rule["annotations"]
        expect(rule["labels"].get("severity") in SEVERITIES, f"{name}: no severity")
        expect("for" in rule, f"{name}: no `for`")
        expect({"summary", "description", "runbook"} <= annotations.keys(), f"{name}: no summary, description or runbook")
        page, _, anchor = annotations["runbook"].partition("#")
        expect(page == DOCS and anchor in sections, f"{name}: {annotations['runbook']} doesn't exist")
        expect(f"| `{name}`" in text, f"{name}: no row in {DOCS}")
        expect(len(COMPARISON.findall(rule["expr"])) == 1 and len(re.findall(r"\s[<>]=?\s", rule["expr"])) == 1, f"{name}: one comparison at the end")
    expect(tested == seen, f"coracle.rules.test.yaml: {tested ^ seen}")
    expect(set(re.findall(r"\| `(Coracle\w+)`", text)) == seen, f"{DOCS}: other alerts than in the rules")


def overlap(a, b):
    return a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def check_dashboard(recorded, documented):
    board = dashboard()
    variables = {one["name"]: one for one in board["templating"]["list"]}
    expect(board["schemaVersion"] >= 39 and board["uid"] == "coracle" and board.get("id") is None, "dashboard: schemaVersion, uid or id")
    expect(variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus", "dashboard: no variable of a data source")
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    expect(len(ids) == len(set(ids)), "dashboard: ids are not unique")
    for n, panel in enumerate(panels):
        where, place = f"panel {panel['id']} ({panel['title']})", panel["gridPos"]
        expect(place["x"] + place["w"] <= 24, f"{where}: beyond the grid")
        expect(not any(overlap(place, other["gridPos"]) for other in panels[:n]), f"{where}: overlaps")
        if panel["type"] == "row":
            continue
        expect(panel["fieldConfig"]["defaults"].get("unit"), f"{where}: no unit")
        expect(panel.get("description"), f"{where}: no description")
        letters = [target["refId"] for target in panel["targets"]]
        expect(letters and len(letters) == len(set(letters)), f"{where}: refIds")
        for target in panel["targets"]:
            for source in (panel["datasource"], target["datasource"]):
                expect(source == {"type": "prometheus", "uid": "${datasource}"}, f"{where}: another data source")
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            expect(used <= variables.keys() | {"__rate_interval", "__range"}, f"{where}: unknown variables {used}")
            known(target["expr"], where, recorded, documented)


def files():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    names = documented()
    check_rules(recorded, names)
    check_dashboard(recorded, names)


def api(path, **parameters):
    with urllib.request.urlopen(f"{os.environ['PROMETHEUS']}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
        return json.load(response)["data"]


def expressions():
    """All expressions with the names of their places."""
    for rule in rules():
        yield rule.get("record") or rule["alert"], COMPARISON.sub("", rule["expr"])
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['id']} ({panel['title']}), {target['refId']}", target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"]).group(1)
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def numbers(result):
    return [sample["value"][1] for sample in result if sample["value"][1] != "NaN"]


def data():
    missing = dict(expressions())
    end = time.monotonic() + DATA_SECONDS_MAX
    total = len(missing)
    while missing and time.monotonic() < end:
        for where, expression in list(missing.items()):
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            if numbers(api("query", query=expression)["result"]):
                del missing[where]
        time.sleep(1)
    for where, expression in missing.items():
        problems.append(f"{where}: no data: {expression}")
    healthy = [rule for group in api("rules")["groups"] for rule in group["rules"]]
    for rule in healthy:
        expect(rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}")
    wanted = {"CoracleNodeDown", "CoraclePodNotReady", "CoraclePodsUnschedulable", "CoracleOutOfFuel", "CoracleOutOfMemory", "CoracleTraps", "CoracleNoEndpoint", "CoracleWebhookFails"}
    alerts, active = [], set()
    while not wanted <= active and time.monotonic() < end:
        alerts = api("alerts")["alerts"]
        active = {alert["labels"]["alertname"] for alert in alerts}
        time.sleep(1)
    expect(wanted <= active, f"no alert: {wanted - active}")
    for alert in alerts:
        for text in alert["annotations"].values():
            expect("<error" not in text and "<no value>" not in text, f"{alert['labels']['alertname']}: {text}")
    print(f"· {total - len(missing)} of {total} expressions have data; active alerts: {' '.join(sorted(active))}")


{"files": files, "data": data}[sys.argv[1]]()
for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(1 if problems else 0)
