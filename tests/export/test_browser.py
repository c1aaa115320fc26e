"""The page shows the images of PyTorch: from a server, from a file, and without a network."""

import base64
import gzip
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

import fewstep
from browser import chromium, page_without_errors
from exporting import (
    CAPTIONS,
    TEXT_TINY,
    OtherText,
    point_generator,
    text_generator,
    unet_generator,
)
from fewstep.backbones import UNetConfig
from fewstep.condition import Condition
from fewstep.drawing import seeds
from fewstep.errors import InputError
from fewstep.export import graph, runtime
from fewstep.export.base import export
from fewstep.export.browser import BrowserExport
from fewstep.export.browser_model import describe
from fewstep.export.onnx import OnnxExport
from fewstep.export.precision import round_weights
from fewstep.export.source import Source
from fewstep.images import to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.painting import paint
from fewstep.parametrization import Eps
from fewstep.process import VP
from fewstep.sampling import Renoise
from fewstep.spacing import TableGrid
from fewstep.studio.starts import parse_start
from fewstep.web import FOLDER

EXAMPLE = Path(__file__).parents[2] / "examples" / "export" / "javascript.html"
SHAPE, CLASSES, TOLERANCE = (1, 8, 8), 3, 2
TINY = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)
PRIVATE = "/home/me/my-pictures"
RECIPE = {
    "method": {"name": "denoise", "condition_dropout": 0.1},
    "data": {"name": "digits", "path": PRIVATE},
}


def source(name, *, dtype="f32", recipe=RECIPE, **options):
    generator = round_weights(unet_generator(config=TINY, **options), dtype)
    return Source(name, generator, (1, 2), f"hash of {name}", dtype=dtype, recipe=recipe)


STUDENT = source("<i>student</i>", dtype="int8", step=Renoise())
TEACHER = source("teacher", seed=1, recipe={"method": {"name": "dmd"}})


@pytest.fixture(scope="module", autouse=True)
def graphs():
    """Each network is traced once: it takes seconds."""
    graphs, trace = {}, graph.onnx_graph

    def traced(module, *, dtype):
        key = getattr(module, "backbone", module)
        if key not in graphs:
            graphs[key] = trace(module, dtype=dtype)
        return graphs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "onnx_graph", traced)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "page"
    export(BrowserExport(teacher=TEACHER), STUDENT, out, target="browser")
    return out


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@contextmanager
def server(folder):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        port = process.stdout.readline().split(" port ")[1].split()[0]
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()  # or a failure would wait for the server


def wait(page):
    page.wait_for_selector("body[data-busy=false]", timeout=60_000)


def visit(page, fragment):
    """Show the state of a fragment, as if the user had edited the address."""
    page.evaluate(
        """fragment => new Promise(done => {
             addEventListener("hashchange", () => setTimeout(done), { once: true });
             location.hash = fragment;
           })""",
        fragment,
    )
    wait(page)


def result(page, key):
    """The image of a result of the page."""
    return pixels(page.locator(f'figure[data-result="{key}"] canvas'))


def pixels(canvas):
    """The values (1, h, w) of a grey canvas in uint8."""
    values = canvas.evaluate(
        "node => [...node.getContext('2d').getImageData(0, 0, node.width, node.height).data]"
    )
    red, green, *_ = torch.tensor(values, dtype=torch.int16).view(*SHAPE[1:], 4).permute(2, 0, 1)
    assert torch.equal(red, green)
    return red[None]


def start(seed):
    return seeds(seed, range(1))


def expected(item, steps, seed, *, label=None, weight=1.0):
    """PyTorch's image of a seed in uint8, with the weights of the file."""
    generator = item.generator if weight == 1 else item.generator.with_guidance(weight)
    noise = noise_from_seeds(start(seed), SHAPE)
    cond = Condition(torch.tensor([seed % CLASSES if label is None else label]))
    image = generator(noise, steps=steps, cond=cond, seed=start(seed))
    return to_uint8(image)[0].to(torch.int16)


def same(image, other):
    assert len(image.unique()) > 8, "the picture is almost empty"
    return (image - other).abs().max() <= TOLERANCE


def check_images(page):
    visit(page, "#start=5&shown=0:1_0:2_1:2")
    for key, item, steps in (("0:1", STUDENT, 1), ("0:2", STUDENT, 2), ("1:2", TEACHER, 2)):
        assert same(result(page, key), expected(item, steps, 5))


