"""The studio in a real browser: it opens, and what is dragged, painted and downloaded works."""

import base64
import io
import math
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from browser import chromium, page_without_errors

PICTURE = "[data-testid=stImage] img"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder, port):
    command = [sys.executable, "-m", "fewstep", "studio", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health").close()
            return server
        except OSError:
            time.sleep(0.1)
            assert server.poll() is None, server.stderr.read().decode()
    raise AssertionError("the studio did not start")


@pytest.fixture(scope="module")
def studio(folder):
    """The address of a studio, and its process."""
    port = free_port()
    server = start(folder, port)
    yield f"http://127.0.0.1:{port}/", server
    server.terminate()
    errors = server.communicate(timeout=20)[1].decode()
    assert "Traceback" not in errors, errors


@pytest.fixture
def address(studio):
    return studio[0]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser):
    """A page; at its end, its console had no errors, and nothing came from another site."""
    with page_without_errors(browser) as page:
        page.set_default_timeout(20_000)
        addresses = []
        page.on("request", lambda request: addresses.append(request.url))
        yield page
        own = ("http://127.0.0.1", "data:", "blob:")
        assert [url for url in addresses if not url.startswith(own)] == []


def source(page):
    """The address of the first picture: it changes with the picture's content."""
    return page.locator(PICTURE).first.get_attribute("src")


def changed(page, before):
    """Wait until the first picture is another one. Returns its address."""
    script = (
        "([selector, before]) => document.querySelector(selector)?.src.endsWith(before) === false"
    )
    page.wait_for_function(script, arg=[PICTURE, before])
    return source(page)


def wait_for(page, address):
    """Wait until the first picture is the one with this address."""
    script = "([selector, address]) => document.querySelector(selector)?.src === address"
    page.wait_for_function(script, arg=[PICTURE, address])


def wait_for_seeds(page, seeds):
    """Wait until the first picture was generated from these seeds. Returns its address."""
    for _ in range(200):
        address = source(page)
        file = base64.b64decode(address.partition(",")[2])
        if Image.open(io.BytesIO(file)).text.get("seed") == seeds:
            return address
        page.wait_for_timeout(100)
    raise AssertionError(f"no picture of the seeds {seeds}")


def drag(page, box, start, stop, *, check=lambda: None):
    """Drag from one point of a box to another, both as shares of its size."""
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, stop)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    check()
    page.mouse.up()


def test_the_morph_follows_the_slider_and_the_way_back(tab, address):
    tab.goto(f"{address}?view=morph&models=cm&models=one-step")
    # a slider of the view before may still be there while the page is drawn again
    slider = tab.locator("input[type=range]").last
    slider.wait_for()
    first = source(tab)
    # while the button is still down
    drag(tab, slider.bounding_box(), (0.5, 0.5), (0.9, 0.5), check=lambda: changed(tab, first))
    position = slider.input_value()
    assert abs(float(position) - 0.9) < 0.02
    tab.wait_for_url(f"**&x={position}")
    moved = source(tab)
    slider.press("ArrowLeft")
    changed(tab, moved)
    tab.wait_for_url(f"**&x={slider.input_value()}")
    tab.go_back()
    wait_for(tab, moved)
    expect(slider).to_have_value(position)
    tab.go_back()
    wait_for(tab, first)
    expect(slider).to_have_value("0.5")
    assert "x=" not in tab.url
    tab.go_forward()
    wait_for(tab, moved)


def test_the_wipe_and_the_downloaded_picture(tab, address):
    tab.goto(f"{address}?models=teacher&models=cm&steps=2@teacher&seed=7&count=4")
    wipe = tab.get_by_role("slider", name="wipe between teacher and cm")
    wipe.scroll_into_view_if_needed()
    assert wipe.get_attribute("aria-valuenow") == "50"
    drag(tab, wipe.bounding_box(), (0.5, 0.5), (0.2, 0.5))
    assert abs(int(wipe.get_attribute("aria-valuenow")) - 20) <= 1
    wipe.press("ArrowRight")
    assert abs(int(wipe.get_attribute("aria-valuenow")) - 22) <= 1
    with tab.expect_download() as download:
        tab.get_by_role("button", name="PNG").first.click()
    picture = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert picture.text["run"] == "teacher" and picture.text["seed"] == "7, 8, 9, 10"
    assert picture.text["steps"] == "2" and len(picture.text["run_hash"]) == 64
    # classes are text: their names are on the page, and no element is made of them
    assert tab.get_by_text("<b>one</b>").count() == 1
    assert tab.locator("button b, button img").count() == 0


