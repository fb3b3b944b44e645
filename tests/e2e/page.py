"""The shop's page in Chromium: page.py URL FOLDER."""
import re, sys

from browser import chromedriver, until

URL, FOLDER = sys.argv[1:]

with chromedriver(FOLDER) as browser:
    browser.open(URL)
    shown = until("three products", lambda: len(items := browser.text("#products li")) >= 3 and items)
    assert all(re.search(r"\S+\n?.*€\d+\.\d\d", item, re.S) for item in shown), shown
    result = lambda word: until(word, lambda: word in (shown := "".join(browser.text("#result"))) and shown)

    browser.click("#order button")
    assert re.fullmatch(r"€[\d,]+\.\d\d paid, thank you\. Your order is \S+\.", result("paid")), browser.text("#result")

    browser.type("[name=user]", "nobody")
    browser.click("#order button")
    result("No order")

    # The page's own errors; the rejected order above is a response of the API, which Chromium logs as a failed resource.
    mistakes = [e["message"] for e in browser.log("browser") if e["level"] == "SEVERE" and e["source"] != "network"]
    assert not mistakes, mistakes
