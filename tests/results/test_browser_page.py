"""The sample browser as a reader uses it, in Chromium without a window, opened from the disk. Skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsed import HOSTILE, browsed_run, hostile_run

from hide_llava.results import report
from hide_llava.results.report import write_report
from tests.chromium import Chromium

ROWS = "[...document.querySelectorAll('.browse tbody tr')]"
IDS = f"{ROWS}.map((row) => row.querySelector('.id').textContent)"
COUNT = "document.getElementById('browser-status').textContent"
FOCUSED = "document.activeElement.closest('tr')?.querySelector('.id').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of a run with 60 questions: three pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_draw", lambda run, folder: ([], "not drawn"))
        return write_report(browsed_run(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Chromium) -> Iterator[Chromium]:
    """The browser; no page of the test may have complained."""
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.look(1600)
    yield chromium
    assert chromium.complaints == []


def opened(browser: Chromium, page: Path, address: str = "") -> None:
    """A page anew: from one address of a page to another a browser would only move."""
    browser.open("about:blank")
    browser.open(f"{page.as_uri()}{address}")
    browser.until(f"{ROWS}.length > 0 || {COUNT}.startsWith('No question')")


def choose(browser: Chromium, name: str, value: object) -> None:
    """A field of the form, as if a reader had set it; waits for the rows."""
    key = "checked" if isinstance(value, bool) else "value"
    told = f"document.querySelector('#browser form').elements[{json.dumps(name)}]"
    browser.run(f"window.old = {ROWS}[0]; {told}.{key} = {json.dumps(value)}; "
                f"{told}.dispatchEvent(new Event('input', {{bubbles: true}}))")  # fmt: skip
    browser.until(f"{ROWS}[0] !== window.old")


def test_it_opens_with_pictures_and_answers(browser: Chromium, page: Path) -> None:
    opened(browser, page)
    assert browser.run(COUNT) == "60 questions" and browser.run(IDS) == [str(k) for k in range(20)]
    assert browser.run("document.getElementById('browser-pages').textContent") == "of 3"
    assert browser.run("document.getElementById('few-answers').hidden && document.getElementById('browser-off').hidden")
    heads = browser.run("[...document.querySelectorAll('.browse thead th')].map((cell) => cell.textContent)")
    assert heads == ["Picture", "Prompt and references", "After ImageNet-R", "After ArxivQA", "After VizWiz"]
    first = browser.run(f"{ROWS}[1].innerText")
    for shown in ("gold 1", "✓ right", "✗ empty, lost here", "lost after ArxivQA", "What is shown in picture 1? <b>&"):
        assert shown in first
    pictures = browser.run(f"Promise.all([...{ROWS}[1].querySelectorAll('img')].map((p) => (p.loading = 'eager', p.decode()"
                           ".then(() => [p.naturalWidth, p.alt]))))")  # fmt: skip
    assert pictures == [[160, "picture 1.png"], [160, "picture 1 & two.jpg"]]
    label = browser.run(f"{ROWS}[1].querySelector('.weights').getAttribute('aria-label')")
    assert label.startswith("weights: ImageNet-R 0.")
    assert browser.run(f"{ROWS}[5].querySelector('.routed.no').textContent") == "misrouted to VizWiz 0.7"


def test_filters(browser: Chromium, page: Path) -> None:
    opened(browser, page)
    choose(browser, "task", "imagenet-r")
    choose(browser, "state", "lost")
    assert browser.run(IDS) == ["1", "3"] and browser.run(COUNT) == "2 questions of 60"
    choose(browser, "state", "lost-3")
    assert browser.run(IDS) == ["3"]
    choose(browser, "state", "right")
    choose(browser, "misrouted", True)
    assert browser.run(IDS) == ["5"]
    choose(browser, "misrouted", False)
    choose(browser, "state", "")
    choose(browser, "format", True)
    assert browser.run(IDS) == ["1", "3"]
    choose(browser, "state", "right")
    assert browser.run(IDS) == [] and browser.run(COUNT) == "No question fits; clear a filter."
    browser.run("document.querySelector('#browser [type=reset]').click()")
    browser.until(f"{ROWS}.length === 20")
    assert browser.run(COUNT) == "60 questions" and browser.run("location.hash") == ""


def test_search_sort_and_pages(browser: Chromium, page: Path) -> None:
    opened(browser, page)
    choose(browser, "q", "GOLD 17")  # in references and answers, letter case does not matter
    assert browser.run(COUNT) == "2 questions of 60" and browser.run(IDS) == ["17", "17"]
    choose(browser, "q", "pear know")
    assert browser.run(IDS) == []
    choose(browser, "q", "")
    choose(browser, "sort", "id")
    assert browser.run(IDS)[:7] == ["0", "0", "0", "1", "1", "1", "2"]  # 2 before 10
    choose(browser, "task", "imagenet-r")
    choose(browser, "sort", "lost")
    assert browser.run(IDS)[:4] == ["1", "3", "0", "2"]
    choose(browser, "sort", "high")
    assert browser.run(IDS)[:3] == ["5", "7", "9"]
    choose(browser, "task", "")
    choose(browser, "sort", "task")
    browser.run("document.querySelector('[data-go=\"1\"]').click()")
    browser.until("location.hash === '#page=2'")
    assert browser.run(f"{ROWS}[0].querySelector('.what').textContent") == "ArxivQA"
    browser.run("Object.assign(document.querySelector('[name=page]'), {value: 99}).dispatchEvent(new Event('change'))")
    browser.until("location.hash === '#page=3'")
    assert browser.run("[...document.querySelectorAll('[data-go=\"1\"]')].every((button) => button.disabled)")


def test_the_address_is_a_link(browser: Chromium, page: Path) -> None:
    opened(browser, page, "#task=imagenet-r&state=wrong&format=1&sort=low&q=know")
    assert browser.run(IDS) == ["3"] and browser.run("document.querySelector('[name=q]').value") == "know"
    assert browser.run("Math.abs(document.getElementById('samples').getBoundingClientRect().top) < 400")  # it is in view
    browser.run("location.hash = '#task=arxivqa&page=1'")
    browser.until(f"{ROWS}.length === 20")
    assert browser.run("document.querySelector('[name=task]').value") == "arxivqa"
    opened(browser, page, "#task=nothing&state=lost-x&sort=%3Cimg%3E&page=-5&q=")  # what is no choice is not chosen
    assert browser.run(COUNT) == "60 questions" and browser.run("location.hash") == ""


def test_by_keyboard(browser: Chromium, page: Path) -> None:
    opened(browser, page)
    browser.press("j")
    assert browser.run(FOCUSED) == "0"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # and one sees it
    for key, expected in [("j", "1"), ("ArrowDown", "2"), ("k", "1"), ("ArrowUp", "0"), ("k", "0")]:
        browser.press(key)
        assert browser.run(FOCUSED) == expected
    browser.press("Enter")
    assert browser.run("document.activeElement.className") == "open"
    browser.press("n")
    browser.until(f"location.hash === '#page=2' && {FOCUSED} === '0'")
    browser.press("ArrowLeft")
    browser.until(f"location.hash === '' && {FOCUSED} === '0'")
    browser.press("/")
    assert browser.run("document.activeElement.name") == "q"
    browser.type("gold 15")
    browser.until(f"{ROWS}.length === 2")
    browser.press("j")  # a letter of the search now
    browser.until(f"{COUNT}.startsWith('No question')")
    named = browser.run("[...document.querySelectorAll('#browser :is(input, select, button)')].map((field) => "
                        "field.labels?.[0]?.textContent ?? field.textContent)")  # fmt: skip
    assert len(named) == 12 and all(name.strip() for name in named)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_it_fits(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    """Nothing sticks out of the page, and the text can be told from its ground."""
    browser.look(width, dark=dark)
    opened(browser, page, "#state=wrong")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(f"{ROWS}.every((row) => row.getBoundingClientRect().right <= innerWidth)")
    assert (browser.run("getComputedStyle(document.querySelector('.browse thead')).display") == "none") == (width == 400)
    colours = browser.run(f"[getComputedStyle({ROWS}[0]).color, getComputedStyle(document.body).backgroundColor]"
                          ".map((c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3)")  # fmt: skip
    assert (colours[0] - colours[1] > 128) if dark else (colours[1] - colours[0] > 128)


def test_hostile_content_is_shown_as_text(browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No script of it runs, no element of it appears, and nothing outside of the run's results is read."""
    monkeypatch.setattr(report, "_draw", lambda run, folder: ([], "not drawn"))
    page = write_report(hostile_run(tmp_path))
    opened(browser, page)
    shown = browser.run(f"{ROWS}[0].textContent")
    assert HOSTILE in shown and "lost after" in shown
    assert HOSTILE in browser.run(IDS) and "../../../outside" in browser.run(IDS)
    choose(browser, "q", "</script> ..")
    assert browser.run(f"{ROWS}.length") > 0 and browser.run("window.harmed") is None
    assert browser.run("document.querySelectorAll('#browser img:not([src^=\"samples/pictures/\"]), #browser script').length") == 0
    browser.run("Promise.all([...document.images].map((p) => (p.loading = 'eager', p.decode().catch(() => 0))))")
    paths = [unquote(urlsplit(address).path) for address in browser.requests if urlsplit(address).scheme not in ("data", "about")]
    assert {urlsplit(a).scheme for a in browser.requests} <= {"file", "data", "about"} and len(paths) > 4
    assert all(Path(path).is_relative_to(page.parent) and ".." not in path for path in paths)


