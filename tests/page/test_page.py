"""The page at `/`, driven in headless Chromium as a person would use it. Screenshots go to target/page/.

Everywhere: no request leaves the server's origin, and the console shows no error and no warning. SIDEREAL_PAGE_FROM, if set, is a folder
whose index.html, page.js and page.css take the place of those in the binary: for work on the page without a build.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from served import ROOT, Server

CHROMIUM = os.environ.get("SIDEREAL_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = ROOT / "target" / "page"
SOURCE = ROOT / "src" / "server" / "page"
INSTEAD = os.environ.get("SIDEREAL_PAGE_FROM")
HOSTILE = '<script>document.title="pwned"</script><img src=x onerror=\'document.title="pwned"\'> "quoted" & <b>bold</b>'
HOSTILE_YEAR = 1066


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module", autouse=True)
def hostile(server: Server) -> str:
    """An item whose title is a script, and the only one of its year."""
    catalog = server.get("/v1/catalog")
    kind = catalog["types"][0]
    item = {"id": "test:hostile", "type": kind["name"], "title": HOSTILE, "popularity": 1, "year": HOSTILE_YEAR}
    item["sid"] = [codes - 1 for codes in kind["levels"]]
    server.post("/admin/catalog/add", {"items": [item]}, admin=True)
    return kind["name"]


@pytest.fixture
def open_page(browser, server: Server):
    """Opens pages, and looks afterwards at what they asked for and said."""
    contexts, said, asked, refused = [], [], [], []

    def opener(width=1280, height=900, scheme="light", base=server.url, **options) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        # What is fetched in the page's place knows no password.
        if INSTEAD and "http_credentials" not in options:
            for path, name in (("/", "index.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
                context.route(base + path, lambda route, _, name=name: fulfil(route, name))
        page = context.new_page()
        page.on("console", lambda message: said.append((message.type, message.text)))
        page.on("pageerror", lambda error: said.append(("exception", str(error))))
        page.on("request", lambda request: asked.append((base, request.url)))
        page.goto(base + "/")
        # Filled from the catalog: the page is ready.
        expect(page.locator("#query")).not_to_have_value("")
        return page

    # Statuses that a test is about: Chromium writes a line for each such answer.
    opener.refused = refused
    yield opener
    for context in contexts:
        context.close()
    expected = {f"Failed to load resource: the server responded with a status of {status}" for status in refused}
    assert [entry for entry in said if entry[0] in ("error", "warning", "exception") and entry[1].split(" (")[0] not in expected] == []
    assert [url for base, url in asked if not url.startswith((base + "/", "data:"))] == []


def fulfil(route, name: str) -> None:
    """Answers with a file of SIDEREAL_PAGE_FROM and the server's own headers."""
    response = route.fetch()
    kept = {header: value for header, value in response.headers.items() if header != "content-length"}
    route.fulfill(status=response.status, headers=kept, body=(pathlib.Path(INSTEAD) / name).read_text())


def shot(page: Page, name: str, **options) -> None:
    page.screenshot(path=SHOTS / f"{name}.png", **options)


def sent(page: Page) -> dict:
    """The request that the page says it would send."""
    return json.loads(page.locator("#json").text_content())


def test_it_is_small_and_keeps_to_itself():
    files = {name: (SOURCE / name).read_text() for name in ("index.html", "page.js", "page.css")}
    assert sum(len(text.encode()) for text in files.values()) < 40_000
    for name, text in files.items():
        outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}
        assert not outside, (name, outside)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", files["page.js"])
    assert not re.search(r"<style|style=|<script>| on\w+=", files["index.html"])


def test_its_headers_forbid_what_it_does_not_need(browser, server):
    response = browser.new_context().request.get(server.url + "/")
    policy = response.headers["content-security-policy"]
    assert "default-src" in policy and "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_search_lists_items_of_the_catalog(open_page, server):
    page = open_page()
    page.locator("#query").fill("harbour")
    page.locator("#send").click()
    rows = page.locator(".items .item")
    expect(rows).to_have_count(10)
    kind = page.locator("#type").input_value()
    scores = []
    for row in rows.all():
        title, meta = row.locator(".title").inner_text(), row.locator(".meta span").all_inner_texts()
        known = server.get(f"/v1/catalog/item?id={meta[1]}")
        assert (known["title"], known["type"]) == (title, meta[0]) and meta[0] == kind
        scores.append(float(row.locator(".points").inner_text()))
    assert scores == sorted(scores, reverse=True)
    expect(page.locator("#status")).to_contain_text("10 items in")
    times = dict(zip(page.locator("#times dt").all_inner_texts(), page.locator("#times dd").all_inner_texts(), strict=True))
    for name in ("queue", "prefill", "decode", "total", "first event, browser", "end, browser"):
        assert re.fullmatch(r"[\d.]+ ms", times[name]), times
    assert float(times["end, browser"].split()[0]) >= float(times["total"].split()[0])
    shot(page, "search")


