"""The widgets in Chromium: by mouse, touch and keyboard."""

import pytest

from browser import chromium, page_without_errors
from fewstep.web import FOLDER, bundle

PAGE = """
<style>%s div.box { width: 200px; margin: 10px }</style>
<div class="box" id="wipe"></div><div class="box" id="pad"></div>
<div class="box" id="paint"></div><div class="box" id="grid"></div>
<script type="module">%s
window.reports = [];
const report = (name) => (...values) => window.reports.push([name, ...values]);
const picture = (colour) => {
  const canvas = element("canvas", { width: 8, height: 8 });
  canvas.getContext("2d").fillStyle = colour;
  canvas.getContext("2d").fillRect(0, 0, 8, 8);
  return canvas;
};
window.wipe = wipe(document.getElementById("wipe"), { left: picture("red"),
  right: picture("blue").toDataURL(), names: ["<b>one</b>", "two"], onChange: report("wipe") });
window.pad = morphPad(document.getElementById("pad"), { corners: ["<i>a</i>", "b", "c", "d"],
  onChange: report("pad") });
window.canvas = paint(document.getElementById("paint"), { width: 8, height: 8, channels: 1,
  onChange: (image) => window.reports.push(["paint", Array.from(image)]) });
window.grid = seedGrid(document.getElementById("grid"), { images: [3, 5, 7, 9].map((seed) => (
  { seed, canvas: picture("green") })), selected: 3, pinned: [5], onSelect: report("select"),
  onPin: report("pin") });
</script>
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    with page_without_errors(browser, has_touch=True) as page:
        page.set_content(PAGE % ((FOLDER / "widgets.css").read_text(), bundle("widgets.js")))
        page.wait_for_function("window.grid !== undefined")
        yield page


def reports(page, name):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return [values for kind, *values in page.evaluate("window.reports") if kind == name]


def drag(page, target, start, end):
    box = page.locator(target).bounding_box()
    at = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()


def test_a_wipe_follows_mouse_keys_and_updates(page):
    drag(page, ".fs-wipe", (0.5, 0.5), (0.75, 0.5))
    assert reports(page, "wipe")[-1] == [pytest.approx(0.75, abs=0.01)]
    page.keyboard.press("ArrowLeft")
    assert reports(page, "wipe")[-1] == [pytest.approx(0.73, abs=0.01)]
    page.evaluate("wipe.update({ position: 0.25 })")
    assert page.locator(".fs-wipe").get_attribute("aria-valuenow") == "25"
    assert "75%" in page.locator(".fs-wipe-left").evaluate("node => node.style.clipPath")
    assert page.locator(".fs-name-0").inner_text() == "<b>one</b>"  # names are text


def test_a_pad_follows_touch_and_keys(page):
    box = page.locator(".fs-pad").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.9)
    assert reports(page, "pad")[-1] == pytest.approx([0.25, 0.9], abs=0.02)
    page.locator(".fs-pad").focus()
    page.keyboard.press("Shift+ArrowUp")
    assert reports(page, "pad")[-1] == pytest.approx([0.25, 0.7], abs=0.02)
    assert page.locator(".fs-pad").get_attribute("aria-valuetext") == "25% across, 70% down"
    assert page.locator(".fs-corner-0").inner_text() == "<i>a</i>"


def test_strokes_of_a_canvas_are_its_pixels(page):
    page.locator(".fs-size").first.click()
    drag(page, ".fs-paint", (0.07, 0.07), (0.93, 0.93))
    (image,) = reports(page, "paint")[-1]
    assert image == [float(i % 9 == 0) for i in range(64)]
    page.evaluate("canvas.update({ image: new Float32Array(64).fill(0.5) })")
    page.locator(".fs-paint").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    (image,) = reports(page, "paint")[-1]
    assert image[7 * 8 + 6] == 1.0 and image.count(pytest.approx(128 / 255)) == 63
    page.get_by_text("Clear").click()
    assert reports(page, "paint")[-1] == [[0.0] * 64]


def test_an_uploaded_picture_is_scaled_to_fit(page):
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (40, 20), (255, 255, 255)).save(file, "PNG")
    upload = {"name": "wide.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.locator(".fs-file").set_input_files(upload)
    page.wait_for_function("window.reports.some(([name]) => name === 'paint')")
    (image,) = reports(page, "paint")[-1]
    assert [sum(image[8 * row : 8 * row + 8]) for row in range(8)] == [0, 0, 8, 8, 8, 8, 0, 0]


def test_a_grid_selects_pins_and_keeps_the_focus(page):
    page.locator(".fs-select").nth(1).click()
    assert reports(page, "select") == [[5]]
    page.evaluate("grid.update({ selected: 5, pinned: [5, 7] })")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("p")
    page.keyboard.press("Enter")
    assert reports(page, "pin") == [[7]] and reports(page, "select") == [[5], [7]]
    pressed = page.locator(".fs-pin").evaluate_all("n => n.map(x => x.ariaPressed)")
    assert pressed == ["false", "true", "true", "false"]
    assert page.locator(".fs-select").nth(1).get_attribute("aria-pressed") == "true"


def test_a_destroyed_widget_leaves_nothing(page):
    for name in ("wipe", "pad", "canvas", "grid"):
        page.evaluate(f"{name}.destroy()")
    assert page.locator(".box > *").count() == 0