def test_a_served_page_shows_the_images_of_pytorch_and_then_works_offline(folder, browser):
    with page_without_errors(browser) as page:
        with server(folder) as address:
            page.goto(address)
            wait(page)
            assert page.title() == page.locator("h1").inner_text() == "<i>student</i>"
            assert page.locator("dt, dd, button, h1").locator("i, b").count() == 0
            check_images(page)
            check_conditions(page)
            check_painting(page)
            check_neighbours(page)
            check_wipe(page)
            check_history(page)
            page.evaluate("() => navigator.serviceWorker.ready.then(() => true)")
        page.goto(f"{address}index.html#start=8")
        wait(page)
        assert same(result(page, "0:1"), expected(STUDENT, 1, 8))


def check_conditions(page):
    visit(page, "#start=5&label=1&guidance=2.5&shown=0:2")
    image = expected(STUDENT, 2, 5, label=1, weight=2.5)
    assert same(result(page, "0:2"), image)
    assert not same(image, expected(STUDENT, 2, 5, label=1))
    visit(page, "#start=5&label=-1&shown=1:1")
    assert same(result(page, "1:1"), expected(TEACHER, 1, 5, label=-1))
    # values that the page does not have
    visit(page, "#backend=webgpu&drawing=A&label=99&shown=7:7&start=x&mode=none")
    assert same(result(page, "0:1"), expected(STUDENT, 1, 0))
    # numbers between seeds, results twice, a wipe over three, and more guidance than fits
    visit(page, "#first=1.6&shown=0:1_0:1_0:01_0:2_1:1&wipe=0:1_0:2_1:1&guidance=11")
    assert page.locator("#status").inner_text() == ""
    keys = page.locator("figure").evaluate_all("all => all.map(n => n.dataset.result)")
    assert keys == ["0:1", "0:2", "1:1"]
    assert page.locator(".fs-name").all_inner_texts() == [
        "<i>student</i>, 2 steps",
        "teacher, 1 step",
    ]
    assert page.locator(".fs-select").first.get_attribute("aria-label") == "seed 2"
    visit(page, "#guidance=9.5")
    assert page.get_by_role("slider", name="Guidance").input_value() == "9.5"


def check_painting(page):
    drawing = bytes(range(0, 256, 4))
    text = base64.urlsafe_b64encode(drawing).decode().rstrip("=")
    visit(page, f"#mode=paint&start=4&freedom=0.6&drawing={text}&shown=0:2_1:2")
    picture = torch.tensor(list(drawing)).view(1, *SHAPE) / 127.5 - 1
    image = paint(
        STUDENT.generator, picture, noise_from_seeds(start(4), SHAPE), freedom=0.6, steps=2,
        cond=Condition(torch.tensor([4 % CLASSES])), seed=start(4),
    )  # fmt: skip
    assert same(result(page, "0:2"), to_uint8(image)[0].to(torch.int16))
    other = page.locator('figure[data-result="1:2"]')
    assert "its method, dmd, trains it only at" in other.inner_text()
    assert other.get_by_role("button", name="PNG").is_disabled()


def check_neighbours(page):
    visit(page, "#start=3&near=0.2&shown=0:1")
    assert page.locator(".fs-select").count() == 16
    name = page.locator(".fs-select").nth(4).get_attribute("aria-label").removeprefix("seed ")
    assert name.startswith("3~") and name.endswith(":0.2")
    page.locator(".fs-select").nth(4).click()
    page.wait_for_selector(f'figure[data-seed="{name}"]')
    cond = Condition(torch.tensor([3 % CLASSES]))
    image = STUDENT.generator(parse_start(name).noise(SHAPE), cond=cond, seed=start(3))
    assert same(result(page, "0:1"), to_uint8(image)[0].to(torch.int16))


def check_wipe(page):
    visit(page, "#shown=0:1_0:2&wipe=0:1_0:2")
    assert page.locator(".fs-name").all_inner_texts() == [
        "<i>student</i>, 1 step", "<i>student</i>, 2 steps"
    ]  # fmt: skip
    left = pixels(page.locator(".fs-wipe-left canvas"))
    assert torch.equal(left, result(page, "0:1"))
    page.get_by_role("button", name="Wipe").first.click()
    assert page.locator(".fs-wipe").count() == 0