def test_the_request_shown_is_the_request_sent(open_page, server):
    page = open_page()
    page.locator("#query").fill("it's a \"test\"")
    page.locator("#options summary").click()
    page.locator("#n").fill("3")
    page.locator("#beam_width").fill("12")
    page.locator("#score").select_option("valid")
    with page.expect_request("**/v1/items") as request:
        page.locator("#send").click()
    assert json.loads(request.value.post_data) == sent(page)
    body = sent(page)
    assert (body["n"], body["beam_width"], body["score"]) == (3, 12, "valid")
    expect(page.locator(".items .item")).to_have_count(3)
    expect(page.locator("#notes")).to_contain_text("scores over valid")
    # The curl line, as it is copied, gives the same list.
    command = page.locator("#curl").text_content()
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    done = re.search(r"event: done\ndata: (.*)", ran.stdout)
    assert done, (command, ran.stdout, ran.stderr)
    ids = [item["id"] for item in json.loads(done[1])["items"]]
    assert ids == [row.locator(".meta span").nth(1).inner_text() for row in page.locator(".items .item").all()]


def test_items_appear_inside_streaming_text(open_page, server):
    page = open_page()
    page.get_by_role("radio", name="Explain").check()
    page.locator("#options summary").click()
    page.locator("#temperature").fill("1")
    chips = page.locator(".text .chip")
    for seed in range(40):
        page.locator("#seed").fill(str(seed))
        page.locator("#send").click()
        expect(page.locator("#cost")).to_be_visible()
        if chips.count():
            break
    assert chips.count(), "forty drawn answers named no item: the test shows nothing"
    # What is shown is what the server answers to the same request at once.
    answer = server.post("/v1/items", sent(page))
    shown = page.locator(".text").evaluate(
        "box => [...box.childNodes].map(node => node.className === 'chip' ? node.firstChild.data : node.data)")
    expected = [part.get("title", part.get("id")) if part["type"] == "item" else part["text"] for part in answer["content"]]
    assert shown == expected
    assert [node.get_attribute("title").split(" · ")[1] for node in chips.all()] == [
        part["id"] for part in answer["content"] if part["type"] == "item"]
    # They came while the answer was being written: as events of their own.
    chips.first.click()
    expect(page.locator("#path table thead")).to_contain_text("Log-prob.")
    page.keyboard.press("Escape")
    expect(chips.first).to_be_focused()
    shot(page, "mixed")


def test_the_path_of_an_item_by_keyboard_alone(open_page, server):
    page = open_page()
    page.keyboard.press("Tab")
    # The first stop is the task; arrows change it.
    expect(page.locator("[name=task][value=search]")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("[name=task][value=recommend]")).to_be_checked()
    page.keyboard.press("ArrowLeft")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.locator("#query").evaluate("input => input === document.activeElement"):
            break
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("harbour")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".items .item")).to_have_count(10)
    second = page.locator(".items .item").nth(1)
    for _ in range(40):
        page.keyboard.press("Tab")
        if second.evaluate("row => row === document.activeElement"):
            break
    expect(second).to_be_focused()
    assert second.evaluate("row => getComputedStyle(row).outlineStyle") == "solid"
    shot(page, "focus")
    page.keyboard.press("Enter")
    expect(page.locator("#path")).to_be_visible()
    expect(page.locator("#path-title")).to_be_focused()
    expect(second).to_have_attribute("aria-expanded", "true")
    name = second.locator(".meta span").nth(1).inner_text()
    known = server.get(f"/v1/catalog/item?id={name}")
    rows = page.locator("#path tbody tr")
    expect(rows).to_have_count(len(known["path"]))
    total = 0.0
    for row, step in zip(rows.all(), known["path"], strict=True):
        cells = row.locator("td").all_inner_texts()
        assert cells[0].split()[0] == str(step["code"])
        assert [cell.replace(",", "") for cell in cells[1:3]] == [str(step["children"]), str(step["items"])]
        total += float(cells[3])
    # The levels add up to the score.
    assert abs(total - float(second.locator(".points").inner_text())) < 0.005
    expect(page.locator("#path svg circle.stop")).to_have_count(1 + len(known["path"]))
    shot(page, "path")
    page.keyboard.press("Tab")
    expect(page.locator("#path-close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#path")).to_be_hidden()
    expect(second).to_be_focused()
    expect(second).to_have_attribute("aria-expanded", "false")


