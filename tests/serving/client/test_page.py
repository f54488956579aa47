"""The page that explains a ranking: what is in it, and what a person sees and does in Chromium."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import select
import shutil
import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client.__main__ import main
from serving.client.answers import Attention, Explanation
from serving.client.page import check_page_path, explanation_page, write_page

NOW = 1_700_000_000
MADE = datetime.datetime(2026, 3, 1, 13, 5, 9, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
# Best first: b (0.5), then c before d, which are equal, then a. Candidate d rests on one behaviour, a on none.
CANDIDATES: dict[str, Any] = {"item_id": ["a", "b", "c", "d"], "price": [9, 10, 100, 1]}
HISTORY: dict[str, Any] = {
    "item_id": ["b", "x", "y"],
    "rating": [5, 4, 2],
    "timestamp": [NOW - 45, NOW - (3 * 86_400 + 4 * 3_600 + 59), NOW - 2 * 31_536_000],
}
EXPLANATION = Explanation(
    probability=np.array([0.125, 0.5, 0.25, 0.25], np.float32),
    model_version=7,
    positions=np.array([[-1, -1], [0, 2], [2, 1], [1, -1]], np.int32),
    weights=np.array([[0, 0], [0.25, 0.75], [0.625, 0.375], [1, 0]], np.float32),
    scores=np.array([[-1, -1], [0, 8], [4, 2], [6, -1]], np.int32),
    score_name="distances",
)
# A unit without scores, one with scores below 0.
RECENT = Attention(np.array([[0], [0], [0], [0]], np.int32), np.array([[1], [0.5], [1], [1]], np.float32))
PRODUCTS = Attention(
    np.array([[1, 2], [1, 0], [2, -1], [0, 2]], np.int32),
    np.array([[0.5, 0.5], [0.25, 0.75], [1, 0], [0, 1]], np.float32),
    np.array([[-0.5, -0.25], [0.5, -0.125], [-0.25, 0], [0, 0.25]], np.float32),
    "inner_products",
)
SEVERAL = dataclasses.replace(EXPLANATION, others={"recent_interest": RECENT, "inner": PRODUCTS})


def page(explanation: Explanation = EXPLANATION, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "candidates": CANDIDATES,
        "history": HISTORY,
        "user": {"user_id": 5},
        "context": {"timestamp": NOW, "hour": 20},
        "model_name": "eta",
        "made": MADE,
    }
    return explanation_page(explanation, **(arguments | changes))


def data_of(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_data_is_best_first_and_without_padding() -> None:
    data = data_of(page())
    assert data["candidates"] == [["item_id", ["b", "c", "d", "a"]], ["price", [10, 100, 1, 9]]]
    assert data["scores"] == [0.5, 0.25, 0.25, 0.125]
    retrieved = [[[0, 0, 0.25], [2, 8, 0.75]], [[2, 4, 0.625], [1, 2, 0.375]], [[1, 6, 1.0]], []]
    assert data["units"] == [{"name": "", "score": "distance", "retrieved": retrieved}]
    assert data["behaviours"] == [["item_id", ["b", "x", "y"]], ["rating", [5, 4, 2]]]
    assert data["times"] == {
        "unit": "seconds",
        "now": "2023-11-14 22:13",
        "timestamps": HISTORY["timestamp"],
        "dates": ["2023-11-14 22:12", "2023-11-11 18:12", "2021-11-14 22:13"],
        "ages": [45, 273_659, 63_072_000],
    }
    assert data["given"] == [["user_id", 5], ["timestamp", NOW], ["hour", 20]]
    assert (data["model"], data["version"], data["numBehaviours"]) == ("eta", 7, 3)
    assert data["made"] == "2026-03-01 12:05:09 UTC"


def test_data_of_several_units() -> None:
    data = data_of(page(SEVERAL))
    assert [(unit["name"], unit["score"]) for unit in data["units"]] == [
        ("", "distance"),
        ("recent_interest", None),
        ("inner", "inner_product"),
    ]
    assert data["units"][1]["retrieved"] == [[[0, None, 0.5]], [[0, None, 1.0]], [[0, None, 1.0]], [[0, None, 1.0]]]
    assert data["units"][2]["retrieved"][:2] == [[[1, 0.5, 0.25], [0, -0.125, 0.75]], [[2, -0.25, 1.0]]]


def test_counts_stand_beside_the_candidates() -> None:
    counted = dataclasses.replace(EXPLANATION, counts={"match_item_id": np.array([0, 3, 2, 1])})
    assert data_of(page(counted))["candidates"][2] == ["match_item_id_count", [3, 2, 1, 0]]


def test_timestamps_without_the_time_of_the_request_stay_as_they_are() -> None:
    data = data_of(page(context={"hour": 20}))
    assert data["times"] is None
    assert data["behaviours"][2] == ["timestamp", HISTORY["timestamp"]]


@pytest.mark.parametrize(("unit", "size"), [("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)])
def test_times_are_of_the_unit_of_the_request(unit: str, size: int) -> None:
    moments = [then * size + size // 2 for then in HISTORY["timestamp"]]
    times = data_of(page(history=HISTORY | {"timestamp": moments}, context={"timestamp": NOW * size}))["times"]
    assert (times["unit"], times["now"]) == (unit, "2023-11-14 22:13")
    assert times["dates"] == ["2023-11-14 22:12", "2023-11-11 18:12", "2021-11-14 22:13"]
    assert times["ages"] == [44, 273_658, 63_071_999]
    # Nanoseconds are no doubles.
    assert times["timestamps"] == [moment if size < 10**9 else str(moment) for moment in moments]


def test_times_of_a_clock_of_no_known_unit_are_its_own() -> None:
    times = data_of(page(history=HISTORY | {"timestamp": [9, 3, -(10**18)]}, context={"timestamp": 10}))["times"]
    assert times == {
        "unit": "",
        "now": "",
        "timestamps": [9, 3, "-1000000000000000000"],
        "dates": ["", "", ""],
        "ages": [1, 7, 10**18 + 10],
    }


def test_moments_beyond_the_calendar_have_no_date() -> None:
    moments = [0, 10**15, -(10**18)]
    dates = data_of(page(history=HISTORY | {"timestamp": moments}))["times"]["dates"]
    assert dates == ["1970-01-01 00:00", "", ""]


ITEMS = {"item_id": ["y", "b", "c"], "title": ["Why", "Be", "See"], "price": [1, 2, 3], "rating": ["r", "s", "t"]}


def test_what_is_known_of_items_stands_beside_their_ids() -> None:
    data = data_of(page(items=ITEMS))
    assert data["candidates"] == [
        ["item_id", ["b", "c", "d", "a"]],
        ["title", ["Be", "See", "", ""]],
        ["rating", ["s", "t", "", ""]],
        ["price", [10, 100, 1, 9]],
    ]
    assert data["behaviours"] == [
        ["item_id", ["b", "x", "y"]],
        ["title", ["Be", "", "Why"]],
        ["price", [2, "", 1]],
        ["rating", [5, 4, 2]],
    ]


def test_items_go_by_ids_as_text() -> None:
    candidates = {"item_id": np.array([2**62, 5, 7, 8])}
    items = {"item_id": [str(2**62), "8"], "title": ["large", "eight"]}
    data = data_of(page(candidates=candidates, items=items))
    assert data["candidates"][1] == ["title", ["", "", "eight", "large"]]


def test_history_length_counts_the_behaviours() -> None:
    explanation = dataclasses.replace(EXPLANATION, positions=np.minimum(EXPLANATION.positions, 1))
    assert data_of(page(explanation, history_length=2))["numBehaviours"] == 2


def test_values_that_javascript_has_not() -> None:
    """Integers beyond a double, bytes, NaN and infinity are text; a score that is not a number is null."""
    ids = np.array([2**63 - 1, 2**53 - 1, -(2**53), 0])
    candidates = {"item_id": ids, "name": [b"caf\xc3\xa9", b"\xff", "\ud800", "\u2028"], "x": [np.nan, -np.inf, 1.5, 2]}
    explanation = dataclasses.replace(EXPLANATION, probability=np.array([0.5, 0.25, 0.125, np.nan], np.float32))
    text = page(explanation, candidates=candidates)
    assert text.isascii()
    data = data_of(text)
    assert data["candidates"] == [
        ["item_id", ["9223372036854775807", 2**53 - 1, "-9007199254740992", 0]],
        ["name", ["café", "\\xff", "\ud800", "\u2028"]],
        ["x", ["nan", "-inf", 1.5, 2]],
    ]
    assert data["scores"] == [0.5, 0.25, 0.125, None]


HOSTILE = "</script><!--<script><img src=x onerror=alert(1)>__DATA__"


def test_text_of_the_request_is_no_markup() -> None:
    plain = page()
    html = page(
        candidates={HOSTILE: [HOSTILE] * 4},
        history={"item_id": [HOSTILE] * 3},
        user={HOSTILE: HOSTILE},
        model_name=HOSTILE,
    )
    assert re.findall(r"<[^>]*>", html) == re.findall(r"<[^>]*>", plain)
    assert data_of(html)["model"] == HOSTILE


def test_page_names_no_address() -> None:
    assert re.findall(r"(?i)\b(?:https?:|wss?:|//\w|url\(|@import|src=|href=)", page()) == []


@pytest.mark.parametrize(
    ("explanation", "changes", "message"),
    [
        (
            dataclasses.replace(EXPLANATION, probability=np.zeros((2, 4), np.float32)),
            {},
            "A page shows one request: `explanation` must have probabilities [C]. Received: 2 requests",
        ),
        (EXPLANATION, {"candidates": {"item_id": [1, 2]}}, "`candidates['item_id']` must have 4 values. Received: 2"),
        (
            EXPLANATION,
            {"history": HISTORY | {"rating": [5]}},
            "`history['rating']` must have 3 values. Received: 1",
        ),
        (
            EXPLANATION,
            {"history": {"item_id": ["b", "x"]}},
            "`history` must have every behaviour that `explanation` has positions of. "
            "Received: 2 behaviours, position 2",
        ),
        (
            dataclasses.replace(
                EXPLANATION, others={"inner": dataclasses.replace(PRODUCTS, positions=3 + RECENT.positions)}
            ),
            {},
            "Received: 3 behaviours, position 3",
        ),
        (
            EXPLANATION,
            {"items": {"id": ["b"]}},
            "The first column of `items` must be an id of the candidates, one of ['item_id', 'price']. Received: 'id'",
        ),
        (EXPLANATION, {"items": {"item_id": [5, 6, "5"]}}, "`items['item_id']` must hold each id once. Twice: '5'"),
        (EXPLANATION, {"items": {"item_id": [5], "title": []}}, "`items['title']` must have 1 values. Received: 0"),
    ],
    ids=[
        "several requests",
        "candidates",
        "history",
        "positions",
        "positions of another unit",
        "items without an id",
        "items twice",
        "items without a title",
    ],
)
def test_page_refuses_what_does_not_fit(explanation: Explanation, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        page(explanation, **changes)


def test_check_page_path(tmp_path: Path) -> None:
    check_page_path(tmp_path / "out.html")
    check_page_path(Path("out.html"))
    with pytest.raises(ValueError, match=re.escape(f"needs the name of a file. Received a folder: {tmp_path}")):
        check_page_path(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"there is no folder {tmp_path / 'no'}")):
        check_page_path(tmp_path / "no" / "out.html")


def test_write_page_replaces_a_page(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    for text in ("first", "second"):
        write_page(path, text)
        assert path.read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.html"]


def test_write_page_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "new \ud800")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.html"]


def test_write_page_follows_no_link_that_others_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write into the folder must not choose what is overwritten by guessing a temporary name."""
    precious, folder = tmp_path / "precious", tmp_path / "shared"
    precious.write_text("before")
    folder.mkdir()
    (folder / f".out.html.{os.getpid()}.tmp").symlink_to(precious)
    temporary: list[str] = []
    replace = os.replace

    def watched(source: str, target: Path) -> None:
        temporary.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for text in ("first", "second"):
        write_page(folder / "out.html", text)
        assert (folder / "out.html").read_text() == text
    assert precious.read_text() == "before"
    assert len({*temporary}) == 2
    assert {Path(path).parent for path in temporary} == {folder}
    # The page holds a request, ids included.
    assert (folder / "out.html").stat().st_mode & 0o777 == 0o600


