"""The web chat in a real browser: headless Chromium, driven over WebDriver's plain HTTP."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chat_models import Echo
from test_web import serving

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element in WebDriver's JSON (W3C WebDriver, 11)."""


class Browser:
    """A session of WebDriver."""

    def __init__(self, url: str) -> None:
        self.url, self.session = url, ""
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chrome = {"goog:chromeOptions": {"args": flags, "binary": CHROMIUM}}
        self.session = "/" + self.post("/session", capabilities={"alwaysMatch": chrome})["sessionId"]

    def post(self, path: str, **content: Any) -> Any:
        return self._call("POST", path, json.dumps(content).encode())

    def quit(self) -> None:
        self._call("DELETE", "", None)

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        place = path if path == "/session" else f"/session{self.session}{path}"
        request = urllib.request.Request(self.url + place, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def run(self, script: str) -> Any:
        return self.post("/execute/sync", script=script, args=[])

    def element(self, css: str) -> str:
        found = self.post("/element", using="css selector", value=css)
        return f"/element/{found[ELEMENT]}"

    def click(self, css: str) -> None:
        self.post(self.element(css) + "/click")

    def write(self, text: str) -> None:
        self.post(self.element("#message") + "/value", text=text)

    def texts(self, kind: str) -> list[str]:
        return self.run(f"return Array.from(document.querySelectorAll('#log .{kind}'), (e) => e.textContent)")


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the page did not come to this state in five minutes")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "started successfully on port" in line)
        port = line.rpartition("port")[2].strip(" .\n")
        browser = Browser(f"http://127.0.0.1:{port}")
        yield browser
        browser.quit()
        process.terminate()


def test_page_streams_answers_stops_and_keeps_tabs_apart(browser: Browser) -> None:
    with serving(Echo(context_length=2000, delay=0.02)) as server:
        browser.post("/url", url=f"http://localhost:{server.port}/")
        browser.click("#save")
        wait_for(lambda: browser.texts("note") == ["Nothing has been said yet."])
        browser.write("<b>é</b>\ue007")  # Enter sends
        wait_for(lambda: browser.texts("assistant") == ["<b>é</b>"])
        assert browser.texts("user") == ["<b>é</b>"], "markup is shown, not obeyed"

        browser.write("x" * 200)
        browser.click("#send")
        wait_for(lambda: len(browser.texts("assistant")) == 2 and len(browser.texts("assistant")[1]) > 3)
        assert browser.run("return document.getElementById('send').disabled")
        browser.click("#stop")
        wait_for(lambda: browser.texts("note")[1:] == ["stopped"])
        assert 3 < len(browser.texts("assistant")[1]) < 200
        wait_for(lambda: not browser.run("return document.getElementById('send').disabled"))

        browser.post("/window", handle=browser.post("/window/new", type="tab")["handle"])
        browser.post("/url", url=f"http://localhost:{server.port}/")
        browser.write("second\ue007")
        wait_for(lambda: browser.texts("assistant") == ["second"])
        assert "<b>" not in server_prompts(server)[-1], "another tab has a conversation of its own"

        browser.write("y" * 200 + "\ue007")
        wait_for(lambda: len(browser.texts("assistant")) == 2 and len(browser.texts("assistant")[1]) > 3)
        browser.click("#reset")  # while an answer is written, of which nothing is noted in the new conversation
        wait_for(lambda: browser.texts("assistant") == [])
        browser.write("third\ue007")
        wait_for(lambda: browser.texts("assistant") == ["third"])
        assert "second" not in server_prompts(server)[-1]
        assert browser.texts("note") == []
        logs = [entry["message"] for entry in browser.post("/se/log", type="browser") if entry["level"] == "SEVERE"]
        assert [line for line in logs if "favicon" not in line] == []

    browser.write("fourth\ue007")  # nobody serves the page any more
    wait_for(lambda: browser.texts("note") == ["The server does not answer."])
    assert browser.run("return document.getElementById('message').value") == "fourth"
    assert browser.texts("user") == ["third"]
    browser.click("#reset")
    wait_for(lambda: browser.texts("note") == ["The server does not answer."] * 2)
    assert browser.texts("user") == ["third"]


def server_prompts(server: Any) -> list[str]:
    return server.find_tab("f" * 32).conversation.generator.prompts
