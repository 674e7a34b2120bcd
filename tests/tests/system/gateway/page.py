"""Drives the page in a headless Chromium: drops a video, asks, reads the ranges, and looks at what there is to see.

usage: page.py URL VIDEO TRUTH SCREENSHOT
TRUTH is what `vidi demo-video` writes beside the video. Prints what was found; ends with 1 and a sentence where something is off.
"""

import base64
import json
import pathlib
import re
import sys

from playwright.sync_api import expect, sync_playwright

URL, VIDEO, TRUTH, SCREENSHOT = sys.argv[1:]
WAIT_MS = 120_000


def need(ok, what):
    if not ok:
        sys.exit(f"the page: {what}")


def seconds(clock):
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total


def iou(said, truth):
    """Share of time, on a grid of hundredths, of what is in both in what is in either."""
    grid = lambda ranges: {t for start, end in ranges for t in range(round(start * 100), round(end * 100))}
    said, truth = grid(said), grid(truth)
    return len(said & truth) / max(1, len(said | truth))


def drop(page):
    data = base64.b64encode(pathlib.Path(VIDEO).read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([data, name]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "video/mp4" }));
            return transfer;
        }""",
        [data, pathlib.Path(VIDEO).name],
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def is_drawn(page, selector):
    """Whether a canvas has more than one colour, of the first of a selector."""
    return page.locator(selector).first.evaluate(
        """(canvas) => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const colours = new Set();
            for (let i = 0; i < pixels.length; i += 4 * 97) colours.add(pixels.slice(i, i + 4).join());
            return colours.size > 1;
        }"""
    )


def asked(page, task, query):
    """Asks by keyboard alone, once the video is chosen."""
    page.get_by_role("combobox", name="Task").select_option(task)
    page.get_by_role("textbox", name="Question").fill(query)
    page.get_by_role("textbox", name="Question").press("Control+Enter")
    # Pressed, it cannot be pressed again before there is an answer; what the last one left to see says nothing.
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator("#state")).to_have_text(re.compile("found|Answered"))


def main():
    truth = json.loads(pathlib.Path(TRUTH).read_text())
    questions = [q for q in truth["questions"] if q["task"] == "retrieval" and q.get("ranges")]
    question = max(questions, key=lambda q: len(q["ranges"]))
    words = next(q for q in truth["questions"] if q["task"] == "qa")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 960})
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(URL)
        expect(page.get_by_text("all stages are ready")).to_be_visible(timeout=WAIT_MS)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("Choose a video first")

        drop(page)
        expect(page.get_by_label("The chosen video", exact=True)).to_be_visible()
        asked(page, "qa", words["query"])
        expect(page.locator("#answers")).to_contain_text(words["text"])
        asked(page, "retrieval", question["query"])
        times = [re.findall(r"[\d:.]+(?= to|$)", text.strip().split("\n")[0]) for text in page.locator(".ranges .time").all_inner_texts()]
        said_ranges = [(seconds(start), seconds(end)) for start, end in (pair[-2:] for pair in times)]
        agreement = iou(said_ranges, question["ranges"])
        need(agreement >= 0.5, f"{question['query']!r}: {said_ranges} and not {question['ranges']}")

        cards = page.locator(".ranges button")
        need(page.locator("#lane button").count() == cards.count() == len(said_ranges), "bars and cards are not as many as ranges")
        page.wait_for_timeout(1500)
        for selector in ("#strip", ".ranges canvas"):
            need(is_drawn(page, selector), f"{selector} has no picture")
        # By keyboard, from the heading that has the focus after the answer.
        need(page.evaluate("document.activeElement.id") == "outcome-title", "the answer has not got the focus")
        page.keyboard.press("Tab")
        need(page.evaluate("document.activeElement.closest('.ranges') !== null"), "Tab does not lead to the first range")
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        now = page.locator("#video").evaluate("(video) => video.currentTime")
        start, end = said_ranges[0]
        need(start - 0.1 <= now <= max(end, start + 1.0), f"the video is at {now} s, and the range begins at {start} s")
        page.locator("#video").evaluate("(video) => video.pause()")
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=SCREENSHOT)

        need(page.locator("#log li").count() > 3, "the events are not listed")
        # A video that nobody can watch.
        page.set_input_files("#file", {"name": "text.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
        page.get_by_role("textbox", name="Question").fill("a beep")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("alert")).not_to_be_empty(timeout=WAIT_MS)
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        browser.close()
    # The browser itself tells of a status of 4xx; nothing else may be there.
    strange = [text for text in said if "Failed to load resource" not in text]
    need(not strange, f"errors on the console: {strange}")
    print(f"{question['query']!r}: {said_ranges}, IoU {agreement:.2f} with {question['ranges']}; {words['query']!r}: {words['text']!r}")


main()