def test_a_history_is_built_from_titles_by_keyboard(open_page, server):
    page = open_page()
    page.get_by_role("radio", name="Recommend").check()
    history = page.locator("#history li")
    expect(history).not_to_have_count(0)
    while history.count():
        page.locator("#history button").first.click()
    expect(page.locator("#pick")).to_be_focused()
    page.keyboard.type("the")
    options = page.locator("#found li")
    expect(options.first).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    assert page.locator("#pick").get_attribute("aria-activedescendant") == options.nth(1).get_attribute("id")
    shot(page, "picker")
    wanted = options.nth(1).locator("small").inner_text().split(" · ")[1]
    page.keyboard.press("Enter")
    expect(history).to_have_count(1)
    expect(page.locator("#found")).to_be_hidden()
    page.keyboard.type("the")
    expect(options.first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#found")).to_be_hidden()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".items .item").first).to_be_visible()
    body = sent(page)
    parts = body["messages"][0]["content"]
    assert parts[1] == {"type": "history", "items": [wanted]} and body["exclude"] == [wanted]
    assert wanted not in [row.locator(".meta span").nth(1).inner_text() for row in page.locator(".items .item").all()]
    shot(page, "recommend")


def test_a_script_in_a_title_stays_text(open_page, hostile):
    page = open_page()
    page.locator("#type").select_option(hostile)
    page.locator("#filters summary").click()
    page.locator("#filter").fill(json.dumps({"attr": "year", "eq": HOSTILE_YEAR}))
    page.locator("#send").click()
    rows = page.locator(".items .item")
    expect(rows).to_have_count(1)
    expect(page.locator("#status")).to_contain_text("no other item fits")
    assert rows.first.locator(".title").inner_text() == HOSTILE
    rows.first.click()
    expect(page.locator("#path-title")).to_have_text(HOSTILE)
    page.get_by_role("button", name="Describe it").click()
    expect(page.locator("#history li").last.locator("span").first).to_contain_text(HOSTILE)
    page.locator("#send").click()
    expect(page.locator("#cost")).to_be_visible()
    page.locator("#pick").fill("pwned")
    expect(page.locator("#found li").first).to_contain_text(HOSTILE)
    shot(page, "hostile")
    assert page.title() == "Sidereal"
    assert page.locator("main script, main img, main b").count() == 0


def test_errors_are_sentences_beside_their_field(open_page):
    open_page.refused.append(400)
    page = open_page()
    page.locator("#filters summary").click()
    page.locator("#filter").fill('{"attr": "nonsense", "eq": 1}')
    page.locator("#send").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("nonsense")
    expect(alert).to_contain_text("filter")
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "true")
    shot(page, "error")
    page.locator("#filter").fill('{"attr": ')
    expect(page.locator("#filter")).not_to_have_attribute("aria-invalid", "true")
    page.locator("#send").click()
    expect(alert).to_contain_text("this is not JSON")
    page.locator("#filter").fill("")
    page.locator("#options summary").click()
    page.locator("#beam_width").fill("many")
    page.locator("#send").click()
    expect(alert).to_contain_text("beam_width")
    page.locator("#beam_width").fill("30")
    page.locator("#send").click()
    expect(page.locator(".items .item").first).to_be_visible()
    expect(alert).to_be_hidden()


