"""The page of `sammi serve` in a browser: `make test-page`, which installs Chromium if need be."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sammi_jax.data.openshapes import scene
from sammi_jax.ops.rle import decode_rle

pytestmark = pytest.mark.page

ROOT = Path(__file__).resolve().parent.parent
NAMES = "striped red thing; plain red thing, dotted blue thing, green waves, green gravel"
SECONDS = 120  # for whatever the page is waited for
SHOTS = os.environ.get("SAMMI_SCREENSHOTS")  # a folder, to look at the page


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server's process, its address, and the file with its stderr."""
    log = tmp_path_factory.mktemp("server") / "stderr"
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sammi_jax", "serve", "--port", "0"],
            cwd=ROOT, env=os.environ | {"TMPDIR": str(log.parent)},
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    line = process.stdout.readline()
    address = re.match(r"http://127\.0\.0\.1:\d+/", line)
    assert address, log.read_text()
    yield process, address[0], log
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "no chromium: run `make test-page`"
    assert driver, "no chromedriver: run `make test-page`"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                     "--window-size=1180,1150", "--hide-scrollbars"):  # fmt: skip
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.all("#segment"))

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    def wait(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(
            self.browser, SECONDS, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda _: condition())

    def upload(self, path):
        self.one("#image input[type=file]").send_keys(str(path))
        self.wait(lambda: self.all("#image img"))

    def type(self, names):
        field = self.one("#names textarea")
        field.clear()
        field.send_keys(names)

    def segment(self):
        self.one("#segment").click()

    def text(self, selector):
        return self.one(selector).text

    def says(self, selector, pattern):
        """Wait for a text: what an event changes does not change at once."""
        self.wait(lambda: re.search(pattern, self.text(selector)))

    def result(self):
        """The address of the result's image, which changes with every drawing."""
        images = self.all("#result img")
        return images[0].get_attribute("src") if images else None

    def changed(self, before):
        return self.wait(lambda: self.result() not in (None, before) and self.result())

    def pixels(self):
        """The result as the browser has decoded it, ``[h, w, 3]``."""
        script = """
            const image = document.querySelector('#result img'), done = arguments[0];
            image.decode().then(() => {
                const canvas = document.createElement('canvas');
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                canvas.getContext('2d').drawImage(image, 0, 0);
                done(canvas.toDataURL('image/png').split(',')[1]);
            })"""
        encoded = base64.b64decode(self.browser.execute_async_script(script))
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

    def shot(self, name):
        if SHOTS:
            time.sleep(1)  # for the animations
            self.browser.save_screenshot(f"{SHOTS}/{name}.png")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "my scene.png"
    Image.fromarray(scene("test_seen", 3).image).save(path)
    return path


def test_from_an_image_to_files(server, browser, photo, tmp_path):
    page = Page(browser, server[1])
    page.shot("1_start")
    assert "openshapes" in page.text("#note")
    page.upload(photo)
    page.type(NAMES)
    page.segment()
    first = page.changed(None)
    page.says("#sentence", "of 4 classes occur")
    page.says("#legend", "striped red thing")
    assert "plain red thing" not in page.text("#legend")  # a synonym
    shares = [float(text) for text in re.findall(r"([\d.]+)%", page.text("#legend"))]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    page.shot("2_result")

    # Layers: without any, the image itself is left, enlarged.
    full = page.pixels()
    boxes = page.wait(lambda: page.all("#layers input"))
    assert len(boxes) == 4
    before = first
    for box in boxes[:3]:
        box.click()
        before = page.changed(before)
    image = scene("test_seen", 3).image
    scale = full.shape[0] // image.shape[0]
    plain = image.repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(page.pixels(), plain)
    assert (full != plain).any()
    for box in boxes[:3]:
        box.click()
        before = page.changed(before)
    np.testing.assert_array_equal(page.pixels(), full)

    # A click asks SAM.
    page.one("#result img").click()
    page.changed(before)
    page.says("#sentence", r"SAM's mask at \(4[78], 4[78]\): \d+ pixels")
    assert (page.pixels() != full).any()
    page.shot("3_clicked")

    page.one("#download").click()
    path = page.wait(lambda: next(iter(tmp_path.glob("*_sammi.zip")), None))
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        assert [name.rpartition("scene")[2] for name in names] == [
            ".json", "_labels.png", "_overlay.png",
        ]  # fmt: skip
        record = json.loads(archive.read(names[0]))
        labels = Image.open(io.BytesIO(archive.read(names[1])))
    assert labels.mode == "P"
    for annotation in record["annotations"]:
        mask = decode_rle(annotation["segmentation"], "")
        np.testing.assert_array_equal(mask, np.asarray(labels) == annotation["index"])

    # Another image: the result of the last one goes.
    page.one("#image button[aria-label='Remove Image']").click()
    page.wait(lambda: not page.all("#legend table"))


def test_an_example(server, browser):
    page = Page(browser, server[1])
    page.one("#examples tbody tr").click()
    page.wait(lambda: page.all("#image img"))
    page.segment()
    page.changed(None)
    page.shot("4_example")
    page.wait(lambda: len(page.all("#legend tbody tr")) >= 3)
    addresses = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert any(address.startswith(server[1]) for address in addresses)
    elsewhere = [
        address
        for address in addresses
        if not address.startswith((server[1], "data:", "blob:", "chrome:"))
    ]
    assert elsewhere == []
    problems = [entry["message"] for entry in browser.get_log("browser")
                if entry["level"] == "SEVERE"]  # fmt: skip
    assert problems == []


def toast(page):
    text = page.wait(lambda: page.text(".toast-messages"))
    assert "Traceback" not in text
    return " ".join(text.split())


def test_mistakes_are_one_line(server, browser, tmp_path, photo):
    page = Page(browser, server[1])
    page.type("red thing, blue thing")
    page.segment()
    assert "no image yet" in toast(page)

    page = Page(browser, server[1])
    bad = tmp_path / "bad.png"
    bad.write_text("<html>not an image</html>")
    page.upload(bad)
    page.type("red thing, blue thing")
    page.segment()
    assert "the image: is a web page, not the image it was downloaded for" in toast(page)
    page.shot("5_bad_file")

    page = Page(browser, server[1])
    page.upload(photo)
    page.type("cat, cat <b>bold</b>, cat")
    page.segment()
    assert "the class list names cat more than once" in toast(page)
    assert "Traceback" not in server[2].read_text()


def curl_commands():
    """The examples of docs/serve.md."""
    page = (ROOT / "docs/serve.md").read_text()
    blocks = re.findall(r'^```sh needs="server"\n(.*?)^```$', page, re.M | re.S)
    return [block for block in blocks if "curl" in block]


@pytest.mark.parametrize("command", curl_commands())
def test_the_examples_of_the_documentation(server, tmp_path, command):
    Image.fromarray(scene("test_seen", 3).image).save(tmp_path / "scene.png")
    assert "http://127.0.0.1:7860/" in command
    command = command.replace("http://127.0.0.1:7860/", server[1])
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    answer = json.loads(run.stdout)
    found = answer.get("annotations") or answer["masks"]
    assert any(decode_rle(entry["segmentation"], "").any() for entry in found)


def test_interrupting_ends_it_cleanly(server, browser):
    process, address, log = server
    page = Page(browser, address)
    assert page.all("#segment")
    folders = lambda: list(log.parent.glob("sammi_serve_*"))  # noqa: E731
    assert len(folders()) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=SECONDS) in (0, 130)
    assert "Traceback" not in log.read_text()
    assert folders() == []
