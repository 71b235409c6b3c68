"""Requests of the judge to a real HTTP server: what they survive, how long they wait, and when they end."""

import math
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluate.judge import JudgeConfig, Judged, judge, messages
from pipeline.evaluate.judge_client import LONGEST_BODY_BYTES, Endpoint, EndpointConfig, reply_model, retry_after_s
from pipeline.evaluate.judge_store import ReplyStore
from pipeline.evaluate.judge_verdict import Verdict
from tests import judge_server as does
from tests.judge_server import Fault, JudgeServer
from tests.pipeline.judging import CASES, asked, config, verdicts

TWICE: dict[str, list[Fault]] = {
    "429": [does.body(b"slow down", 429)] * 2,
    "429 with a date": [does.body(b"", 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")] * 2,
    "408 and 425": [does.body(b"", 408), does.body(b"", 425)],
    "500": [does.body(b"oops", 500), does.body(b"<html>", 503)],
    "garbage": [does.body(b"\xff\x00 not json"), does.body(b"[" * 100_000)],
    "json that is no completion": [does.body(b'{"choices": []}'), does.body(b'{"choices": [{"message": {"content": null}}]}')],
    "closed connection": [does.close, does.close],
    "body cut short": [does.cut, does.cut],
    "endless body": [does.body(b" " * LONGEST_BODY_BYTES + does.completion("{'pred': 'yes', 'score': 5}"))] * 2,
    "no verdict": [does.says("I would rather not."), does.says({"pred": "yes"})],
}


@pytest.mark.parametrize("fault", TWICE)
def test_a_fault_that_passes_costs_requests_and_nothing_else(server: JudgeServer, tmp_path: Path, fault: str) -> None:
    """Two faults, then a verdict: the third request is the last, and other questions are asked once."""
    server.faults["three"] = list(TWICE[fault])
    judged = asked(server, (str(tmp_path), {}))
    assert judged.failed == {}
    assert server.asked == {"Yes": 1, "three": 3, "dog": 1}
    assert judged.requests == 5
    assert verdicts(judged)["three"] == Verdict(correct=False, score=1)
    assert len(judged.replies[CASES[1]]["bodies"]) == (2 if fault == "no verdict" else 1)


@pytest.mark.parametrize("fault", [does.hang, does.drip])
def test_a_server_that_never_ends_its_reply_is_a_timeout(server: JudgeServer, tmp_path: Path, fault: Fault) -> None:
    """Whether it sends nothing or a byte now and then, the wait for one request is bounded."""
    server.faults["three"] = [fault]
    judged = asked(server, (str(tmp_path), {}), timeout_s=5.0)
    assert judged.failed == {}
    assert server.asked["three"] == 2
    server.wait_for_the_end()
    assert server.abandoned == (fault is does.hang)


def test_a_question_that_keeps_failing_is_named_and_asked_again_next_time(server: JudgeServer, tmp_path: Path) -> None:
    """Tries are bounded; no verdict is made up; the next run asks for this one alone."""
    server.faults["three"] = [does.body(b"", 500)] * 3
    judged = asked(server, (str(tmp_path), {}))
    assert judged.failed == {CASES[1]: "HTTP 500"}
    assert CASES[1] not in judged.replies
    again = asked(server, (str(tmp_path), {}))
    assert (again.requests, again.reused, again.failed) == (1, 2, {})


def test_a_request_the_server_refuses_is_not_repeated(server: JudgeServer, tmp_path: Path) -> None:
    """400 is this question's fault, as a content filter's; the others are judged."""
    server.faults["three"] = [does.body(b"filtered", 400)]
    judged = asked(server, (str(tmp_path), {}))
    assert judged.failed == {CASES[1]: "HTTP 400"}
    assert server.asked["three"] == 1
    assert judged.replies.keys() == {CASES[0], CASES[2]}


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 301, 302, 303, 307, 308])
def test_a_fault_of_every_request_stops_the_run(server: JudgeServer, tmp_path: Path, status: int) -> None:
    """It is the operator's to mend. A redirect is not followed: the key would go to another host."""
    server.always = does.body(b"no such model", status, Location="http://127.0.0.1:9/v1/chat/completions")
    many = [(f"question {i}", "a", f"p{i}") for i in range(200)]
    with pytest.raises(ConfigError, match=f"HTTP {status}"):
        asked(server, (str(tmp_path), {}), many, key="secret-key")
    assert len(server.requests) < 20