# On the command line

# Answered by the model of conftest.py: item c is in the history with ratings 5 and 2, item a with 4.
REQUEST: dict[str, Any] = {
    "user": {"user_id": 8},
    "context": {"hour": 20},
    "history": {"item_id": ["c", "a", "c"], "category_id": [3, 1, 3], "rating": [5, 4, 2]},
    "candidates": {"item_id": ["a", "b", "c"], "category_id": [1, 2, 3]},
}


@pytest.fixture
def explain(
    contract_servers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `explain` on a request; gives its exit code and what it printed."""

    def explain_(request: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        (tmp_path / "request.json").write_text(json.dumps(request))
        command = ["explain", "--target", contract_servers["string"], "--request", str(tmp_path / "request.json")]
        code = main([*command, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return explain_


def test_explain_html(explain: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    assert explain(REQUEST, "--html", str(path), "--top", "1") == (0, "", f"Wrote {path}\n")
    data = data_of(path.read_text())
    assert (data["model"], data["version"], data["numBehaviours"]) == ("eta", 7, 3)
    assert data["given"] == [["user_id", 8], ["hour", 20]]
    assert data["candidates"] == [["item_id", ["c", "a", "b"]], ["category_id", [3, 1, 2]]]
    assert data["scores"] == pytest.approx([8.208, 4.708, 0.208])
    assert data["units"][0]["retrieved"][0] == [[0, 0, 5.0], [2, 0, 2.0]]
    made = datetime.datetime.strptime(data["made"], "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=datetime.timezone.utc)
    assert abs((datetime.datetime.now(datetime.timezone.utc) - made).total_seconds()) < 60


def test_explain_html_with_names(explain: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    names, path = tmp_path / "items.csv", tmp_path / "out.html"
    names.write_text("item_id,title\na,Alien\nc,Cube\n")
    assert explain(REQUEST, "--html", str(path), "--item_names", str(names))[0] == 0
    assert data_of(path.read_text())["candidates"] == [
        ["item_id", ["c", "a", "b"]],
        ["title", ["Cube", "Alien", ""]],
        ["category_id", [3, 1, 2]],
    ]
    path.unlink()
    names.write_text("item_id,title\na\n")
    code, _, err = explain(REQUEST, "--html", str(path), "--item_names", str(names))
    assert (code, err) == (1, f"error: {names}, line 2: must have 2 values. Received: ['a']\n")
    assert not path.exists()
    with pytest.raises(SystemExit, match="2"):
        explain(REQUEST, "--item_names", str(names))


def test_explain_html_and_json(explain: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    _, out, _ = explain(REQUEST, "--html", str(tmp_path / "out.html"), "--json")
    assert [entry["item_id"] for entry in json.loads(out)["rankings"][0]] == ["c", "a", "b"]
    assert (tmp_path / "out.html").is_file()


def test_explain_html_refuses_several_requests(explain: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    request = {
        "user": {"user_id": [8, 9]},
        "context": {"hour": [20, 0]},
        "history": {"item_id": [["c"], ["b"]], "category_id": [[3], [2]], "rating": [[5], [1]]},
        "candidates": {"item_id": [["a"], ["b"]], "category_id": [[1], [2]]},
    }
    code, out, err = explain(request, "--html", str(tmp_path / "out.html"))
    assert (code, out) == (1, "")
    assert err.startswith("error: A page shows one request")
    assert not (tmp_path / "out.html").exists()


def test_explain_html_needs_a_folder_before_it_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Nothing listens there, and the request does not exist: the folder is what it speaks of.
    path = tmp_path / "no" / "out.html"
    code = main(["explain", "--target", "127.0.0.1:1", "--request", "/nowhere.json", "--html", str(path)])
    assert code == 1
    assert capsys.readouterr().err == f"error: The page can't be written to {path}: there is no folder {path.parent}\n"


# In Chromium

# Ages of the behaviours, with their dates below them.
AGES = ["45 s\n2023-11-14 22:12", "3 d 4 h\n2023-11-11 18:12", "2 y\n2021-11-14 22:13"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
SECONDS = 30


class Sink(socketserver.ThreadingTCPServer):
    """A proxy that keeps the first line of every request, and fetches nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.received: list[str] = []

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.received.append(request.recv(4096).partition(b"\r\n")[0].decode())
        request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class Browser:
    """A headless Chromium, driven by the DevTools protocol over a pair of pipes."""

    def __init__(self, folder: Path, sink: Sink) -> None:
        from_browser, write_end = os.pipe()
        read_end, to_browser = os.pipe()
        self.events: list[dict[str, Any]] = []
        self._from, self._to, self._buffer, self._last_id = from_browser, to_browser, b"", 0
        command = [
            *("bash", "-c", f'exec "$@" 3<&{read_end} 4>&{write_end}', "bash", str(CHROMIUM)),
            *("--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-gpu"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            # What Chromium itself asks for goes nowhere.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        self.process = subprocess.Popen(
            command, pass_fds=(read_end, write_end), stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(read_end)
        os.close(write_end)
        self._session: str | None = None
        # A context of its own has a proxy of its own, so that the sink hears the page and not Chromium itself.
        proxy = {"proxyServer": f"127.0.0.1:{sink.server_address[1]}", "proxyBypassList": "<-loopback>"}
        context = self.call("Target.createBrowserContext", **proxy)["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._from)
        os.close(self._to)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._read(lambda received: received.get("id") == self._last_id)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while True:
            text, found, rest = self._buffer.partition(b"\0")
            if found:
                self._buffer = rest
                message = json.loads(text)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    return message
            else:
                readable, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
                chunk = os.read(self._from, 65536) if readable else b""
                assert chunk, "Chromium has ended, or has not answered"
                self._buffer += chunk

    def open(self, path: Path, *, width: int = 1280, height: int = 800) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self._read(lambda message: message.get("method") == "Page.loadEventFired")

    def get(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """What can be seen of every element that can be seen."""
        elements = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.get(f"{elements}.filter((each) => each.checkVisibility()).map((each) => each.innerText.trim())")

    def rows(self, table: str) -> list[list[str]]:
        """The cells of the body of a table, from top to bottom."""
        rows = f"[...document.getElementById({json.dumps(table)}).tBodies[0].rows]"
        return self.get(f"{rows}.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))")

    def click(self, table: str, text: str) -> None:
        """Clicks where the first heading or cell with that text is."""
        cells = f"[...document.getElementById({json.dumps(table)}).querySelectorAll('th, td')]"
        box = self.get(
            f"(() => {{ const cell = {cells}.find((each) => each.innerText.trim() === {json.dumps(text)});"
            "cell.scrollIntoView({ block: 'center' }); const { x, y, width, height } = cell.getBoundingClientRect();"
            "return { x: x + width / 2, y: y + height / 2 }; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowUp": 38, "ArrowDown": 40}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    @property
    def requested(self) -> list[str]:
        """What the page asked for since it was opened."""
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    @property
    def problems(self) -> list[str]:
        """What the console says: errors, exceptions, what the policy refused."""
        return [
            json.dumps(event["params"])
            for event in self.events
            if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        ]


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def browser(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"), sink)
    yield browser
    browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """Opens a page, which must not make the console say anything."""

    def show_(html: str, **size: int) -> Browser:
        write_page(tmp_path / "page.html", html)
        browser.open(tmp_path / "page.html", **size)
        assert browser.problems == []
        return browser

    return show_


@needs_chromium
def test_page_renders(show: Callable[..., Browser]) -> None:
    browser = show(page())
    assert browser.get("document.title") == "Ranking by eta, version 7"
    assert browser.texts("h1") == ["Ranking by eta"]
    assert [fact.split("\n") for fact in browser.texts("#facts > div")] == [
        ["version", "7"],
        ["candidates", "4"],
        ["behaviours", "3"],
        ["made", "2026-03-01 12:05:09 UTC"],
        ["user_id", "5"],
        ["timestamp", f"2023-11-14 22:13 UTC ({NOW})"],
        ["hour", "20"],
    ]
    assert browser.texts("#candidates th") == ["rank", "score", "item_id", "price"]
    assert browser.rows("candidates") == [
        ["1", "0.5000", "b", "10"],
        ["2", "0.2500", "c", "100"],
        ["3", "0.2500", "d", "1"],
        ["4", "0.1250", "a", "9"],
    ]
    # The best candidate is selected. Its behaviours, the heaviest first.
    assert browser.texts("#selected") == ["item_id b"]
    assert "2 of 3 behaviours" in browser.texts("#selected-facts")[0]
    assert browser.texts("#behaviours th") == ["position", "weight", "distance", "age", "item_id", "rating"]
    assert browser.rows("behaviours") == [
        ["2", "0.750", "8", AGES[2], "y", "2"],
        ["0", "0.250", "0", AGES[0], "b", "5"],
    ]
    assert browser.texts("#behaviours td.same") == ["b"]
    assert browser.texts(".empty") == []
    assert browser.texts(".ends span")[1:] == ["most recent, 45 s ago", "oldest, 2 y ago"]


@needs_chromium
def test_bars_are_as_long_as_what_they_stand_for(show: Callable[..., Browser]) -> None:
    browser = show(page())

    def widths(selector: str) -> list[float]:
        bars = f"[...document.querySelectorAll('{selector}')]"
        width = "fill.getBoundingClientRect().width / fill.parentElement.getBoundingClientRect().width"
        return browser.get(f"{bars}.map((fill) => {width})")

    assert widths("#candidates .score .fill") == pytest.approx([1, 0.5, 0.5, 0.25], abs=0.01)
    # The largest distance in the request is 8; the largest weight 1, that of another candidate.
    assert widths("#behaviours .retrieval .fill") == pytest.approx([1, 0], abs=0.01)
    assert widths("#behaviours .weight .fill") == pytest.approx([0.75, 0.25], abs=0.01)
    ticks = "[...document.querySelectorAll('#ticks i')].map(({ style }) => [style.left, style.height])"
    assert browser.get(ticks) == [["0%", "25%"], ["100%", "75%"]]
    one = np.ones((1, 1), int)
    alone = Explanation(np.ones(1, np.float32), 7, 0 * one, one.astype(np.float32))
    browser = show(page(alone, candidates={"item_id": [3]}, history={"item_id": [3]}))
    assert browser.get(ticks) == [["0%", "100%"]]


@needs_chromium
def test_clicks_on_headings_sort(show: Callable[..., Browser]) -> None:
    browser = show(page())

    def sorted_by(heading: str) -> tuple[str, str | None]:
        browser.click("candidates", heading)
        directions = browser.get("[...document.querySelectorAll('#candidates th')].map((each) => each.ariaSort)")
        assert sum(direction is not None for direction in directions) == 1
        order = "".join(row[2] for row in browser.rows("candidates"))
        return order, directions[browser.texts("#candidates th").index(heading)]

    assert sorted_by("item_id") == ("abcd", "ascending")
    assert sorted_by("item_id") == ("dcba", "descending")
    assert sorted_by("price") == ("dabc", "ascending")  # 1, 9, 10, 100: as numbers
    assert sorted_by("price") == ("cbad", "descending")
    assert sorted_by("score") == ("bcda", "descending")  # the largest first; equals stay in order of rank
    assert sorted_by("score") == ("acdb", "ascending")
    assert sorted_by("rank") == ("bcda", "ascending")
    browser.click("behaviours", "age")
    assert [row[3] for row in browser.rows("behaviours")] == [AGES[0], AGES[2]]


@needs_chromium
def test_ids_beyond_a_double_sort_as_numbers(show: Callable[..., Browser]) -> None:
    ids = [2**62 + 1, 2**62, 2**61, 9]
    browser = show(page(candidates={"item_id": ids}))
    browser.click("candidates", "item_id")
    assert [row[2] for row in browser.rows("candidates")] == list(map(str, sorted(ids)))


@needs_chromium
def test_click_selects_a_candidate(show: Callable[..., Browser]) -> None:
    browser = show(page())
    browser.click("candidates", "item_id")
    browser.click("candidates", "c")
    assert browser.texts("#candidates tr[aria-selected=true]")[0].split("\t")[2].strip() == "c"
    assert browser.texts("#selected") == ["item_id c"]
    assert browser.rows("behaviours") == [
        ["2", "0.625", "4", AGES[2], "y", "2"],
        ["1", "0.375", "2", AGES[1], "x", "4"],
    ]
    browser.click("candidates", "a")
    assert browser.texts("#selected") == ["item_id a"]
    assert browser.texts("#detail .empty") == ["No behaviour was retrieved for this candidate."]
    assert browser.get("document.getElementById('behaviours').checkVisibility()") is False


@needs_chromium
def test_choosing_another_unit(show: Callable[..., Browser]) -> None:
    """Its score has its own name, its own scale and its own digits; the candidate stays selected."""
    assert show(page()).texts("#choice") == []
    browser = show(page(SEVERAL))
    assert browser.get("[...document.getElementById('unit').options].map(({ text }) => text)") == [
        "the last",
        "recent_interest",
        "inner",
    ]

    def choose(index: int) -> list[list[str]]:
        browser.get(
            f"(() => {{ const unit = document.getElementById('unit'); unit.selectedIndex = {index};"
            "unit.dispatchEvent(new Event('change')); })()"
        )
        return browser.rows("behaviours")

    browser.click("candidates", "c")
    assert choose(1) == [["0", "1.000", AGES[0], "b", "5"]]
    assert browser.texts("#behaviours th") == ["position", "weight", "age", "item_id", "rating"]
    assert choose(2) == [["2", "1.000", "-0.2500", AGES[2], "y", "2"]]
    assert browser.texts("#behaviours th") == ["position", "weight", "inner_product", "age", "item_id", "rating"]
    assert browser.texts("#selected") == ["item_id c"]
    browser.click("candidates", "b")
    assert browser.rows("behaviours") == [
        ["0", "0.750", "-0.1250", AGES[0], "b", "5"],
        ["1", "0.250", "0.5000", AGES[1], "x", "4"],
    ]
    fills = "[...document.querySelectorAll('#behaviours .retrieval .fill')].map(({ style }) => style.width)"
    assert browser.get(fills) == ["0%", "100%"]
    assert choose(0) == [["2", "0.750", "8", AGES[2], "y", "2"], ["0", "0.250", "0", AGES[0], "b", "5"]]


@needs_chromium
def test_keyboard_sorts_and_selects(show: Callable[..., Browser]) -> None:
    browser = show(page())
    for _ in range(3):
        browser.press("Tab")
    browser.press("Enter")  # on the third heading, item_id
    assert [row[2] for row in browser.rows("candidates")] == ["a", "b", "c", "d"]
    for _ in range(2):
        browser.press("Tab")  # over price to the selected row
    selected = []
    for key in ("ArrowDown", "ArrowUp", "Home", "ArrowUp", "End", "ArrowDown"):
        browser.press(key)
        selected += browser.texts("#selected")
        assert browser.get("document.activeElement.ariaSelected") == "true"
    assert [text.split()[1] for text in selected] == ["c", "b", "a", "a", "d", "d"]


@needs_chromium
@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3_599, "59 min 59 s"),
        (86_400 + 59, "1 d"),
        (31_536_000 + 86_400 * 364 + 86_399, "1 y 364 d"),
        (-3_725, "\u22121 h 2 min"),
    ],
)
def test_ages_read_well(show: Callable[..., Browser], seconds: int, text: str) -> None:
    history = HISTORY | {"timestamp": [NOW - seconds, NOW, NOW]}
    rows = show(page(history=history)).rows("behaviours")
    assert next(row[3] for row in rows if row[0] == "0").split("\n")[0] == text


@needs_chromium
def test_request_without_candidates_or_behaviours(show: Callable[..., Browser]) -> None:
    none = np.zeros((0, 2))
    nothing = Explanation(np.zeros(0, np.float32), 7, none.astype(int), none)
    browser = show(page(nothing, candidates={"item_id": []}, history={}, context=None))
    assert browser.texts("p.empty") == ["The request had no candidates."]
    assert browser.get("document.getElementById('detail').checkVisibility()") is False
    alone = Explanation(np.ones(1, np.float32), 7, np.full((1, 2), -1), np.zeros((1, 2)))
    browser = show(page(alone, candidates={"item_id": [3]}, history={"item_id": [], "timestamp": []}))
    assert browser.rows("candidates") == [["1", "1.000", "3"]]
    assert browser.texts("#detail .empty") == ["No behaviour was retrieved for this candidate."]


@needs_chromium
def test_scores_that_are_not_numbers_come_last(show: Callable[..., Browser]) -> None:
    scores = np.array([np.nan, 0.5, np.nan, 0.25], np.float32)
    browser = show(page(dataclasses.replace(EXPLANATION, probability=scores)))
    assert [row[1:3] for row in browser.rows("candidates")] == [
        ["0.5000", "b"],
        ["0.2500", "d"],
        ["NaN", "a"],
        ["NaN", "c"],
    ]
    browser.click("candidates", "score")
    assert [row[2] for row in browser.rows("candidates")] == ["b", "d", "a", "c"]


@needs_chromium
def test_hostile_text_is_shown_as_text(show: Callable[..., Browser]) -> None:
    browser = show(
        page(
            candidates={HOSTILE: [HOSTILE, "b", "c", "d"], "__proto__": [1, 2, 3, 4]},
            history={"item_id": [HOSTILE] * 3, "constructor": [HOSTILE] * 3},
            user={HOSTILE: HOSTILE},
            model_name=HOSTILE,
        )
    )
    browser.click("candidates", HOSTILE)
    browser.click("candidates", "c")
    assert browser.texts("h1") == [f"Ranking by {HOSTILE}"]
    assert browser.texts("#candidates th") == ["rank", "score", HOSTILE, "__proto__"]
    assert HOSTILE in [cell for row in browser.rows("behaviours") for cell in row]
    assert browser.get("document.querySelectorAll('img').length") == 0
    assert browser.problems == []


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_window(show: Callable[..., Browser], width: int) -> None:
    """Wide tables and long texts scroll in their own box; the page itself does not move sideways."""
    candidates = CANDIDATES | {"title": ["long " * 30, "unbroken" * 30, "c", "d"]}
    items = {"item_id": ["b", "y", "x"], "name": ["name " * 9] * 3, "genres": ["a|b|c"] * 3}
    browser = show(page(candidates=candidates, items=items, model_name="m" * 200), width=width)
    assert browser.get("document.documentElement.scrollWidth") <= width
    boxes = browser.get(
        "[...document.querySelectorAll('section')].map((each) => each.getBoundingClientRect())"
        ".map(({ left, top, right, height }) => ({ left, top, right, height }))"
    )
    assert all(box["left"] >= 0 and box["right"] <= width and box["height"] > 100 for box in boxes)
    one_below_the_other = boxes[1]["top"] > boxes[0]["top"]
    assert one_below_the_other == (width == 390)


@needs_chromium
def test_colours_follow_the_reader(show: Callable[..., Browser]) -> None:
    """Text stands out from its ground by 4.5 to 1, light and dark (WCAG 2.2, 1.4.3)."""
    browser = show(page())

    def luminance(css: str) -> float:
        channels = [int(number) / 255 for number in re.findall(r"\d+", css)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    grounds = {}
    try:
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.call("Emulation.setEmulatedMedia", features=[feature])
            for selector, on in (
                ("h1", "body"),
                ("#facts dt", "body"),
                ("#behaviours td", "section"),
                ("#behaviours td.same", "section"),
                (".note", "section"),
                ("#candidates tr[aria-selected=true] td", "#candidates tr[aria-selected=true]"),
            ):
                style = "getComputedStyle(document.querySelector('{}'))"
                text = luminance(browser.get(style.format(selector) + ".color"))
                ground = luminance(browser.get(style.format(on) + ".backgroundColor"))
                contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
                assert contrast >= 4.5, (scheme, selector, contrast)
                grounds[scheme, on] = ground
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])
    assert grounds["light", "section"] > 0.9
    assert grounds["dark", "section"] < 0.1


PROBE = '<img src="http://example.com/probe"><link rel="stylesheet" href="http://127.0.0.1:8123/style">'


def visited(browser: Browser, sink: Sink, path: Path, html: str) -> list[str]:
    """What reaches the network while a page is opened and used."""
    sink.received.clear()
    path.write_text(html)
    browser.open(path)
    for text in ("item_id", "score", "c"):
        browser.click("candidates", text)
    # A page that may ask for something has asked by now: a request of our own is through.
    browser.get("new Promise((done) => setTimeout(done, 300))")
    return list(sink.received)


@needs_chromium
def test_no_request_leaves_the_page(browser: Browser, sink: Sink, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert visited(browser, sink, path, page()) == []
    assert browser.requested == [path.as_uri()]
    assert browser.problems == []


@needs_chromium
def test_no_request_leaves_even_a_page_that_makes_some(browser: Browser, sink: Sink, tmp_path: Path) -> None:
    """The policy stops requests, and scripts that are not the page's own; without it the same page makes them."""
    path = tmp_path / "page.html"
    script = "<script>fetch('https://example.com/script').catch(() => 0)</script>"
    probing = page().replace("</body>", f"{PROBE}{script}</body>")
    assert visited(browser, sink, path, probing) == []
    assert len(browser.problems) == 3
    assert all("Content Security Policy" in problem for problem in browser.problems)

    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", probing)
    received = visited(browser, sink, path, without_policy)
    assert sorted(received) == [
        "CONNECT example.com:443 HTTP/1.1",
        "GET http://127.0.0.1:8123/style HTTP/1.1",
        "GET http://example.com/probe HTTP/1.1",
    ]
    assert len(browser.requested) == 4
