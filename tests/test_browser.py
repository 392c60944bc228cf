"""Does the benchmark page work in a real browser: alone, by keyboard, by ear, small and large?

Debian's chromium, headless, offline. Where the browser or its driver is missing, the tests say so
and are skipped; `.ci/run` installs both. Set KCPR_SCREENSHOTS to a folder to keep the pictures.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import TASKS, fake_row, fake_rows, write_rows
from fakes import fake_policy, fake_run

from kcpr_safety.report import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="pip install 'kcpr-safety[browser]' to test in a browser"
    )
    if not CHROMIUM:
        pytest.skip("apt-get install chromium to test in a browser")
    with api.sync_playwright() as driver:
        sandbox = [] if os.getuid() else ["--no-sandbox"]
        running = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield running
        running.close()


@pytest.fixture(scope="module")
def benchmark_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    less = {"label": "steady, less", "overrides": {"softening": 0.5}}
    rows = fake_rows() + [fake_row(TASKS[0], "steady", s, **less) for s in range(5)]
    rows.append(fake_row(TASKS[0], "steady", 8, schema_version="trial-0"))
    return build_report([write_rows(folder / "rows.jsonl", rows)], folder)


@pytest.fixture(scope="module")
def runs_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser-runs")
    return build_report([fake_run(folder / f"r{i}", fake_policy(i)) for i in range(2)], folder)


class Opened:
    """A page with what it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str = "light") -> None:
        view = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=view, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = path.as_uri()
        self.page.goto(self.url)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("which", ["benchmark_html", "runs_html"])
def test_it_opens_in_silence_and_fits(
    browser: Any, request: pytest.FixtureRequest, which: str, width: int, scheme: str
) -> None:
    with Opened(browser, request.getfixturevalue(which), width, scheme) as opened:
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith("data:")] == [opened.url]
        across = opened.page.evaluate("document.documentElement.scrollWidth")
        assert across <= width, "the page scrolls sideways"
        if folder := os.environ.get("KCPR_SCREENSHOTS"):
            picture = Path(folder) / f"{which.removesuffix('_html')}-{width}-{scheme}.png"
            opened.page.screenshot(path=str(picture), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["benchmark_html", "runs_html"])
def test_axe_finds_nothing_serious(
    browser: Any, request: pytest.FixtureRequest, which: str, scheme: str
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install 'kcpr-safety[browser]'"
    )
    for width in (360, 1600):
        with Opened(browser, request.getfixturevalue(which), width, scheme) as opened:
            opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            found = axe.Axe().run(opened.page).response["violations"]
            serious = [
                f"{v['impact']}: {v['id']}: {v['nodes'][0]['html'][:200]}"
                for v in found
                if v["impact"] in ("serious", "critical")
            ]
            assert serious == []


def column(page: Any, index: int) -> list[str]:
    """A column of the first ranking, as shown from top to bottom."""
    rows = page.locator("table.sortable").filter(has_text="agents over training seeds").first
    cells = rows.locator("tbody tr").all()
    return [row.locator("th, td").nth(index).inner_text().split("\n")[0] for row in cells]


def test_tables_sort_by_number_and_by_word_with_the_keyboard_alone(
    browser: Any, benchmark_html: Path
) -> None:
    with Opened(browser, benchmark_html, 1600) as opened:
        page = opened.page
        table = page.locator("table.sortable").filter(has_text="agents over training seeds").first
        assert column(page, 0) == ["steady", "lucky", "eager"]
        returns = table.get_by_role("button", name="return per episode")
        returns.focus()
        page.keyboard.press("Enter")
        rising = [float(text.replace(",", "")) for text in column(page, 6)]
        assert rising == sorted(rising)
        page.keyboard.press("Space")
        assert column(page, 0)[0] == "eager"
        head = table.locator("th", has_text="return per episode")
        assert head.get_attribute("aria-sort") == "descending"
        status = page.locator("[role=status]").filter(has_text="return per episode")
        assert status.inner_text() == "Sorted by return per episode, falling."
        table.get_by_role("button", name="agent").click()
        assert column(page, 0) == ["eager", "lucky", "steady"]
        assert head.get_attribute("aria-sort") is None
        assert opened.said == []


def test_on_a_phone_tables_become_blocks_that_still_sort(
    browser: Any, benchmark_html: Path
) -> None:
    with Opened(browser, benchmark_html, 360) as opened:
        table = opened.page.locator("table.sortable").filter(has_text="agents over").first
        assert (
            table.locator("tbody tr").first.evaluate("r => getComputedStyle(r).display") == "block"
        )
        table.get_by_role("button", name="agent").click()
        assert column(opened.page, 0) == ["eager", "lucky", "steady"]


def test_the_first_tab_skips_to_the_evidence(browser: Any, benchmark_html: Path) -> None:
    with Opened(browser, benchmark_html, 1600) as opened:
        opened.page.keyboard.press("Tab")
        focused = opened.page.evaluate("document.activeElement.textContent")
        assert focused == "Skip to the evidence"


def test_it_prints(browser: Any, benchmark_html: Path, tmp_path: Path) -> None:
    with Opened(browser, benchmark_html, 1600) as opened:
        opened.page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