def test_an_endpoint_that_is_down_is_given_up(server: JudgeServer, tmp_path: Path) -> None:
    """After a long row of failures the rest is not asked; what failed and what was not asked are told apart."""
    server.always = does.body(b"", 500)
    many = [(f"question {i}", "a", f"p{i}") for i in range(300)]
    judged = asked(server, (str(tmp_path), {}), many, tries=1)
    assert judged.gave_up
    assert len(judged.failed) == 300
    assert 12 <= list(judged.failed.values()).count("HTTP 500") <= 30
    assert set(judged.failed.values()) == {"HTTP 500", "not asked"}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_endpoint_is_down_after_eight_failures_in_a_row_and_twice_as_many_as_are_in_flight(
    server: JudgeServer, tmp_path: Path, concurrency: int
) -> None:
    """The server answers a request when what came before it has been looked at; those in flight by then still count."""
    server.always = does.body(b"", 500)
    server.let(1)
    how, seen = config(server, concurrency, tries=1), Counter[str]()
    many = [(f"question {i}", "a", f"p{i}") for i in range(60)]

    def said(more: Counter[str]) -> None:
        seen.update(more)
        server.let(seen["without reply"] + 1 if seen["without reply"] < 8 + 2 * concurrency else math.inf)

    judged = judge(many, how, ReplyStore(str(tmp_path), how.spec()), said=said)
    assert judged.gave_up
    asked = list(judged.failed.values()).count("HTTP 500")
    assert 8 + 2 * concurrency <= asked <= 8 + 3 * concurrency
    assert seen == {"known": 0, "without reply": 60}


def test_failures_between_replies_are_no_endpoint_that_is_down(server: JudgeServer, tmp_path: Path) -> None:
    """However many they are: only a row of them ends a run."""
    many = [(f"question {i}", "a", f"p{i}") for i in range(40)]
    server.faults = {f"p{i}": [does.body(b"filtered", 400)] for i in range(0, 40, 2)}
    judged = asked(server, (str(tmp_path), {}), many, concurrency=1)
    assert not judged.gave_up
    assert (len(judged.replies), set(judged.failed.values())) == (20, {"HTTP 400"})


