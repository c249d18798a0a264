"""A Chromium for tests, driven by Playwright, that watches what a page asks for and complains about.

Without a Chromium the tests that need one are skipped; with ``KN_LENS_NEEDS_BROWSER=1`` in the environment they fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--js-flags=--no-enable-lazy-source-positions",
)  # fmt: skip


def chromium() -> str:
    """Return the path of a Chromium, or skip the test."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no browser: none of {', '.join(NAMES)} is on the PATH"
        if os.environ.get("KN_LENS_NEEDS_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def browsing() -> Iterator[Any]:
    """Start a browser."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, fragment: str = "", **how: Any) -> Iterator[Any]:
    """Open a file, offline; nothing but the file may be asked for, and nothing may go wrong until it is closed."""
    context = browser.new_context(offline=True, accept_downloads=True, **how)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    address = path.resolve().as_uri()

    def check(request: Any) -> None:
        if request.url.partition("#")[0] != address and not request.url.startswith(("data:", "blob:")):
            troubles.append(f"request: {request.url}")

    page.on("request", check)
    page.goto(address + fragment)
    if how.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready]")
    yield page
    assert not troubles
    context.close()