def check_history(page):
    visit(page, "#start=1&shown=0:1")
    before = page.url
    page.get_by_role("button", name="seed 2", exact=True).click()
    page.wait_for_selector('figure[data-seed="2"]')
    page.wait_for_url("**start=2**")
    page.go_back()
    page.wait_for_selector('figure[data-seed="1"]')
    assert page.url == before


def test_a_single_file_opens_from_disk_and_its_pictures_say_what_they_are(browser, tmp_path):
    exporter = BrowserExport(single_file=True)
    record = export(exporter, STUDENT, tmp_path / "page", target="browser")
    assert set(record["files"]) == {"index.html", runtime.LICENSE.name}
    assert record["checks"]["bytes_loaded"] == record["files"]["index.html"] < 16e6
    with page_without_errors(browser, width=390) as page:
        page.goto((tmp_path / "page" / "index.html").as_uri())
        wait(page)
        check_phone(page)
        visit(page, "#mode=morph&corners=4&x=0.25&y=0.75&shown=0:1&label=2")
        image = result(page, "0:1")
        with page.expect_download() as download:
            page.get_by_role("button", name="PNG").first.click()
        with Image.open(BytesIO(Path(download.value.path()).read_bytes())) as picture:
            assert picture.size == (8, 8)
            channel = torch.tensor(list(picture.convert("L").tobytes())).view(SHAPE)
            texts = picture.text
        assert torch.equal(channel, image.long())
        assert texts["run"] == "<i>student</i>" and texts["run_hash"] == "hash of <i>student</i>"
        assert texts["Software"] == f"fewstep {fewstep.__version__}"
        assert texts["seed"] == "between 0 1 2 3 at 0.25, 0.75"
        assert (texts["label"], texts["steps"], texts["guidance"]) == ("2", "1", "1")
        check_morph(page)
        check_long_names(page)


def check_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("button", name="<b>two</b>").count() == 1


