"""A report in a real browser: on paper, where nothing can be scrolled or unfolded, and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser

from coatnet.report.write import write_report
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.run_directory import RunDirectory

A4_PX = 718  # between Chromium's margins


@pytest.mark.slow
def test_on_paper_no_table_is_cut_nor_is_an_event_named_which_on_a_phone_has_the_whole_width(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for life in (1, 2):
        run.record_event("resume", life=life, samples_seen=1_000 * life, world_size=1024)
        account = TimeAccount(run.account, rank=0, life=life, age_seconds=400_000.0)
        account.shift(100_000.0, source="start", target="redone")
        account.flush(samples_seen=1_234 * life)
    run.record_event("no_plan", reason="a config that trains, but that no plan can judge; " * 3)
    browser = Browser(tmp_path / "profile")
    try:
        browser.send(
            "Emulation.setDeviceMetricsOverride", width=A4_PX, height=1000, deviceScaleFactor=1, mobile=False
        )
        browser.send("Emulation.setEmulatedMedia", media="print")
        browser.send("Page.navigate", url=write_report(run.path).as_uri())
        browser.until("document.title === 'run' && document.readyState === 'complete'")
        tables = "[...document.querySelectorAll('.scroll')].map(one => one.scrollWidth - one.clientWidth)"
        assert browser.evaluate(tables) == [0, 0, 0]
        said = browser.evaluate("document.body.innerText")
        assert "then gap" in said and "3 events" not in said

        browser.send(
            "Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False
        )
        browser.send("Emulation.setEmulatedMedia", media="screen")
        browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        widths = browser.evaluate("[...document.querySelectorAll('.screen td')].map(one => one.offsetWidth)")
        assert widths[-1] > 340, "on a phone what an event tells is no column of single words"
        assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    finally:
        browser.close()
