"""The page in a browser: offline, from a file, on wide and narrow screens, light and dark."""

import os
import shutil

import pytest

from fastreid_star.report.html import write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SIZES = [(1280, 900), (400, 800)]
FLAGS = [
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync"),
]
# the smallest contrast of any text with what is behind it, and where that is; WCAG 2's formula
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = rgba(getComputedStyle(element).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255, 255];
  };
  let worst = [99, ''];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('style')) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data.trim()];
  }
  return worst;
}"""


def chromium():
    """The browser: $CHROMIUM, or one of the usual names."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for found in map(shutil.which, filter(None, names)) if found), None)


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(both, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, both)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["wide", "narrow"])
def test_it_opens_whole_and_fits(browser, address, size, scheme):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    troubles, asked = [], []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_load_state("load")
    assert troubles == []
    assert [url for url in asked if not url.startswith("data:")] == [address], (
        "the file, and nothing else"
    )
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    assert page.evaluate("document.images.length") > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], (
        "the page scrolls sideways"
    )
    outside = """() => [...document.querySelectorAll('p, h1, h2, h3, h4, svg, dl, figcaption')].filter(element => {
      const box = element.getBoundingClientRect();
      return !element.closest('.scroll, .strip, .clips') && (box.right > innerWidth + 1 || box.left < -1);
    }).length"""
    assert page.evaluate(outside) == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background[4:-1].split(","))
    assert (brightness > 600) == (scheme == "light"), background
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    page.close()


def test_the_contents_lead_to_the_sections(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.get_by_role("link", name="Confusions").click()
    page.wait_for_function(
        "Math.abs(document.getElementById('confused').getBoundingClientRect().top) < 60"
    )
    assert page.url.endswith("#confused")
    page.close()
