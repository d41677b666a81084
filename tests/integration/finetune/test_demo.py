"""The demo page in a real browser: an image goes in, the guesses and the overlay come out."""

from __future__ import annotations

import base64
import http.client
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from PIL import Image

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def port(trained: Path) -> Iterator[int]:
    words = [sys.executable, "-m", "coatnet.cli", "demo", str(trained), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        yield int(line.split("127.0.0.1:")[1].split("/")[0])
        server.terminate()


@pytest.fixture(scope="module")
def page(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.send("Page.enable")
        browser.send("Page.navigate", url=f"http://127.0.0.1:{port}/")
        browser.until("document.readyState === 'complete' && document.title === 'CoAtNet'")
        yield browser
    finally:
        browser.close()


def is_png(data_url: str) -> Image.Image:
    head, _, body = data_url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def drop(page: Any, *payloads: bytes) -> bool:
    """Drop files beside the square, and return whether the page took them from the browser."""
    script = """((...payloads) => {
        const bytes = payload => Uint8Array.from(atob(payload), c => c.charCodeAt(0));
        const data = new DataTransfer();
        for (const payload of payloads) data.items.add(new File([bytes(payload)], "x.jpg"));
        const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        return !document.body.dispatchEvent(event);
    })"""
    given = json.dumps([base64.b64encode(payload).decode() for payload in payloads])
    return page.evaluate(f"{script}(...{given})")


@pytest.mark.slow
def test_a_chosen_image_shows_its_guesses_and_where_the_model_looked(page: Any, photos: Path) -> None:
    page.choose_file("#file", photos / "validation" / "blue" / "000.jpg")
    page.until("document.querySelectorAll('#guesses li').length === 3")
    names = page.evaluate("[...document.querySelectorAll('#guesses li span')].map(s => s.textContent)")
    assert set(names[::2]) == {"amber", "blue", "green"}
    assert sum(float(share.removesuffix(" %")) for share in names[1::2]) == pytest.approx(100, abs=0.3)
    overlay = is_png(page.evaluate("document.getElementById('overlay').src"))
    assert overlay.mode == "RGBA" and overlay.size == (32, 32)
    assert np.asarray(overlay)[..., 3].max() > 0, "an overlay that shows nothing"
    assert page.evaluate("!document.getElementById('overlay').hidden")
    page.evaluate("document.getElementById('show').click()")
    assert page.evaluate("document.getElementById('overlay').hidden")
    page.evaluate("document.getElementById('show').click()")


@pytest.mark.slow
def test_a_dropped_text_file_is_answered_by_one_line_and_the_next_image_works(page: Any) -> None:
    drop(page, b"<script>alert(1)</script>")
    page.until("document.getElementById('status').className === 'error'")
    assert "not an image" in page.evaluate("document.getElementById('status').textContent")
    assert page.evaluate("document.querySelectorAll('#guesses li').length") == 0


@pytest.mark.slow
def test_files_dropped_anywhere_are_taken_and_what_is_passed_over_is_said(page: Any, photos: Path) -> None:
    jpeg = (photos / "validation" / "blue" / "000.jpg").read_bytes()
    assert drop(page, jpeg, jpeg), "the browser would leave the page for the file"
    page.until("document.querySelectorAll('#guesses li').length === 3")
    assert "for the first of 2 files" in page.evaluate("document.getElementById('status').textContent")


@pytest.mark.slow
def test_a_server_that_has_ended_is_named(page: Any) -> None:
    asked = """(async () => {
        const honest = window.fetch;
        window.fetch = () => honest("http://127.0.0.1:9/");  // the policy of the page lets it go nowhere
        await classify(new File(["x"], "x.jpg"));
        window.fetch = honest;
        return document.getElementById("status").textContent;
    })()"""
    assert page.evaluate(asked) == "no answer: is `coatnet demo` still running?"


@pytest.mark.slow
def test_an_answer_that_comes_after_another_image_was_dropped_is_not_shown(page: Any, photos: Path) -> None:
    jpegs = [(photos / "validation" / name / "000.jpg").read_bytes() for name in ("blue", "green")]
    late = """(async (...images) => {
        const bytes = image => Uint8Array.from(atob(image), c => c.charCodeAt(0));
        const [first, second] = images.map(image => new Blob([bytes(image)]));
        const honest = window.fetch;
        let release;
        window.fetch = (...words) => new Promise(done => release = done).then(() => honest(...words));
        const earlier = classify(first);
        window.fetch = honest;
        await classify(second);
        const shown = by("image").src;
        release();
        await earlier;
        return shown.startsWith("data:image/png") && by("image").src === shown;
    })"""
    assert page.evaluate(f"{late}(...{json.dumps([base64.b64encode(one).decode() for one in jpegs])})")


@pytest.mark.slow
def test_names_of_two_hundred_letters_stay_on_a_narrow_page_and_leave_the_shares_in_one_line(
    page: Any,
) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
    page.evaluate("by('title').textContent = 'y'.repeat(200)")
    page.evaluate("showGuesses([{class: 'k'.repeat(200), probability: 0.606}])")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    name, share = page.evaluate("[...document.querySelectorAll('.row span')].map(one => one.offsetWidth)")
    assert 50 < share < name
    page.send("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
def test_the_server_answers_no_other_host_no_other_path_and_no_form(port: int, photos: Path) -> None:
    image = (photos / "validation" / "amber" / "000.jpg").read_bytes()

    def ask(method: str, path: str, *, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    octets = "application/octet-stream"
    assert ask("POST", "/predict", body=image, Content_Type=octets)[0] == 200
    assert ask("GET", "/", Host="evil.example")[0] == 403
    assert ask("GET", "/../../etc/passwd")[0] == 404
    assert ask("POST", "/predict", body=image, Content_Type="multipart/form-data")[0] == 400
    for length in ("99999999999", "9" * 6000, "-5"):
        assert ask("POST", "/predict", Content_Type=octets, Content_Length=length)[0] == 413
    status, answer = ask("POST", "/predict", body=b"GIF89a\xff\xff\xff\xff\0\0\0;", Content_Type=octets)
    assert status == 422 and "\n" not in answer["error"]


def test_the_demo_is_off_unless_it_is_asked_for(coatnet: Callable[..., Any], tmp_path: Path) -> None:
    done = coatnet("demo", tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