def test_painting_on_a_phone(tab, address):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(f"{address}?view=paint&models=cm&models=one-step")
    canvas = tab.locator("canvas.fs-paint")
    canvas.wait_for()
    tab.locator(PICTURE).first.wait_for()
    first = source(tab)
    canvas.scroll_into_view_if_needed()
    drag(tab, canvas.bounding_box(), (0.3, 0.2), (0.7, 0.8))
    painted = changed(tab, first)
    freedom = tab.get_by_label("freedom")
    freedom.scroll_into_view_if_needed()
    drag(tab, freedom.bounding_box(), (0.5, 0.5), (0.1, 0.5))
    tab.wait_for_url("**&freedom=0.*")
    painted = changed(tab, painted)
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "white").save(file, "PNG")
    upload = {"name": "white.png", "mimeType": "image/png", "buffer": file.getvalue()}
    tab.locator("input[type=file]").set_input_files(upload)
    changed(tab, painted)
    width = tab.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert width <= 390


def test_seeds_are_pinned_and_meet_in_the_square(tab, address):
    tab.goto(f"{address}?view=seeds&models=cm")
    tab.get_by_role("button", name="seed 5", exact=True).click()
    tab.get_by_text("Around seed 5").wait_for()
    tab.get_by_role("button", name="pin seed 5", exact=True).first.click()
    tab.wait_for_url("**pins=5*")
    tab.get_by_text("Morph", exact=True).click()
    tab.get_by_text("four starts").click()
    pad = tab.get_by_role("slider", name="morph between seed 5")
    pad.wait_for()
    tab.locator(PICTURE).first.wait_for()
    before = source(tab)
    drag(tab, pad.bounding_box(), (0.5, 0.5), (0.1, 0.9))
    changed(tab, before)
    tab.wait_for_url("**&x=0.1*&y=0.9*")


@pytest.mark.slow
def test_two_tabs_do_not_disturb_each_other(tab, browser, address):
    query = "?models=cm&models=teacher&count=4&seed="
    tab.goto(f"{address}{query}1")
    with page_without_errors(browser) as other:
        other.goto(f"{address}{query}2")
        for page in (tab, other):
            page.locator(PICTURE).first.wait_for()
        second = wait_for_seeds(other, "2, 3, 4, 5")
        for _ in range(3):
            tab.get_by_test_id("stNumberInputStepUp").click()
        fourth = wait_for_seeds(tab, "4, 5, 6, 7")
        expect(tab).to_have_url(re.compile("seed=4"))
        assert source(other) == second and other.url.endswith("seed=2")
        other.get_by_test_id("stNumberInputStepUp").click()
        wait_for_seeds(other, "3, 4, 5, 6")
        assert source(tab) == fourth
        other.get_by_test_id("stNumberInputStepUp").click()
        wait_for(other, fourth)  # the same wish gives the same picture, file and all


def resident_megabytes(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads the memory of a process from /proc")
def test_memory_is_flat_over_500_generations(tab, studio):
    address, server = studio
    tab.goto(f"{address}?view=morph&models=cm")
    slider = tab.locator("input[type=range]")
    slider.wait_for()
    tab.evaluate(
        """() => {
            window.pictures = 0;
            const observer = new MutationObserver(() => (window.pictures += 1));
            const picture = document.querySelector("[data-testid=stImage] img");
            observer.observe(picture, { attributeFilter: ["src"] });
        }"""
    )
    box = slider.bounding_box()
    memory = []
    for goal in (50, 550):  # the first ones fill the caches
        number = 0
        while tab.evaluate("window.pictures") < goal:
            x = box["x"] + box["width"] * (0.5 + 0.49 * math.sin(number))
            tab.mouse.move(x, box["y"] + box["height"] / 2)
            tab.mouse.down()
            number += 0.05
            assert number < 500
        memory.append(resident_megabytes(server))
    tab.mouse.up()
    print(f"{memory[0]:.0f} MB after 50 generations, {memory[1]:.0f} MB after 550")
    assert memory[1] < memory[0] + 25
