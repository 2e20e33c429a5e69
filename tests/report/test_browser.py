"""The page in a real browser: what only a browser can say of it."""

import shutil
from itertools import pairwise

import pytest
from playwright.sync_api import sync_playwright

from lrd_deploy.report.canvas import NARROW, WIDE
from lrd_deploy.report.html import write_report
from tests.report.folders import HOSTILE, HOSTILE_NAMES, write_gate, write_run

pytestmark = pytest.mark.browser
BINARIES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PAGES = ("run", "both", "gate")
SMALLEST_TEXT = 10  # CSS pixels
PAPER_WIDTH, PAPER_HEIGHT = 695, 1016  # CSS pixels of A4 within the page's margins: 184 by 269 mm
TEXT_CONTRAST, LARGE_TEXT_CONTRAST = 4.5, 3.0  # WCAG 2.2, 1.4.3 at level AA

# The ratio of each text's colour to the ground behind it, with the text and whether it counts as large.
CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const own = (element) => [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
  const texts = [...document.querySelectorAll("body *")].filter((e) => !e.closest("svg, script") && own(e)).map((e) => {
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    return [own(e), ratio(channels(style.color), ground(e)), size >= 24 || (size >= 18.66 && style.fontWeight >= 700)];
  });
  const probe = document.body.appendChild(document.createElement("i"));
  const names = [...new Set(document.body.innerHTML.match(/--chart-[a-z]+/g))];
  const charts = names.map((name) => {
    probe.style.color = `var(${name})`;
    return [name, ratio(channels(getComputedStyle(probe).color), ground(probe)), false];
  });
  probe.remove();
  return [...texts, ...charts];
}"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run, a run with a gate, and a gate alone; every name in them is hostile."""
    paths = {name: tmp_path_factory.mktemp(name) for name in PAGES}
    for name in ("run", "both"):
        write_run(paths[name], HOSTILE_NAMES, name=HOSTILE)
    write_gate(paths["both"], "FAIL", name=HOSTILE, warnings=(HOSTILE,))
    write_gate(paths["gate"], "INCONCLUSIVE", name=HOSTILE_NAMES[1], warnings=(HOSTILE_NAMES[3],))
    return {name: write_report(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def browser():
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.fail(
            f"looking for a browser: none of {', '.join(BINARIES)} is on the path; the page is proved in Chromium; "
            "install it, on Debian with 'apt-get install chromium', or leave these tests out with 'make test-fast'"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, folders):
    """Opens a page, and fails at the end if it complained or asked for anything but itself."""
    contexts, complaints = [], []

    def open_(name="run", *, width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        address = folders[name].as_uri()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda sent: sent.url == address or complaints.append(f"asked for {sent.url}"))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_complete_without_a_complaint_or_a_request(opened, name):
    page = opened(name)
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((h) => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.eval_on_selector_all("[id]", "all => all.map((element) => element.id)")
    assert len(ids) == len(set(ids))
    targets = page.eval_on_selector_all("a[href]", "all => all.map((link) => link.getAttribute('href').slice(1))")
    labels = page.eval_on_selector_all("[aria-labelledby]", "all => all.map((e) => e.getAttribute('aria-labelledby'))")
    assert {*targets, *labels} <= set(ids)


@pytest.mark.parametrize("name", PAGES)
def test_hostile_names_are_shown_to_the_letter_and_do_nothing(opened, name):
    page = opened(name)
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("[document.images.length, document.scripts.length]") == [0, 1]
    text = page.evaluate("document.body.textContent")
    expected = {"run": HOSTILE_NAMES, "both": HOSTILE_NAMES, "gate": (HOSTILE_NAMES[1], HOSTILE_NAMES[3])}
    for hostile in expected[name]:
        assert hostile in text


def test_the_page_s_policy_forbids_any_script_but_its_own(browser, folders):
    context = browser.new_context()
    page = context.new_page()
    page.goto(folders["run"].as_uri())
    page.evaluate(
        """document.body.append(Object.assign(document.createElement("script"), {text: "window.pwned = 3"}))"""
    )
    assert page.evaluate("window.pwned") is None
    context.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 390, 832, 833, 1280])
def test_nothing_but_a_region_of_its_own_scrolls_sideways(opened, name, width):
    page = opened(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = """all => all
        .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible")
        .filter((e) => e.getAttribute("role") !== "region" || !e.ariaLabel || e.tabIndex !== 0)
        .map((e) => e.outerHTML)"""
    assert page.eval_on_selector_all("body :not(svg *)", wide) == []


@pytest.mark.parametrize(("width", "sheet"), [(360, NARROW), (832, NARROW), (833, WIDE), (1280, WIDE)])
def test_every_plot_is_drawn_once_with_text_that_can_be_read(opened, width, sheet):
    page = opened("both", width=width)
    page.eval_on_selector_all("details", "all => all.forEach((details) => { details.open = true; })")
    figures = page.locator("figure").all()
    assert len(figures) == 4 + 2 + len(HOSTILE_NAMES) + 1  # the run's, the gate's cases, the staircases
    for figure in figures:
        (plot,) = [plot for plot in figure.locator(".plot").all() if plot.is_visible()]
        assert plot.get_attribute("role") == "img"
        assert len(plot.get_attribute("aria-label")) > 20
        box = plot.locator("svg").bounding_box()
        assert min(box["width"], box["height"]) > 80
        small = "small-plots" in figure.evaluate("e => e.parentElement.className")
        smallest = NARROW.text if small else sheet.text - 0.5
        points = plot.locator("svg").evaluate("e => e.viewBox.baseVal.width")
        assert smallest * box["width"] / points >= SMALLEST_TEXT


def focus_stops(page, most=80):
    """What Tab reaches, in order, and whether each shows that it has the focus."""
    stops = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate("""() => {
            const e = document.activeElement, outline = getComputedStyle(e).outlineStyle;
            return [e.tagName, e.className, e.ariaLabel || "", outline !== "none" && e.matches(":focus-visible")];
        }""")
        if stop[0] == "BODY":
            break
        stops.append(stop)
    return stops


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened):
    page = opened()
    stops = focus_stops(page)
    assert stops[0][:2] == ["A", "skip"]
    assert all(visible for *_, visible in stops)
    regions = page.eval_on_selector_all(
        "[role=region]", "all => all.filter((e) => e.checkVisibility()).map((e) => e.ariaLabel)"
    )
    assert len(regions) >= 4
    assert set(regions) <= {label for _, _, label, _ in stops}
    assert [tag for tag, *_ in stops].count("INPUT") == 1
    assert [name for tag, name, *_ in stops if tag == "BUTTON"] == ["sort"] * 7
    assert "SUMMARY" in {tag for tag, *_ in stops}


def test_the_skip_link_leads_past_the_navigation(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_the_table_of_layers_is_sorted_by_keyboard_and_says_so(opened):
    page = opened()
    header = page.locator(".layers thead th", has_text="faster")
    original = page.locator(".layers tbody").inner_text()
    header.locator("button").focus()
    for order, sign in (("descending", -1), ("ascending", 1)):
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == order
        cells = page.eval_on_selector_all(".layers tbody tr", "all => all.map((row) => row.cells[4].innerText)")
        values = [sign * float(cell.rstrip("×")) if cell != "–" else float("inf") for cell in cells]
        assert values == sorted(values)
        assert len(set(values)) > 1
        assert values[-1] == float("inf")  # what was not measured comes last in either direction
    assert page.evaluate("document.activeElement.className") == "sort"
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") is None
    assert page.locator(".layers tbody").inner_text() == original
    page.locator(".layers thead th").nth(0).locator("button").press("Enter")
    assert page.locator(".layers [aria-sort]").count() == 1


def test_a_filter_leaves_the_layers_that_hold_every_word_and_counts_them(opened):
    page = opened()
    count = len(HOSTILE_NAMES) + 2
    page.locator(".filter input").fill("Point 256→256")
    rows = [row for row in page.locator(".layers tbody tr").all() if row.is_visible()]
    assert [row.locator("td").first.inner_text().split("\n")[0] for row in rows] == ["pointwise"]
    assert page.locator(".filter output").inner_text() == f"1 of {count} layers"
    page.locator(".filter input").fill("")
    assert page.locator(".filter output").inner_text() == f"{count} of {count} layers"


def test_with_scripts_off_all_is_there_and_nothing_is_dead(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("button").count() == 0
    assert not page.locator(".filter").is_visible()
    assert page.locator(".layers tbody tr").count() == len(HOSTILE_NAMES) + 2
    assert page.locator(".layers thead").inner_text().split() == [
        "layer", "choice", "dense", "ms", "ms", "faster", "error", "why"
    ]  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(opened, name, scheme):
    page = opened(name, color_scheme=scheme)
    page.eval_on_selector_all("details", "all => all.forEach((details) => { details.open = true; })")
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue > 3 * 240) if scheme == "light" else (red + green + blue < 3 * 40)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 40
    assert [text for text, ratio, large in found if ratio < (LARGE_TEXT_CONTRAST if large else TEXT_CONTRAST)] == []


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_everything_is_open_and_nothing_is_cut_off(opened, name):
    page = opened(name, width=PAPER_WIDTH, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "all => all.filter((element) => !element.checkVisibility()).map((element) => element.outerHTML)"
    assert page.eval_on_selector_all("details > *, details td", hidden) == []
    cut = "all => all.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.ariaLabel)"
    assert page.eval_on_selector_all(".scroll, pre", cut) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER_WIDTH
    heights = page.eval_on_selector_all("figure", "all => all.map((e) => e.getBoundingClientRect().height)")
    assert max(heights) <= PAPER_HEIGHT
    for unwanted in (".skip", "nav", ".filter", ".plot.narrow"):
        assert not any(found.is_visible() for found in page.locator(unwanted).all())
