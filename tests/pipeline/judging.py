"""Three cases for a judge, and how tests ask about them."""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluate.judge import JudgeConfig, Judged, judge, verdict_of
from pipeline.evaluate.judge_client import EndpointConfig
from pipeline.evaluate.judge_store import Case, ReplyStore
from pipeline.evaluate.judge_verdict import Verdict
from tests.judge_server import JudgeServer

CASES: list[Case] = [("is it red?", "yes", "Yes"), ("how many?", "2", "three"), ("what is it?", "dog", "dog")]


def config(server: JudgeServer, concurrency: int = 2, request: Mapping[str, Any] | None = None, **changes: Any) -> JudgeConfig:
    patience = {"tries": 3, "timeout_s": 30.0, "pause_s": 0.01, **changes}
    endpoint = EndpointConfig(url=server.url, **patience)
    return JudgeConfig(model="some-judge", endpoint=endpoint, concurrency=concurrency, request=request or {})


def asked(server: JudgeServer, place: tuple[str, dict[str, Any]], cases: list[Case] = CASES, **changes: Any) -> Judged:
    how = config(server, **changes)
    return judge(cases, how, ReplyStore(place[0], how.spec(), place[1]))


def verdicts(judged: Judged) -> dict[str, Verdict | None]:
    return {case[2]: verdict_of(reply) for case, reply in judged.replies.items()}
