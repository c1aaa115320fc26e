"""Pages in Debian's Chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WEBGPU = "--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader --enable-features=Vulkan".split()


@contextmanager
def chromium(*, webgpu: bool = False) -> Iterator[Browser]:
    """A headless Chromium of the system, or else of playwright; without one, tests fail."""
    flags = [*FLAGS, *(WEBGPU if webgpu else ["--disable-gpu"])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@contextmanager
def page_without_errors(browser: Browser, width: int = 1280, **options: object) -> Iterator[Page]:
    """A new page with its own storage. At the end its console must have no errors."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: line.type == "error" and problems.append(line.text))
    yield page
    context.close()
    assert not problems, problems
