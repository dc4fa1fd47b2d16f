"""A report whose every text is an attack, opened in a real browser: nothing runs, is fetched or vanishes."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from report_records import prediction, run_record, write_comparison, write_run

from commit_tuning.report.page import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARK = "document.title='ran';document.documentElement.setAttribute('data-ran','1')"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")


def attacks(server: str) -> list[str]:
    """Texts that run, load or hide something where they are not escaped; each asks the server for its own number."""

    def fetch(number: int) -> str:
        return f"{MARK};new Image().src='{server}/{number}'"

    return [
        f"<script>{fetch(0)}</script>",
        f'<img src=x onerror="{fetch(1)}">',
        f"</style><script>{fetch(2)}</script>",
        f'</title><svg onload="{fetch(3)}"></svg>',
        f"--><script>{fetch(4)}</script><!--",
        f'"><img src=\'{server}/5\'><a href="javascript:{MARK}" autofocus onfocus="{fetch(5)}">',
        f"<iframe srcdoc=\"<script>parent.{MARK}</script>\" src='{server}/6'></iframe>",
        f"<style>@import '{server}/7'; body {{ background: url({server}/7) }}</style>",
        f"<link rel=stylesheet href='{server}/8'><meta http-equiv=refresh content='0;url={server}/8'>",
        f"<base href='{server}/9/'><object data='{server}/9'></object><embed src='{server}/9'>",
        f"]]></svg></bdi></section><form action='{server}/10'><button autofocus>b</button></form>",
        f"{{{{ {MARK} }}}} {{% raw %}} ${{{MARK}}}",
        "<b>bold</b> &lt;kept&gt; &amp; <!-- kept --> <plaintext> <textarea> <noscript>",
        "$x^2$ $\\frac{ \\$1 $$ unbalanced $",
        "a\u202eb\u2066c\x00d\x1b[2Je\u200bf",
    ]


def seen(text: str) -> str:
    """How a text is to be read in the page: white space as HTML shows it, hidden characters as escapes."""
    shown = text
    for sign in "\u202e\u2066\x00\x1b\u200b":
        shown = shown.replace(sign, ascii(sign)[1:-1])
    return " ".join(shown.split())


def as_name(text: str) -> str:
    """The text as a folder may be called."""
    return text.replace("/", "|").replace("\0", "")[:90]


class Text(HTMLParser):
    """The text of a page, without that of styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.title = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)
        if self.tags and self.tags[-1][0] == "title" and not self.title:
            self.title = data

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Noting)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after two virtual seconds, and what the browser wrote to its console."""
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--disable-background-networking"),
        *("--enable-logging=stderr", f"--user-data-dir={profile}", "--virtual-time-budget=2000", page.as_uri()),
    ]
    ended = subprocess.run(command, capture_output=True, check=True, timeout=120)
    console = [line for line in ended.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return ended.stdout.decode(), console


def hostile_run(folder: Path, texts: list[str]) -> None:
    """A run whose record, questions, answers and picture names all hold attacks."""
    record = run_record()
    record["recipe"]["model"]["name"] = texts[3]
    record["recipe"]["data"]["dataset"] = texts[2]
    record["recipe"]["train"]["optimizer"] = texts[1]
    record["recipe"]["notes"] = {text: text for text in texts}
    for split in ("val", "test"):
        record["metrics"][split] = {"accuracy": 0.5, "questions": 2, "by_kind": dict.fromkeys(texts, 0.5)}
    record["metrics"]["starving"] = {texts[0]: 3}
    record |= {"data_checksum": texts[6], "versions": {texts[7]: texts[8]}, "parameters": {texts[9]: 1}}
    record["hardware"] = {"cpu": texts[5], "torch_threads": texts[4]}
    rows = [
        prediction(n, id=text, kind=text, question=text, choices=[text, "b"], truth=text, answers=[text], answer=text)
        for n, text in enumerate(texts)
    ]
    write_run(folder, record, [*rows, prediction(98, picture=texts[1]), prediction(99, picture=f"../{texts[0]}")])


def test_browser_runs_what_is_not_escaped(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>t</title>{attacks(server[0])[0]}")
    dom, _ = browse(page, tmp_path / "profile")
    assert Text(dom).title == "ran"
    assert server[1] == ["/0"]


def test_hostile_comparison_does_nothing(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    texts = attacks(server[0])
    folder = write_comparison(tmp_path / "compared", failures=texts)
    table = json.loads((folder / "table.json").read_text())
    hostile_run(folder / "runs/hostile", texts)
    for text in texts:
        run = f"runs/{as_name(text)}"
        write_run(folder / run, run_record(status=1))
        row = {"label": text, "method": text, "rates": text, "runs": ["runs/hostile", run]}
        table["rows"].append(table["rows"][0] | row)
    table["screening"] = table["rows"]
    (folder / "table.json").write_text(json.dumps(table))
    dom, console = browse(write_report(folder), tmp_path / "profile")
    found = Text(dom)
    for text in texts:
        assert found.text.count(seen(text)) >= 7, text  # a failure; label and rates in two tables and in the legend
        assert seen(as_name(text)) in found.text, text  # left out, by its folder
    check_that_nothing_ran(found, console, server[1])


def test_hostile_run_does_nothing(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    texts = attacks(server[0])
    hostile_run(tmp_path / "run", texts)
    dom, console = browse(write_report(tmp_path / "run"), tmp_path / "profile")
    found = Text(dom)
    for text in texts:
        assert found.text.count(seen(text)) >= 4, text  # question, choice, truth, answer
        assert seen(text.replace("_", " ")) in found.text  # the column of a kind
    check_that_nothing_ran(found, console, server[1])


def test_hostile_error_does_nothing(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    texts = attacks(server[0])
    for number, text in enumerate(texts):
        write_run(tmp_path / "runs" / str(number), run_record(status="failed", error=text, seed=number))
    dom, console = browse(write_report(tmp_path / "runs"), tmp_path / "profile")
    assert all(seen(text) in Text(dom).text for text in texts)
    check_that_nothing_ran(Text(dom), console, server[1])


def check_that_nothing_ran(found: Text, console: list[str], asked: list[str]) -> None:
    refused = {"script", "iframe", "object", "embed", "base", "link", "form", "a", "button", "textarea", "noscript"}
    assert not refused & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith(("on", "data-"))]
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    assert found.title != "ran"
    assert asked == []
    assert console == []
