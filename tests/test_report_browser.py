"""The page in a real browser: chromium without a screen and without a network."""

import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests import reported
from visualization.report.page import build

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--no-first-run",
           "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip
EVIL = "<b onclick=alert(1)>bold</b><script>document.title='taken'</script>"
WAIT_MS = 60_000  # on a busy machine
FIRST_PAINT_MS = 2000
LARGEST = 15_000_000  # bytes


@pytest.fixture(scope="module")
def browser():
    """One for all tests; skipped where there is none, which a run under CI=true does not let
    pass."""
    if CHROMIUM is None:
        reason = f"there is none of {', '.join(NAMES)}: `make browser` installs Debian's as root"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(OFFLINE))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `analyze` and `compare` leave, with a token that looks like markup."""
    made = tmp_path_factory.mktemp("results")
    reported.analysed(made, tokens=120, token=EVIL, findings=[EVIL])
    reported.compared(made, n_scored=80, token=EVIL)
    (made / "report.html").write_text(build(made), encoding="utf-8")
    return made


@pytest.fixture
def opened(browser):
    """Opens a file; when the test ends, nothing was complained of and nothing asked for."""
    said, asked, contexts = [], [], []

    def go(file: Path, width: int = 1400, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert sum(url.startswith("file:") for url in asked) == len(contexts)


def fitting(page) -> list[str]:
    """Names of the settings that are not faded."""
    return page.locator("#frontier tbody tr:not(.faded) th").all_text_contents()


def slide(page, selector: str, value: int) -> None:
    moved = "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input')); }"
    page.locator(selector).evaluate(moved, value)


def test_limits_keep_what_fits_and_an_engine_setting_is_copied(opened, folder):
    page = opened(folder / "report.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert fitting(page) == list(reported.SETTINGS)
    points = page.locator("#frontier .chart svg [aria-roledescription=point]")
    points.nth(list(reported.SETTINGS).index("kivi-2")).hover(force=True)
    told = page.locator("#vg-tooltip-element.visible")
    told.wait_for()
    assert "kivi-2" in told.text_content() and "0 of 1 needles" in told.text_content()
    slide(page, "#frontier [name=kl]", 600)
    limit = float(page.locator("#frontier [name=kl] + output").text_content().split()[0])
    expected = [label for label, (_, kl, _, _) in reported.SETTINGS.items() if kl <= limit]
    assert fitting(page) == expected and 1 < len(expected) < len(reported.SETTINGS)
    answer = page.locator("#frontier .answer").text_content()
    assert answer.startswith(f"{expected[0]} is the smallest of {len(expected)}")
    slide(page, "#frontier [name=kl]", 1000)
    slide(page, "#frontier [name=gib]", 500)
    page.locator("#frontier [name=tokens]").fill("2048")
    limit = float(page.locator("#frontier [name=gib] + output").text_content().split()[0])
    sizes = {x: (each * 2048 + once) / 2**30 for x, (each, _, once, _) in reported.SETTINGS.items()}
    assert fitting(page) == [label for label, size in sizes.items() if size <= limit * 1.005]
    page.locator("#frontier tr", has_text="fp8").get_by_role("button").click()
    page.locator("#frontier", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "--kv-cache-dtype fp8_e4m3"


def test_the_ledger_pays_from_the_length_that_its_parts_say(opened, folder):
    page = opened(folder / "report.html")
    parts = reported.parts()

    def pays(label: str, *left_out: str) -> float:
        own = parts[(parts["label"] == label) & ~parts["part"].isin(left_out)]
        stored = own.loc[~own["once_per_model"], "bytes"].sum() / reported.CONTEXT
        return own.loc[own["once_per_model"], "bytes"].sum() / (reported.PLAIN_BYTES - stored)

    tile = page.locator("#ledger .tiles div", has_text="Pays from").locator("dd")
    assert tile.text_content() == f"{pays('coded 2.0e-04'):,.0f} tokens"
    page.locator("#ledger tbody tr", has_text="scales").first.get_by_role("checkbox").uncheck()
    page.locator("#ledger tbody tr", has_text="scales").last.get_by_role("checkbox").uncheck()
    assert tile.text_content() == f"{pays('coded 2.0e-04', 'scales'):,.0f} tokens"
    page.locator("#ledger [name=setting]").select_option(label="fp8")
    assert tile.text_content() == "the first token"


def test_what_changed_follows_the_slider_worst_first(opened, folder):
    page = opened(folder / "report.html")
    table = reported.scored(80)
    for place, label in enumerate(["coded 2.0e-04", "coded 5.0e-05", "kivi-2"]):
        slide(page, "#changed [name=setting]", place)
        assert page.locator("#changed output").text_content().startswith(label)
        costs = table.loc[table["label"] == label, "kl_nats"].nlargest(32)
        shown = page.locator("#changed tbody tr > td.n").all_text_contents()
        assert len(shown) == 32
        assert [float(x.replace(",", "")) for x in shown] == pytest.approx(list(costs), rel=0.01)
        tiles = page.locator("#changed .tiles dd").all_text_contents()
        assert float(tiles[3]) == pytest.approx(costs.max(), rel=0.01)


def test_a_token_is_text_whatever_it_looks_like_and_shows_its_figures(opened, folder):
    page = opened(folder / "report.html")
    tokens = page.locator("#ribbon [role=option]")
    assert tokens.count() == 120 and tokens.nth(5).text_content() == EVIL
    assert page.locator("#ribbon b").count() == 0 and page.title() != "taken"
    page.locator("#ribbon .tokens").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert tokens.nth(5).get_attribute("aria-selected") == "true"
    assert EVIL in page.locator("#ribbon .figures h3").text_content()
    cells = page.locator("#ribbon .chart svg [aria-roledescription='rect mark']")
    assert cells.count() == 4 * 3
    assert "attention received" in cells.first.get_attribute("aria-label").lower()
    before = tokens.nth(9).evaluate("one => one.style.getPropertyValue('--w')")
    page.locator("#ribbon [name=measure]").select_option("importance")
    assert tokens.nth(9).evaluate("one => one.style.getPropertyValue('--w')") != before
    page.locator("#ribbon .watchers button").first.click()
    assert page.locator("#ribbon [aria-selected=true]").count() == 1
    page.get_by_label("keys, rotary embedding off").check()


def shares(page) -> list[float]:
    """How strong each token is coloured."""
    strength = "tokens => tokens.map(one => Number(one.style.getPropertyValue('--w')))"
    return page.locator("#ribbon [role=option]").evaluate_all(strength)


@pytest.mark.parametrize("alone", [False, True])
def test_tokens_are_coloured_by_the_bits_that_a_setting_spends(opened, folder, tmp_path, alone):
    file = folder / "report.html"
    if alone:
        reported.compared(tmp_path, n_scored=40, token=EVIL)
        file = tmp_path / "report.html"
        file.write_text(build(tmp_path), encoding="utf-8")
    page = opened(file)
    setting = page.locator("#ribbon [name=setting]")
    assert setting.is_enabled() == alone  # there is nothing else to colour by
    page.locator("#ribbon [name=measure]").select_option(label="bits spent")
    tokens = page.locator("#ribbon [role=option]")
    assert tokens.nth(5).text_content() == EVIL and page.title() != "taken"
    table = reported.spent(EVIL).set_index("position")
    for label in ("kivi-2", "coded 5.0e-05"):
        setting.select_option(label=label)
        bits = table.loc[table["label"] == label, "bits_per_value"][: tokens.count()]
        found = pd.Series(shares(page), bits.index)
        assert found.idxmax() == bits.idxmax() == 0
        inside = (found > 0) & (found < 1)
        slope = np.log(bits[inside] / bits[inside].min()).corr(found[inside])
        assert inside.sum() > 100 and slope == pytest.approx(1, abs=1e-3)
        tokens.nth(7).hover()
        said = page.locator(f"#ribbon .figures dt:text-is('bits spent by {label}') + dd")
        value, times = map(float, re.findall(r"[0-9.]+", said.text_content()))
        mean = table.loc[table["label"] == label, "bits_per_value"].mean()
        assert value == pytest.approx(bits[7], rel=0.006)
        assert times == pytest.approx(bits[7] / mean, rel=0.006)
        assert said.text_content().endswith(" times the mean")


def test_tables_are_sorted_and_searched(opened, folder):
    page = opened(folder / "report.html")
    table = page.locator("details.table", has_text="compare/byte_ledger.csv")
    table.locator("summary").click()
    column = table.locator("tbody td:nth-child(5)")
    rows = min(300, len(reported.parts()))
    column.first.wait_for()  # a table is filled when it is opened, which a browser tells later
    assert column.count() == rows
    table.get_by_role("button", name="bytes").click()
    values = [int(x.replace(",", "")) for x in column.all_text_contents()]
    assert values == sorted(values)
    table.get_by_role("button", name="bytes").click()
    assert table.locator("th[aria-sort=descending]").text_content() == "bytes"
    table.get_by_role("searchbox").fill("BASIS")
    assert column.count() == int((reported.parts()["part"] == "basis").sum())


@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_follows_the_theme(width, opened, folder):
    page = opened(folder / "report.html", width, "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def ink():
        label = page.locator("#frontier .chart svg text", has_text="fp8").first
        return label.evaluate("one => getComputedStyle(one).fill")

    dark = ground(), ink()
    page.locator("#theme").select_option("light")
    assert ground() == "rgb(255, 255, 255)" and dark[0] != ground() and dark[1] != ink()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter(one => !one.labels?.length"
        " && !one.ariaLabel && !one.textContent.trim()).length"
    )
    assert unnamed == 0 and page.locator("main h1").count() == 1
    assert page.locator("img:not([alt])").count() == 0


def test_it_prints_light_with_its_charts(opened, folder):
    page = opened(folder / "report.html", scheme="dark")
    theme = "document.documentElement.dataset.theme"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {theme}; }})")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
    assert page.evaluate("window.printed") == "light"
    assert page.evaluate(theme) == "dark"


def test_two_folders_stand_side_by_side(opened, folder, tmp_path):
    file = tmp_path / "two.html"
    file.write_text(build(folder, compare_with=folder), encoding="utf-8")
    page = opened(file)
    first, second = page.locator("#frontier .side").all()
    assert abs(first.bounding_box()["y"] - second.bounding_box()["y"]) < 2
    slide(page, "#frontier .side:nth-child(2) [name=kl]", 0)
    assert first.locator("tr.faded").count() == 0 and second.locator("tr.faded").count() > 0


def test_a_long_text_of_a_large_model_is_seen_at_once(opened, tmp_path):
    reported.analysed(tmp_path, layers=80, heads=8, tokens=8192)
    reported.compared(tmp_path, n_scored=1024)
    file = tmp_path / "report.html"
    file.write_text(build(tmp_path), encoding="utf-8")
    assert file.stat().st_size <= LARGEST
    page = opened(file)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert page.evaluate(paint) <= FIRST_PAINT_MS
    tokens = page.locator("#ribbon [role=option]")
    assert tokens.count() == 8192
    began = time.perf_counter()
    tokens.nth(40).hover()
    page.wait_for_selector("#ribbon [role=option]:nth-child(41)[aria-selected=true]")
    assert time.perf_counter() - began < 5