def check_long_names(page):
    """On a phone, with as many classes as ImageNet."""
    page.evaluate(
        """() => {
             const [group] = document.querySelectorAll("[aria-label=class]");
             const chips = Array.from({ length: 1000 }, () => group.lastChild.cloneNode(true));
             window.names = [...document.querySelectorAll(".pickers b, #name"), ...chips];
             names.forEach((node) => (node.textContent = "x".repeat(200)));
             group.append(...chips);
           }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.documentElement.scrollHeight") < 4000


def check_morph(page):
    """At the corners the images are those of the pins, and a drag changes the image."""
    for x, y, seed in ((0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 3)):
        visit(page, f"#mode=morph&corners=4&x={x}&y={y}&shown=0:1&label=2")
        assert same(result(page, "0:1"), expected(STUDENT, 1, seed, label=2))
    pad = page.locator(".fs-pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    page.wait_for_selector('figure[data-seed*="at 0.1"]')
    page.mouse.up()


def test_a_truncated_file_is_one_line_on_the_page(folder, browser, tmp_path):
    page_folder = shutil.copytree(folder, tmp_path / "page")
    lines = {"model.onnx": "cannot run model.onnx: "} | {
        name: f"{name} is damaged: "
        for name in ("model.json", runtime.SCRIPT.name, runtime.WASM.name)
    }
    with server(page_folder) as address:
        for name, line in lines.items():
            content = (page_folder / name).read_bytes()
            (page_folder / name).write_bytes(content[: len(content) // 2])
            with page_without_errors(browser) as page:
                page.goto(address)
                page.wait_for_selector("#status.problem", timeout=60_000)
                status = page.locator("#status").inner_text()
                assert status.startswith(line) and "\n" not in status
            (page_folder / name).write_bytes(content)


def test_a_page_that_computes_nan_says_so(folder, browser, tmp_path):
    page_folder = shutil.copytree(folder, tmp_path / "page")
    description = json.loads((page_folder / "model.json").read_text())
    for instruction in description["generators"][0]["programs"]["1"]["instructions"]:
        if "network" in instruction:
            instruction["network"] = [[register, 1e39] for register, _ in instruction["network"]]
    (page_folder / "model.json").write_text(json.dumps(description))
    with page_without_errors(browser) as page, server(page_folder) as address:
        page.goto(address)
        page.wait_for_selector("#status.problem", timeout=60_000)
        assert "<i>student</i> computes NaN" in page.locator("#status").inner_text()


def test_a_page_keeps_the_paths_of_the_recipe_private(folder):
    text = (folder / "model.json").read_text()
    assert PRIVATE not in text and set(json.loads(text)) == {
        "name", "shape", "classes", "class_names", "prompts", "tokenizer", "runtime",
        "generators", "about", "fewstep",
    }  # fmt: skip


def test_a_page_says_why_it_cannot_paint_or_guide():
    (about,) = describe(TEACHER, None, runtime=("script", "wasm"))["generators"]
    assert "dmd" in about["paint"]["reason"] and about["paint"]["programs"] == {}
    assert "trained it with labels only" in about["guidance"]["reason"]
    (about,) = describe(STUDENT, None, runtime=("script", "wasm"))["generators"]
    assert about["paint"]["reason"] == about["guidance"]["reason"] == ""
    assert len(about["paint"]["programs"]["2"]) == len(about["paint"]["freedoms"]) == 20


def test_the_page_leaves_out_steps_at_which_a_teacher_has_no_images():
    """One step of a table starts at t = 0, where this process has no noise."""
    options = {"process": VP(), "parametrization": Eps(), "grid": TableGrid()}
    teacher = replace(source("teacher", **options), steps=(16,))
    (about,) = describe(teacher, None, runtime=("", ""))["generators"]
    assert list(about["programs"]) == ["2", "4", "16"]
    with pytest.raises(InputError, match="starts at t = 0, which has no noise"):
        describe(replace(teacher, steps=(1,)), None, runtime=("", ""))


def test_generators_that_the_page_cannot_show_are_refused(tmp_path, monkeypatch):
    points = Source("toy", point_generator(), (1,), "hash")
    with pytest.raises(InputError, match=r"toy generates samples of the shape \[2\]"):
        BrowserExport().write(points, tmp_path)
    limited = unet_generator().with_guidance(2.0, interval=(0.2, 0.8))
    with pytest.raises(InputError, match="the page cannot have an interval of guidance"):
        BrowserExport().write(replace(STUDENT, generator=limited), tmp_path)
    teacher = replace(TEACHER, generator=unet_generator(classes=0))
    with pytest.raises(InputError, match="0 classes, and <i>student</i>.* 3"):
        BrowserExport(teacher=teacher).write(STUDENT, tmp_path)
    monkeypatch.setattr(runtime, "WASM", tmp_path / "nothing")
    with pytest.raises(InputError, match="fetch_runtime.py"):
        BrowserExport().write(STUDENT, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def prompted():
    """A source whose images follow prompts."""
    generator = text_generator(config=TEXT_TINY)
    return Source("<i>text</i>", generator, (1,), "hash", recipe=RECIPE)


def prompted_image(item, seed, prompt, *, weight=1.0, negative=""):
    generator = item.generator
    if weight != 1:
        generator = generator.with_guidance(weight, negative=negative)
    cond = Condition(text=generator.spec.text.encode([prompt]))
    image = generator(noise_from_seeds(start(seed), SHAPE), steps=1, cond=cond)
    return to_uint8(image)[0].to(torch.int16)


@pytest.mark.slow
def test_the_picture_follows_the_prompt(browser, prompted, tmp_path):
    export(BrowserExport(single_file=True), prompted, tmp_path / "page", target="browser")
    with page_without_errors(browser, width=390) as page:
        page.goto((tmp_path / "page" / "index.html").as_uri())
        wait(page)
        assert same(result(page, "0:1"), prompted_image(prompted, 0, CAPTIONS[0]))
        box = page.get_by_role("searchbox", name="Prompt", exact=True)
        assert box.input_value() == CAPTIONS[0]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        check_typing(page, box, prompted)
        check_examples(page, box, prompted)
        check_negative(page, prompted)


def check_typing(page, box, item):
    note = page.locator("#prompt .note")
    box.fill("a Zebra's 猫, and a zebra")  # shown after a pause
    page.wait_for_url("**prompt=a%20Zebra**")
    wait(page)
    image = prompted_image(item, 0, "a Zebra's 猫, and a zebra")
    assert same(result(page, "0:1"), image)
    assert not same(image, prompted_image(item, 0, CAPTIONS[0]))
    assert note.inner_text().endswith("learned: “zebra”, “and”")
    box.fill("a red heart \ud800\ude00")
    box.press("Enter")
    wait(page)
    assert same(result(page, "0:1"), prompted_image(item, 0, "a red heart \U00010200"))
    box.fill("")
    box.press("Enter")
    wait(page)
    none = to_uint8(item.generator(noise_from_seeds(start(0), SHAPE), steps=1))[0]
    assert same(result(page, "0:1"), none.to(torch.int16)) and note.inner_text() == ""
    visit(page, "#start=5&prompt=" + "x" * 3000)
    assert same(result(page, "0:1"), prompted_image(item, 5, "x" * 1000))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def check_examples(page, box, item):
    page.get_by_role("button", name=CAPTIONS[3]).click()
    wait(page)
    assert box.input_value() == CAPTIONS[3]
    assert same(result(page, "0:1"), prompted_image(item, 5, CAPTIONS[3]))
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG").first.click()
    with Image.open(download.value.path()) as picture:
        assert picture.text["prompt"] == CAPTIONS[3] and picture.text["negative"] == ""


def check_negative(page, item):
    visit(page, "#start=5&guidance=2.5&prompt=a%20red%20heart&negative=the%20hat")
    negative = page.get_by_role("searchbox", name="Negative prompt")
    assert negative.input_value() == "the hat"
    image = prompted_image(item, 5, "a red heart", weight=2.5, negative="the hat")
    assert same(result(page, "0:1"), image)
    negative.fill("")
    negative.press("Enter")
    wait(page)
    plain = prompted_image(item, 5, "a red heart", weight=2.5)
    assert same(result(page, "0:1"), plain) and not same(image, plain)


def test_a_page_of_prompts_needs_guidance_for_a_negative_one_and_one_encoder(prompted, tmp_path):
    table = describe(prompted, None, runtime=("", ""))
    (about,) = table["generators"]
    assert about["network"]["inputs"] == ["x", "level", "tokens", "token_mask"]
    assert table["prompts"] == list(CAPTIONS) and table["tokenizer"]["length"] == 8
    generator = prompted.generator.with_guidance(2.0, negative="the hat")
    (about,) = describe(replace(prompted, generator=generator), None, runtime=("", ""))[
        "generators"
    ]
    assert (about["guidance"]["weight"], about["guidance"]["negative"]) == (2.0, "the hat")
    for teacher in (unet_generator(classes=0), text_generator(text=OtherText(), config=TEXT_TINY)):
        exporter = BrowserExport(teacher=replace(prompted, name="teacher", generator=teacher))
        with pytest.raises(InputError, match="the teacher teacher reads prompts by another"):
            exporter.write(prompted, tmp_path)
    with pytest.raises(InputError, match="no text encoder"):
        BrowserExport().write(replace(prompted, generator=teacher), tmp_path)


@pytest.mark.slow
def test_webgpu_computes_the_same_images(folder):
    # playwright allows one browser a thread, and this one needs other flags
    with ThreadPoolExecutor(1) as thread:
        thread.submit(check_webgpu, folder).result()


def check_webgpu(folder):
    with chromium(webgpu=True) as browser, page_without_errors(browser) as page:
        with server(folder) as address:
            page.goto(f"{address}#backend=webgpu")
            wait(page)
            assert page.get_by_role("button", name="GPU").get_attribute("aria-pressed") == "true"
            check_images(page)
            check_conditions(page)


@pytest.mark.slow
def test_a_page_of_ten_lines_shows_an_image(browser, tmp_path):
    student = source("student", classes=10)
    export(OnnxExport(), replace(student, steps=(1,)), tmp_path / "page", target="onnx")
    for file in (EXAMPLE, FOLDER / "noise.js", runtime.SCRIPT):
        shutil.copy(file, tmp_path / "page")
    with gzip.open(runtime.WASM) as wasm:
        (tmp_path / "page" / runtime.WASM.stem).write_bytes(wasm.read())
    with page_without_errors(browser) as page, server(tmp_path / "page") as address:
        page.goto(f"{address}{EXAMPLE.name}")
        page.wait_for_function("document.querySelector('canvas').width === 8", timeout=60_000)
        image = pixels(page.locator("canvas"))
    cond = Condition(torch.tensor([3]))
    noise = noise_from_seeds(start(7), SHAPE)
    assert same(image, to_uint8(student.generator(noise, cond=cond))[0].to(torch.int16))