class Hurried(threading.Event):
    """Takes down how long somebody would wait, and lets nobody wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


@pytest.mark.parametrize(("header", "pause"), [("7", 7.0), ("3600", 60.0), ("0", 0.0)])
def test_a_pause_is_as_long_as_the_server_asks_for_up_to_a_minute(server: JudgeServer, header: str, pause: float) -> None:
    """Nobody waits after the last try."""
    server.always = does.body(b"", 429, Retry_After=header)
    stop = Hurried()
    found = Endpoint(config(server, tries=3).endpoint, stop).ask({"messages": messages(CASES[0])}, bool)
    assert (found.reason, found.requests, stop.waits) == ("HTTP 429", 3, [pause] * 2)


def test_without_a_word_of_the_server_each_pause_is_about_twice_the_last(server: JudgeServer) -> None:
    """Half of it to one and a half, and no base above a minute."""
    server.always = does.body(b"", 503)
    stop = Hurried()
    Endpoint(config(server, tries=12, pause_s=1.0).endpoint, stop).ask({"messages": messages(CASES[0])}, bool)
    bases = [min(60.0, 2.0**at) for at in range(11)]
    assert all(0.5 * base <= wait <= 1.5 * base for base, wait in zip(bases, stop.waits, strict=True))
    assert len({wait / base for base, wait in zip(bases, stop.waits, strict=True)}) > 1


def test_nobody_listens_and_every_question_says_so(tmp_path: Path) -> None:
    """A refused connection is a fault like others: bounded tries, then named."""
    endpoint = EndpointConfig(url="http://127.0.0.1:9/v1", tries=2, pause_s=0)
    how = JudgeConfig(model="m", endpoint=endpoint)
    judged = judge(CASES, how, ReplyStore(str(tmp_path), how.spec()))
    assert set(judged.failed.values()) == {"ConnectionRefusedError"}
    assert judged.requests == 6


def test_no_more_requests_are_in_flight_than_allowed(server: JudgeServer, tmp_path: Path) -> None:
    """With three allowed and the server holding its answers, three arrive and no fourth."""
    server.let(0)
    many = [(f"question {i}", "a", f"p{i}") for i in range(40)]
    run = threading.Thread(target=asked, args=(server, (str(tmp_path), {}), many), kwargs={"concurrency": 3})
    run.start()
    server.wait_for(3)
    server.let()
    run.join()
    assert len(server.requests) == 40
    assert server.most_at_once == 3


def test_a_stop_keeps_what_came_and_asks_for_no_more(server: JudgeServer, tmp_path: Path) -> None:
    """Replies in flight are kept; the rest is not asked and is there for the next run."""
    stop = threading.Event()
    server.let(0)
    many = [(f"question {i}", "a", f"p{i}") for i in range(40)]
    how = config(server)
    found: list[Judged] = []
    run = threading.Thread(target=lambda: found.append(judge(many, how, ReplyStore(str(tmp_path), how.spec()), stop)))
    run.start()
    server.wait_for(2)
    stop.set()
    server.let()
    run.join()
    assert len(server.requests) == 2
    assert len(found[0].replies) == 2
    assert set(found[0].failed.values()) == {"not asked"}
    assert not found[0].gave_up
    assert asked(server, (str(tmp_path), {}), many).requests == 38


def test_the_key_is_sent_and_never_stored_even_if_the_server_repeats_it(server: JudgeServer, tmp_path: Path) -> None:
    """Bodies are kept raw but for the key."""
    server.faults["Yes"] = [does.says("{'pred': 'yes', 'score': 4} for secret-key-123")]
    asked(server, (str(tmp_path), {}), key="secret-key-123")
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-key-123"}
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"for ***" in stored
    assert b"secret-key-123" not in stored


def test_an_error_that_repeats_the_key_is_shown_without_it(server: JudgeServer, tmp_path: Path) -> None:
    """Some servers quote the request in their errors."""
    server.always = does.body(b"model not found for Bearer secret-key-123", 404)
    with pytest.raises(ConfigError, match=r"model not found for Bearer \*\*\*"):
        asked(server, (str(tmp_path), {}), key="secret-key-123")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_and_what_the_server_says_of_it_is_not(server: JudgeServer, status: int) -> None:
    """Servers repeat parts of a key."""
    server.always = does.body(b"wrong key: secr****123", status)
    with pytest.raises(ConfigError, match=f"answered HTTP {status}: check the API key$"):
        Endpoint(config(server).endpoint).ask({"messages": messages(CASES[0])}, bool)


@pytest.mark.parametrize(
    ("said", "shown"), [(b"no\n such   model", "no such model"), (b"", "Not Found"), (b"x" * 999, "x" * 200)]
)
def test_what_a_server_says_is_one_short_line(server: JudgeServer, said: bytes, shown: str) -> None:
    """Or the words of its status, where it says nothing."""
    server.always = does.body(said, 404)
    with pytest.raises(ConfigError, match=f"answered HTTP 404: {shown}$"):
        Endpoint(config(server).endpoint).ask({"messages": messages(CASES[0])}, bool)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), (None, None)]
)
def test_a_server_may_say_how_long_to_wait(header: str | None, seconds: float | None) -> None:
    """Seconds or a date; anything else leaves our own pause."""
    assert retry_after_s(header) == seconds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "host:8000"}, "http:// or https://"),
        ({"url": "http://user:pw@host/v1"}, "must not hold a user"),
        ({"url": "http://h/v1", "key": "a\nb"}, "printable ASCII"),
        ({"url": "http://h/v1", "key": "schl\u00fcssel"}, "printable ASCII"),
        ({"url": "http://h/v1", "key": "two words"}, "without blanks"),
        ({"url": "http://h/v1", "timeout_s": 0}, "must be positive"),
        ({"url": "http://h/v1", "pause_s": -1}, "not negative"),
        ({"url": "http://h/v1", "timeout_s": float("inf")}, "must be positive"),
        ({"url": "http://h/v1", "pause_s": float("nan")}, "not negative"),
        ({"url": "http://h/v1", "tries": 0}, "must be positive"),
    ],
)
def test_a_wrong_setting_of_the_endpoint_is_refused_without_repeating_secrets(wrong: dict[str, Any], message: str) -> None:
    """Before anything is sent, and in one sentence."""
    with pytest.raises(ConfigError, match=message) as caught:
        EndpointConfig(**wrong)
    assert "pw" not in str(caught.value)
    assert "a\nb" not in str(caught.value)


def test_an_endpoint_that_takes_no_connection_is_a_timeout() -> None:
    """Its queue is full: nothing is refused and nothing is heard."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        endpoint = EndpointConfig(url=f"http://127.0.0.1:{full.getsockname()[1]}/v1", tries=1, timeout_s=0.3)
        found = Endpoint(endpoint).ask({"messages": messages(CASES[0])}, bool)
    assert (found.reason, found.requests) == ("timeout", 1)


def test_a_model_without_a_name_is_none() -> None:
    """Some servers put something else there, or nothing."""
    assert [reply_model(body) for body in ('{"model": "m-1"}', '{"model": 7}', "{}")] == ["m-1", None, None]


def test_the_address_may_be_given_in_full() -> None:
    """Both the base and the route itself work."""
    assert Endpoint(EndpointConfig(url="http://h/judges/a@b")).address == "http://h/judges/a@b/chat/completions"
    given = ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"]
    assert {Endpoint(EndpointConfig(url=url)).address for url in given} == {"http://h/v1/chat/completions"}
