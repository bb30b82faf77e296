"""The demo's report in headless Chromium, over the DevTools protocol: nothing is fetched, all can be reached and read.

Skipped where there is no Chromium, or for the accessibility check no axe-core (AXE_CORE names its axe.min.js); with
CLIPCONFORMITY_BROWSER=required, as in CI, that is a failure.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.demo import simulation as demo
from clipconformity.evaluation import Source, SourceBatch, score
from clipconformity.report import Run, write_report

pytestmark = pytest.mark.filterwarnings(
    "ignore::clipconformity.OverlapWarning",  # so few captions are all among others
    "ignore:24 of 24 captions are mostly of words",  # and attacks are no words of scenes
)
ROOT = Path(__file__).resolve().parents[2]
PHONE, DESKTOP = (390, 844), (1280, 900)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
]
# Chromium takes its commands on file 3 and answers on file 4.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
SEEN = """[...document.querySelectorAll("img")].every(x => x.complete)"""


def absent(what: str) -> None:
    if os.environ.get("CLIPCONFORMITY_BROWSER") == "required":
        pytest.fail(f"{what}, and CLIPCONFORMITY_BROWSER is required")
    pytest.skip(what)


class Browser:
    """One page of a Chromium, driven through pipes."""

    def __init__(self, binary: str, profile: Path) -> None:
        (read, self._write), (self._read, write) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (read, write)]
        command = [sys.executable, "-c", START, *map(str, ends), binary, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        for end in (read, write, *ends):
            os.close(end)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method: str, **params) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self, seconds: float = 60) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._read, 65536) if ready else b""
            if not part:
                raise TimeoutError("Chromium does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str):
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13}[key]
        reported = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **reported, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **reported)

    def show(self, size: tuple[int, int], scheme: str) -> None:
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def requests(self) -> list[str]:
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def complaints(self) -> list[dict]:
        found = []
        for event in self.events:
            params = event.get("params", {})
            if (
                event.get("method") == "Runtime.exceptionThrown"
                or (event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"))
                or (event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"))
            ):
                found.append(event)
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        absent("no Chromium on this machine")
    page = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def axe() -> str:
    reported = os.environ.get("AXE_CORE")
    file = Path(reported) if reported else ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not file.is_file():
        absent(f"no axe-core at {file}")
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory) -> Path:
    """The demo's report, of fewer samples."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "REAL", 300)
        patch.setattr(demo, "GENERATED", 150)
        assert main(["demo", "-o", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A report of twelve runs with long and foreign names, thousands of samples, and a picture for each."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("many")
    Image.new("RGB", (64, 64), "teal").save(folder / "a.png")
    reference = cc.ReferenceSet.fit(torch.randn(400, 16, generator=generator) + 0.5, modality="image")
    names = ["\u6a21\u578b\u4e8c\u53f7", "n" * 80, *(f"model {n}" for n in range(10))]
    runs = []
    for number, name in enumerate(names):
        rows = torch.randn(5000 if number == 0 else 60, 16, generator=generator) + 0.5 + 0.02 * number
        batch = SourceBatch(rows, [f"{number}-{n}" for n in range(len(rows))])
        metrics = ["nearest", "vendi"] if len(rows) < 100 else ["vendi"]
        result = score(Source(iter([batch]), len(rows)), reference, resamples=20, metrics=metrics)
        images = dict.fromkeys(result.ids, folder / "a.png")
        prompts = {one: f"prompt of {one}" for one in result.ids}
        runs.append(Run(name, result, images, prompts))
    del runs[0].score.figures["vendi_ratio"]  # a figure that one run lacks
    write_report(folder / "report.html", runs)
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A report of captions that would run a script."""
    folder = tmp_path_factory.mktemp("hostile")
    attacks = ["<script>broken = 1</script>", "<img src=x onerror=broken=1>"]
    things = [
        f"{color} {shape}" for color in ("red", "blue", "green", "white") for shape in ("circle", "square", "star")
    ]
    lines = [f"{thing} {attack}" for thing in things for attack in attacks]
    (folder / "c.txt").write_text("\n".join(lines))
    captions, reference = str(folder / "c.txt"), str(folder / "r.safetensors")
    assert main(["reference", "--captions", captions, "--encoder", "tiny", "-o", reference]) == 0
    arguments = ["score", "--captions", captions, "--reference", reference, "--resamples", "20"]
    assert main([*arguments, "--report", str(folder / "report.html")]) == 0
    return folder / "report.html"


def test_the_demos_report_opens_without_errors_and_without_a_request_off_the_page(browser, report):
    browser.open(report)
    assert browser.run("document.readyState") == "complete"
    assert browser.complaints() == []
    assert browser.requests() == [report.as_uri()]


def test_a_request_and_an_error_would_be_seen(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><img src=absent.png><script>throw Error('x')</script>")
    browser.open(page)
    assert len(browser.requests()) == 2
    assert browser.complaints() != []


def test_the_images_of_the_gallery_load(browser, report):
    browser.open(report)
    assert browser.run(SEEN)
    sizes = browser.run("[...document.querySelectorAll('.gallery img')].map(x => x.naturalWidth)")
    assert 20 <= len(sizes) <= 48
    assert min(sizes) > 0


def test_sections_are_reached_by_keyboard(browser, report):
    browser.open(report)
    sections = browser.run("[...document.querySelectorAll('main > section')].map(x => x.id)")
    assert sections[0] == "verdict"
    browser.press("Tab")
    focus = "document.activeElement.getAttribute('href') + ' ' + document.activeElement.getBoundingClientRect().left"
    assert browser.run(focus) == "#verdict 0"  # the skip link comes first and shows itself
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "verdict"
    for number, section in enumerate(sections):
        browser.open(report)
        for _ in range(number + 2):
            browser.press("Tab")
        assert browser.run("document.activeElement.getAttribute('href')") == f"#{section}"
        browser.press("Enter")
        assert browser.run("document.activeElement.id") == section


def test_the_wide_table_is_reached_by_keyboard(browser, report):
    browser.open(report)
    for _ in range(40):
        browser.press("Tab")
        if browser.run("document.activeElement.className") == "scroll":
            break
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "How typical and how varied"


def test_a_script_in_a_caption_stays_text(browser, hostile):
    browser.open(hostile)
    assert browser.run("typeof window.broken") == "undefined"
    assert browser.run("document.scripts.length") == 1  # the page's own
    words = browser.run("[...document.querySelectorAll('.gallery q')].map(x => x.textContent).join()")
    assert "<script>broken = 1</script>" in words
    assert "<img src=x onerror=broken=1>" in words
    assert browser.requests() == [hostile.as_uri()]
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_fits_its_width_and_takes_the_scheme(browser, report, size, scheme):
    browser.show(size, scheme)
    browser.open(report)
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    level = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (level > 127) == (scheme == "light")
    ink = browser.run("getComputedStyle(document.querySelector('.plot svg text')).fill.match(/\\d+/g).map(Number)[0]")
    assert (ink < 127) == (scheme == "light")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_twelve_runs_fit_the_width(browser, many, size):
    browser.show(size, "light")
    browser.open(many)
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    assert browser.complaints() == []
    assert many.stat().st_size < 3_000_000


def test_the_first_screen_of_a_desktop_holds_the_map_and_the_ranking(browser, many):
    browser.show(DESKTOP, "light")
    browser.open(many)
    bottom = browser.run("Math.max(...[...document.querySelectorAll('.lead .plot svg, .best')]"
                         ".map(x => x.getBoundingClientRect().bottom))")  # fmt: skip
    assert bottom <= DESKTOP[1]
    assert browser.run("[...document.querySelectorAll('.best')].map(x => x.textContent.slice(0, 11)).join()") == (
        "Most varied,Most typica"
    )


def test_a_plot_fills_the_width_that_there_is(browser, many):
    browser.show(DESKTOP, "light")
    browser.open(many)
    assert browser.run("Math.min(...[...document.querySelectorAll('.plot svg')].map(x => x.clientWidth))") > 500


@pytest.mark.parametrize("page", ["report", "many"])
def test_nothing_is_cut_in_print(browser, page, request):
    """On paper nothing can be scrolled: no box may be wider than what holds it, nor a card lie on two sheets."""
    browser.show((718, 1016), "dark")  # A4 within its margins, in pixels
    browser.open(request.getfixturevalue(page))
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    try:
        every = "[...document.querySelectorAll('main *')].filter(x => !x.closest('svg'))"
        wide = f"{every}.filter(x => x.getBoundingClientRect().right > 718.5)"
        assert browser.run(f"{wide}.map(x => x.tagName + x.textContent.slice(0, 40))") == []
        hidden = "[...document.querySelectorAll('.scroll, pre')].filter(x => x.scrollWidth > x.clientWidth + 1).length"
        assert browser.run(hidden) == 0
        keep = "[...document.querySelectorAll('.gallery li, tr, .plot')].map(x => getComputedStyle(x).breakInside)"
        assert set(browser.run(keep)) == {"avoid"}
        level = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert level == 255  # dark pages take no ink
        printed = browser.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]
        assert base64.b64decode(printed)[:5] == b"%PDF-"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])


def shown(browser) -> list[str]:
    """The names of the cards that are to be seen, in their order, of the first list that has some."""
    return browser.run(
        "[...document.querySelectorAll('#gallery .gallery')].map(list => [...list.children]"
        ".filter(x => x.checkVisibility()).map(x => x.querySelector('.name').textContent)).find(x => x.length) ?? []"
    )


def pick(browser, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const x = document.querySelector('.tools').elements.{name}; x.value = {json.dumps(value)};"
        " x.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def test_the_gallery_sorts_by_what_is_known_of_each_sample(browser, report):
    browser.show(DESKTOP, "light")
    browser.open(report)
    listed = shown(browser)
    values = browser.run(
        "Object.fromEntries([...document.querySelector('#gallery .gallery').children]"
        ".map(x => [x.querySelector('.name').textContent, [Number(x.dataset.conformity), Number(x.dataset.norm)]]))"
    )
    for order, place, sign in (("norm down", 1, -1), ("norm up", 1, 1), ("conformity up", 0, 1)):
        pick(browser, "order", order)
        assert shown(browser) == sorted(listed, key=lambda name: sign * values[name][place])
    pick(browser, "order", "")
    assert shown(browser) == listed


def test_the_gallery_filters_by_run_and_words(browser, many):
    browser.show(DESKTOP, "light")
    browser.open(many)
    count = "[...document.querySelectorAll('#gallery li')].filter(x => x.checkVisibility()).length"
    everything = browser.run(count)
    pick(browser, "run", "model 3")
    assert {name.split("-")[0] for name in shown(browser)} == {"5"}
    assert 0 < browser.run(count) < everything
    assert browser.run("document.querySelector('.tools output').textContent") == f"{browser.run(count)} shown"
    pick(browser, "run", "")
    pick(browser, "words", "PROMPT of 7-")
    assert {name.split("-")[0] for name in shown(browser)} == {"7"}
    pick(browser, "words", "no such words")
    assert browser.run(count) == 0
    pick(browser, "words", "")
    assert browser.run(count) == everything


def test_the_page_reads_the_same_without_its_script(browser, many, tmp_path):
    text = many.read_text(encoding="utf-8")
    (tmp_path / "plain.html").write_text(text[: text.index("<script>")] + "</body></html>", encoding="utf-8")
    browser.show(DESKTOP, "light")
    browser.open(many)
    words = "[...document.querySelectorAll('main section:not(#gallery)')].map(x => x.innerText).join()"
    cards = "[...document.querySelectorAll('#gallery li')].map(x => x.innerText).join()"
    with_script = browser.run(words), browser.run(cards)
    browser.open(tmp_path / "plain.html")
    assert (browser.run(words), browser.run(cards)) == with_script
    assert browser.run("document.querySelector('.tools').checkVisibility()") is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_axe_finds_no_serious_violation(browser, report, axe, size, scheme):
    browser.show(size, scheme)
    browser.open(report)
    browser.run(axe + "; 0")
    found = browser.run("axe.run().then(x => x.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 200)]))")
    assert [v for v in found if v[0] in ("serious", "critical")] == []


def test_axe_would_find_one(browser, axe, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><html><title>x</title><img src='data:,'></html>")
    browser.open(page)
    browser.run(axe + "; 0")
    found = browser.run("axe.run().then(x => x.violations.map(v => v.id))")
    assert {"image-alt", "html-has-lang"} <= set(found)