def test_a_damaged_folder_is_told(chromium: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the index the page shows its few answers; a crafted one cannot name other files; a lost picture is a grey box."""
    monkeypatch.setattr(report, "_draw", lambda run, folder: ([], "not drawn"))
    page = write_report(browsed_run(tmp_path, done=1, questions=4))
    samples = page.parent / "samples"
    for picture in samples.glob("pictures/*/*.jpg"):
        picture.unlink()
    chromium.look(1600)
    opened(chromium, page)
    chromium.run("[...document.images].forEach((p) => p.loading = 'eager')")
    chromium.until("document.querySelectorAll('.absent').length === 6")
    assert chromium.run(f"{ROWS}[0].querySelector('.absent').textContent") == "picture missing in samples: 0.png"
    index = (samples / "index.js").read_text()
    (shard,) = json.loads(index[index.index("{") : index.rindex(")")])["shards"]
    (samples / "index.js").write_text(index.replace(shard, "../../../config"))
    opened_at = len(chromium.requests)
    chromium.open("about:blank")
    chromium.open(page.as_uri())
    chromium.until(f"{COUNT} === 'damaged index; write the report again.'")
    assert not any("config" in address for address in chromium.requests[opened_at:])
    (samples / "index.js").unlink()
    chromium.open("about:blank")
    chromium.open(page.as_uri())
    chromium.until("document.getElementById('browser-off').textContent.includes('samples/index.js cannot be read')")
    assert chromium.run("!document.getElementById('few-answers').hidden && document.getElementById('browser').hidden")