def test_filters_are_put_together_from_attributes(open_page, server):
    page = open_page()
    page.locator("#filters summary").click()
    pieces = page.locator("#pieces button")
    assert pieces.all_inner_texts() == [entry["name"] for entry in server.get("/v1/catalog")["attributes"]] + server.get("/v1/catalog")["filters"]
    page.locator("#pieces button", has_text="year").click()
    expect(page.locator("#filter")).to_have_value('{ "attr": "year", "ge": 0 }')
    page.locator("#pieces button", has_text="year").click()
    assert len(json.loads(page.locator("#filter").input_value())["all"]) == 2
    page.locator("#send").click()
    expect(page.locator(".items .item").first).to_be_visible()


def test_stop_ends_the_request_here_and_there(open_page, server):
    page = open_page()
    page.get_by_role("radio", name="Raw").check()
    page.locator("#output").select_option("text")
    page.locator("#options summary").click()
    page.locator("#max_tokens").fill("900")
    page.locator("#temperature").fill("1")
    page.locator("#message").fill("The sea")
    # A slow line, so that there is an answer to stop.
    slow = page.context.new_cdp_session(page)
    slow.send("Network.enable")
    slow.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": 600, "uploadThroughput": -1})
    page.locator("#message").press("Control+Enter")
    expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator("#turns")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#message")).to_be_focused()
    page.locator("#stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.get_by_role("alert")).to_be_hidden()
    server.until("the request is gone", server.idle)


def test_a_conversation_goes_on(open_page, server):
    page = open_page()
    page.get_by_role("radio", name="Chat").check()
    page.locator("#message").fill("Hello")
    page.locator("#send").click()
    expect(page.locator("#cost")).to_be_visible()
    expect(page.locator("#message")).to_have_value("")
    page.locator("#message").fill("And then?")
    assert [message["role"] for message in sent(page)["messages"]] == ["user", "assistant", "user"]
    page.locator("#send").click()
    expect(page.locator(".said")).to_have_count(2)
    expect(page.locator("#cost")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    shot(page, "chat")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".said")).to_have_count(0)


@pytest.mark.parametrize("width", [360, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_scheme(open_page, width, scheme):
    page = open_page(width, 800, scheme)
    for task in ("Search", "Recommend", "Explain", "Chat", "Raw"):
        page.get_by_role("radio", name=task).check()
        for details in ("#options", "#filters", "#wire"):
            page.locator(details).evaluate("element => element.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, task
    page.get_by_role("radio", name="Search").check()
    for details in ("#options", "#filters", "#wire"):
        page.locator(details).evaluate("element => element.open = false")
    page.locator("#send").click()
    expect(page.locator(".items .item").first).to_be_visible()
    shot(page, f"{scheme}-{width}")
    page.locator(".items .item").first.click()
    expect(page.locator("#path table")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, f"{scheme}-{width}-path")


def test_contrast_is_enough(open_page):
    """Text against its ground: 4.5 to 1 at least, by WCAG's formula, in both schemes."""
    for scheme in ("light", "dark"):
        page = open_page(scheme=scheme)
        colours = page.evaluate("""() => {
            const style = getComputedStyle(document.documentElement);
            return Object.fromEntries(["bg", "surface", "ink", "muted", "accent", "bad", "on-accent"].map((name) => [name, style.getPropertyValue("--" + name).trim()]));
        }""")

        def light(colour: str) -> float:
            digits = colours[colour].removeprefix("#")
            digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
            channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        for text, ground in [("ink", "bg"), ("ink", "surface"), ("muted", "bg"), ("muted", "surface"), ("accent", "surface"), ("bad", "surface"), ("on-accent", "accent")]:
            low, high = sorted((light(text), light(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, ground)


def test_every_control_has_a_name(open_page):
    page = open_page()
    for task in ("Search", "Recommend", "Explain", "Chat", "Raw"):
        page.get_by_role("radio", name=task).check()
        nameless = page.evaluate("""() => [...document.querySelectorAll("input, select, textarea, button")]
            .filter((control) => !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim()))
            .map((control) => control.outerHTML)""")
        assert nameless == []


def test_with_keys_the_browser_asks_for_one(open_page):
    key = "sk-page-0123456789abcdef"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as keys:
        keys.write(f'[keys]\npage = "{key}"\n')
        keys.flush()
        with Server("--api-keys", keys.name, key=key) as server:
            page = open_page(base=server.url, http_credentials={"username": "me", "password": key})
            page.locator("#send").click()
            expect(page.locator(".items .item").first).to_be_visible()
