"""The report in Chromium: complete, without a network, readable at both widths and schemes."""

import csv
import os
import shutil
import xml.etree.ElementTree as ET

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SIZES = [(1280, 900), (400, 800)]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
# the smallest contrast of a text with its background, and the text; WCAG 2's formula
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const context = canvas.getContext('2d');
  const rgba = color => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
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
    if (!walker.currentNode.data.trim() || element.closest('style, script, .overlay')) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data.trim()];
  }
  return worst;
}"""
OUTSIDE = """() => [...document.querySelectorAll('p, h1, h2, h3, h4, svg, dl, li, figcaption')]
  .filter(element => {
    const box = element.getBoundingClientRect();
    const scrolls = element.closest('.scroll, .strip, .clips');
    return !scrolls && (box.right > innerWidth + 1 || box.left < -1);
  }).length"""


@pytest.fixture(scope="module")
def browser():
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, filter(None, names)) if found), None)
    if path is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(both, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(both, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.goto(address)
    yield page
    page.close()


@pytest.mark.parametrize(("size", "scheme"), [(SIZES[0], "dark"), (SIZES[1], "light")])
def test_it_is_complete_and_fits(browser, address, size, scheme):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_load_state("load")
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    images = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(images)
    assert page.evaluate("document.images.length") > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "scrolls sideways"
    assert page.evaluate(OUTSIDE) == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background[4:-1].split(","))
    assert (brightness > 600) == (scheme == "light"), background
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    cells = page.locator("#results tbody tr:first-child td:nth-child(2)").all()
    assert cells, "mAP"
    assert all(cell.bounding_box()["x"] + cell.bounding_box()["width"] < size[0] for cell in cells)
    if size == SIZES[0]:
        boxes = [
            clip.bounding_box() for clip in page.locator(".clips").first.locator("figure").all()
        ]
        assert len(boxes) == 11
        assert len({box["y"] for box in boxes}) == 1, "query and top 10 in one row"
        assert boxes[-1]["x"] + boxes[-1]["width"] < size[0]
    page.close()


def test_the_contents_lead_to_the_sections(page):
    page.get_by_role("link", name="Confusions").click()
    top = "document.getElementById('confused').getBoundingClientRect().top"
    page.wait_for_function(f"Math.abs({top}) < 60")
    assert page.url.endswith("#confused")


def test_skeletons_can_be_switched_off(page):
    skeleton = page.locator(".clips .bones").first
    circles = page.locator("#looked .rings").first
    assert skeleton.is_visible()
    page.get_by_label("skeletons").uncheck()
    assert not skeleton.is_visible()
    assert circles.is_visible(), "attention is not a skeleton"


def test_figures_and_tables_can_be_downloaded(page, star, tmp_path):
    def download(link):
        with page.expect_download() as event:
            link.click()
        path = tmp_path / event.value.suggested_filename
        event.value.save_as(path)
        return path

    figure = download(page.locator("#training").get_by_text("SVG", exact=True).first)
    assert figure.name == "losses.svg"
    text = figure.read_text(encoding="utf-8")
    ET.fromstring(text)
    assert "var(" not in text
    assert "#2563ac" in text, "the light color, though the page is dark"
    links = page.locator("#results .save")
    table = download(links.get_by_text("CSV").first)
    assert table.name == "results.csv"
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    assert rows[0][:3] == ["percent", "mAP", "Rank-1"]
    assert rows[1][:2] == ["STAR I2V", f"{star.metrics['I2V/mAP']:.2f}"]
    lines = download(links.get_by_text("LaTeX").first).read_text(encoding="utf-8").splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrrr}"
    assert r" \& \$x\_1\$ I2V & " in lines[8], "special characters are escaped"
    assert all(line.endswith(r"\\") for line in (lines[3], *lines[5:11]))
