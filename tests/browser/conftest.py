"""A real browser. Its tabs report every request to another address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.chrome import CHROMIUM, PATIENCE_MS, QUIET, SEEN, Tab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            reason = "no chromium on this machine: apt-get install chromium"
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason=reason))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any) -> Tab:
    """Return `tab`. `with tab(of=ADDRESS, width=...) as page` fails if the page sends a request to another address."""

    @contextmanager
    def opened(of: str, width: int = 1400, height: int = 900, **options: Any) -> Iterator[Any]:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        script = "for (const [k, v] of Object.entries(%s)) localStorage.setItem(k, JSON.stringify(v));"
        if of.startswith("http"):  # a file has no storage
            context.add_init_script(script % json.dumps(SEEN))
        page, outside = context.new_page(), []
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda r: None if r.url.startswith((of, "data:", "blob:")) else outside.append(r.url))
        yield page
        assert outside == [], "the page sends no request to another address"
        context.close()

    return opened
