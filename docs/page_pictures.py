"""Pictures of the page of `sottovoce demo` for docs/page.md, made in headless Chromium: one of each tab.

python docs/page_pictures.py runs/quickstart --against OTHER/bundle --pick 4
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

import sottovoce as sv
from sottovoce.webpage.command import served
from sottovoce.webpage.examples import examples_beside, named_examples
from sottovoce.webpage.listener import Listener
from sottovoce.webpage.page import build, looks

HERE = Path(__file__).parent / "pictures"
TABS = {"Ask": "dialogue", "Slots": None, "Attributes": None, "Compare": None}  # task; None: the one of --task
SIZE = {"width": 1280, "height": 800}
COLOURS = 128  # of a PNG's palette: text and bars need no more, and it is a third of the size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--against")
    parser.add_argument("--example", action="append", default=[], help="a clip; absent: of the run's own")
    parser.add_argument("--pick", type=int, default=0, help="number of the clip that is asked about")
    parser.add_argument("--task", default="emotion")
    parser.add_argument("--names", nargs=2, default=[None, None], help="of the two bundles")
    arguments = parser.parse_args()
    examples = named_examples(arguments.example) or examples_beside(Path(arguments.bundle))
    listener = Listener(sv.load(arguments.bundle, device="cpu"), arguments.names[0])
    against = Listener(sv.load(arguments.against, device="cpu"), arguments.names[1]) if arguments.against else None
    blocks = build(listener, examples, against)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with served(blocks, "127.0.0.1", None, **looks()) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(address)
        page.locator("#examples button").nth(arguments.pick).click()
        expect(page.locator("#clip").get_by_label("Play", exact=False).first).to_be_visible()
        for tab, task in TABS.items():
            if page.get_by_role("tab", name=tab, exact=True).count():
                show(page, tab, task or arguments.task)
        browser.close()


def show(page: Page, tab: str, task: str) -> None:
    """Ask on one tab, and write its picture."""
    page.locator("#task input").click()
    page.get_by_role("option", name=task, exact=True).click()
    page.get_by_role("tab", name=tab, exact=True).click()
    with page.expect_response(lambda got: "queue/join" in got.url):
        page.locator(f"#do-{tab.lower()}").click()
    page.mouse.move(640, 790)
    page.wait_for_timeout(6_000)  # for the whole of an answer
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "page.png"
        page.screenshot(path=whole)
        image = Image.open(whole).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        target = HERE / f"page_{tab.lower()}.png"
        image.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
