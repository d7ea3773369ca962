"""Is the book sound? Every link leads somewhere, every picture is there, and no page writes an error into the console.

    python tools/check_book.py [SITE] [--only-links] [--pictures FOLDER]

Links are checked in the files. Then headless Chromium opens the pages from the disk, without a network; without
Chromium, or with --only-links, that part is left out. --pictures keeps screenshots, on a wide screen and on a phone.
"""
import argparse
import base64
import html.parser
import itertools
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-dev-shm-usage --allow-file-access-from-files "
         "--remote-allow-origins=* --remote-debugging-port=0").split()


class Page(html.parser.HTMLParser):
    "What a page links to, what it loads, and what can be linked to in it."
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "link" and a.get("rel") in ("stylesheet", "icon", "preload"): self.loads.append(a.get("href", ""))
        if tag in ("img", "script", "source") and a.get("src"): self.loads.append(a["src"])


def dead_links(site):
    "Links and pictures of all pages that lead nowhere, and what is loaded from elsewhere."
    found = {p: Page(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html")) if "_static" not in p.parts}
    for path, page in found.items():
        name = path.relative_to(site).as_posix()
        for target in page.loads:
            if re.match("https?:|//", target): yield f"{name}: loads {target}"
        for target in {*page.links, *page.loads}:
            if re.match(r"[a-z]+:|//", target): continue
            file, _, part = unquote(target).partition("#")
            there = Path(posixpath.normpath(path.parent/file.split("?")[0])) if file else path
            if not there.is_file(): yield f"{name}: links to {target}, which is not there"
            elif part and there in found and part not in found[there].ids:
                yield f"{name}: links to {target}, a place that the page does not have"


class Browser:
    "Headless Chromium, led through its debugging protocol."
    def __init__(self, program):
        import websocket
        self.folder = tempfile.mkdtemp()
        words = [program, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(self.folder)/"DevToolsActivePort"
        for _ in range(600):
            if port.exists() and len(port.read_text().splitlines()) > 1: break
            time.sleep(.1)
        number, path = port.read_text().splitlines()[:2]
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{number}{path}", timeout=120)
        self.numbers, self.events, self.session = itertools.count(1), [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"): self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        "The answer to a command; events meanwhile are kept."
        number = next(self.numbers)
        message = dict(id=number, method=method, params=params) | ({"sessionId": self.session} if self.session else {})
        self.socket.send(json.dumps(message))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") != number: self.events.append(said)
            elif "error" in said: raise RuntimeError(f"{method}: {said['error']['message']}")
            else: return said["result"]

    def open(self, path):
        "Load a page; returns what went wrong in it."
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(json.loads(self.socket.recv()))
        broken = ("Array.from(document.images).filter(i => i.loading != 'lazy' && i.complete && !i.naturalWidth)"
                  ".map(i => i.src)")
        missing = self.ask("Runtime.evaluate", expression=broken, returnByValue=True)["result"]["value"]
        return [*filter(None, map(complaint, self.events)), *(f"picture {src} is missing" for src in missing)]

    def finds(self, site, word):
        "How many pages the search of the book finds, within ten seconds."
        self.ask("Page.navigate", url=f"{(site/'search.html').resolve().as_uri()}?q={word}")
        for _ in range(20):
            time.sleep(.5)
            count = "document.querySelectorAll('#search-results li').length"
            found = self.ask("Runtime.evaluate", expression=count, returnByValue=True)["result"].get("value", 0)
            if found: return found
        return 0

    def picture(self, path, to, width, height, dark=False):
        "A screenshot of the top of a page."
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.open(path)
        time.sleep(1) # formulas
        to.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def complaint(event):
    "What an event says went wrong, or None."
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown": return f"error: {params['exceptionDetails']['text']}"
    if method == "Log.entryAdded" and params["entry"]["level"] == "error":
        return f"error: {params['entry']['text']} {params['entry'].get('url', '')}"
    if method == "Runtime.consoleAPICalled" and params["type"] == "error":
        return f"error: {' '.join(str(a.get('value', '')) for a in params['args'])}"


def in_browser(site, program, pictures):
    "What goes wrong on any page."
    browser = Browser(program)
    try:
        for path in sorted(site.rglob("*.html")):
            if "_static" in path.parts: continue
            for text in browser.open(path): yield f"{path.relative_to(site)}: {text}"
        if not browser.finds(site, WORD): yield f"search.html: finds nothing for {WORD}"
        if pictures:
            Path(pictures).mkdir(parents=True, exist_ok=True)
            yield from (f"{name}: no such page to take a picture of" for name in SHOWN if not (site/name).exists())
            for i, name in enumerate(SHOWN):
                for kind, size in dict(wide=(1280, 900), phone=(390, 844)).items():
                    browser.picture(site/name, Path(pictures)/f"{i}-{kind}.png", *size, dark=bool(i % 2))
    finally: browser.close()


WORD = "trajectory"
SHOWN = ("index.html", "nbs/00_tour.html", "nbs/distillation/33_gradient_matching.html", "figures/quick/notebooks/fig02.html",
         "figures/quick/notebooks/tab01.html", "api/core.checks.html", "results/quick.html", "docs/references.html")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=ROOT/"build"/"book"/"html")
    parser.add_argument("--only-links", action="store_true")
    parser.add_argument("--pictures")
    asked = parser.parse_args()
    if not (asked.site/"index.html").exists(): sys.exit(f"there is no book in {asked.site}; run `make book`")
    wrong = list(dead_links(asked.site))
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not asked.only_links and program: wrong += in_browser(asked.site, program, asked.pictures)
    said = "without a browser" if asked.only_links or not program else "in Chromium"
    n = len(list(asked.site.rglob("*.html")))
    print("\n".join(wrong) or f"{n} pages are sound, looked at {said}", file=sys.stderr if wrong else sys.stdout)
    sys.exit(bool(wrong))
