"""The judge against a real HTTP server: what it asks, what it keeps and what it counts."""

import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, StoreError
from pipeline.evaluate.judge import SYSTEM, TASK, JudgeConfig, Judged, judge, verdict_of
from pipeline.evaluate.judge_client import EndpointConfig
from pipeline.evaluate.judge_scores import judged_rows, summary
from pipeline.evaluate.judge_store import Case, ReplyStore
from pipeline.evaluate.judge_verdict import Verdict
from tests import judge_server as does
from tests.judge_server import JudgeServer
from tests.pipeline.judging import CASES, asked, config, verdicts


def test_each_case_is_asked_once_and_its_raw_reply_is_kept(server: JudgeServer, place: tuple[str, dict[str, Any]]) -> None:
    """Equal cases share one request; a second run asks nothing; the stored body is what the server sent."""
    first = asked(server, place, [*CASES, CASES[0]])
    assert (first.requests, first.reused, first.failed) == (3, 0, {})
    assert verdicts(first) == {
        "Yes": Verdict(correct=True, score=5),
        "three": Verdict(correct=False, score=1),
        "dog": Verdict(correct=True, score=5),
    }
    assert first.replies[CASES[0]]["bodies"] == [does.completion('{"pred": "yes", "score": 5}').decode()]
    second = asked(server, place)
    assert (second.requests, second.reused) == (0, 3)
    assert second.replies == first.replies
    assert len(server.requests) == 3


def test_a_run_says_what_it_knew_and_what_came_of_each_question(server: JudgeServer, tmp_path: Path) -> None:
    """As it goes, for whoever watches."""
    asked(server, (str(tmp_path), {}), CASES[:1])
    server.faults["three"] = [does.body(b"filtered", 400)]
    how, seen = config(server), Counter[str]()
    judge([*CASES, CASES[0]], how, ReplyStore(str(tmp_path), how.spec()), said=seen.update)
    assert seen == {"known": 1, "judged": 1, "without reply": 1}


@pytest.mark.parametrize(
    "other",
    [
        ("is it red?", "yes", "no"),
        ("is it red?", "no", "Yes"),
        ("is it blue?", "yes", "Yes"),
    ],
)
def test_another_question_reference_or_prediction_is_asked_anew(server: JudgeServer, tmp_path: Path, other: Case) -> None:
    """A reply belongs to all three of them."""
    asked(server, (str(tmp_path), {}), CASES[:1])
    assert asked(server, (str(tmp_path), {}), [other]).requests == 1


def test_another_model_wording_or_setting_is_asked_anew(server: JudgeServer, tmp_path: Path, monkeypatch: Any) -> None:
    """What a verdict depends on is in the fingerprint; patience and concurrency are not."""
    asked(server, (str(tmp_path), {}))
    assert asked(server, (str(tmp_path), {}), concurrency=1, tries=1).requests == 0
    assert asked(server, (str(tmp_path), {}), request={"max_tokens": 9}).requests == 3
    for name, text in (("SYSTEM", SYSTEM), ("TASK", TASK)):
        monkeypatch.setattr(f"pipeline.evaluate.judge.{name}", text + " Be kind.")
        assert asked(server, (str(tmp_path), {})).requests == 3
    monkeypatch.setattr("pipeline.evaluate.judge.PROMPT_VERSION", 99)
    assert asked(server, (str(tmp_path), {})).requests == 3


def test_the_request_is_a_chat_with_question_reference_and_prediction(server: JudgeServer, tmp_path: Path) -> None:
    """Model, temperature 0 and a limit are set; null removes a field, another value replaces it."""
    asked(server, (str(tmp_path), {}), [('say "x"\n{', "ja", "nein\n")], request={"temperature": None, "max_tokens": 64})
    sent = server.requests[0]
    assert {name: sent[name] for name in sent.keys() - {"messages"}} == {
        "path": "/v1/chat/completions",
        "model": "some-judge",
        "max_tokens": 64,
    }
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    shown = json.loads(sent["messages"][1]["content"].split("\n", 1)[1])
    assert shown == {"question": 'say "x"\n{', "reference": "ja", "answer": "nein\n"}
    assert config(server).settings() == {"model": "some-judge", "temperature": 0, "max_tokens": 256}


def test_replies_without_a_verdict_are_kept_all_of_them(server: JudgeServer, tmp_path: Path) -> None:
    """After the last try the raw replies are stored, have no verdict, and are not asked for again."""
    server.faults["dog"] = [does.says("hm"), does.says("{'pred': 'maybe', 'score': 3}"), does.says("{'pred': 'yes'}")]
    judged = asked(server, (str(tmp_path), {}))
    assert len(judged.replies[CASES[2]]["bodies"]) == 3
    assert verdicts(judged)["dog"] is None
    assert judged.failed == {}
    assert asked(server, (str(tmp_path), {})).requests == 0


def test_folding_leaves_one_file_with_every_reply(server: JudgeServer, place: tuple[str, dict[str, Any]]) -> None:
    """A run ends with one file of replies; an interrupted run's single files are read as well."""
    how = config(server)
    store = ReplyStore(place[0], how.spec(), place[1])
    for question, answer, prediction in CASES[:2]:
        reply = {"question": question, "answer": answer, "prediction": prediction, "bodies": ["{}"]}
        store.add(reply)
    assert len(store.fs.find(store.folder)) == 2
    assert judge(CASES, how, store).requests == 1
    store.fs.invalidate_cache()
    assert len(store.fs.find(store.folder)) == 1
    assert ReplyStore(place[0], how.spec(), place[1]).read().keys() == set(CASES)


def reply_of(case: Case, body: str = "{}") -> dict[str, Any]:
    question, answer, prediction = case
    return {"question": question, "answer": answer, "prediction": prediction, "bodies": [body]}


def test_folding_again_never_takes_away_what_it_wrote(tmp_path: Path) -> None:
    """A run was killed while it removed the single files: the next fold writes the same file, and leaves it there."""
    store = ReplyStore(str(tmp_path), {"kind": "judge"})
    for case in CASES[:2]:
        store.add(reply_of(case))
    store.fold()
    store.add(reply_of(CASES[0]))
    assert store.fold().keys() == store.read().keys() == set(CASES[:2])
    assert len(list(Path(store.folder).iterdir())) == 1


def test_two_replies_to_one_case_are_always_the_same_one(tmp_path: Path) -> None:
    """Two runs asked at once: the smaller one counts, before a fold and after it, whichever file is read first."""
    for at, bodies in enumerate((("a", "b"), ("b", "a"), ("1", "2"), ("c", "d"), ("e", "f"), ("x", "y"))):
        store = ReplyStore(str(tmp_path / str(at)), {"kind": "judge"})
        for body in bodies:
            store.add(reply_of(CASES[0], body))
        assert store.read()[CASES[0]]["bodies"] == [min(bodies)]
        assert store.fold()[CASES[0]]["bodies"] == store.read()[CASES[0]]["bodies"] == [min(bodies)]


def test_a_file_that_keeps_vanishing_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """It is looked for again, as another run may have folded it; a name without a file behind it stays one."""
    store = ReplyStore(str(tmp_path), {"kind": "judge"})
    store.add(reply_of(CASES[0]))
    (Path(store.folder) / f"{'0' * 64}.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="files are removed while they are read"):
        store.read()


class Overtaken(LocalFileSystem):
    """Another run folds the files just after they were listed."""

    cachable = False
    other: ReplyStore | None = None

    def find(self, path: str, **how: Any) -> Any:
        found = super().find(path, **how)
        other, self.other = self.other, None
        if other is not None:
            other.fold()
        return found


def test_files_that_another_run_folds_meanwhile_are_found_where_they_are_now(tmp_path: Path) -> None:
    """They are listed again."""
    store = ReplyStore(str(tmp_path), {"kind": "judge"})
    for case in CASES:
        store.add(reply_of(case))
    store.fs = Overtaken()
    store.fs.other = ReplyStore(str(tmp_path), {"kind": "judge"})
    assert store.read().keys() == set(CASES)
    assert len(list(Path(store.folder).iterdir())) == 1


def test_what_cannot_be_read_at_all_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not vanish."""
    monkeypatch.setattr("pipeline.storage.retry.FIRST_WAIT_S", 0.01)
    store = ReplyStore(str(tmp_path), {"kind": "judge"})
    store.add(reply_of(CASES[0]))
    around = Path(store.folder) / f"{'0' * 64}.jsonl"
    around.symlink_to(around)
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        store.read()


def test_replies_are_folded_into_the_same_file_whenever_they_came(tmp_path: Path) -> None:
    """All at once, or one after the other; nothing is no file."""
    names = set()
    for at, order in enumerate(permutations(CASES)):
        store = ReplyStore(str(tmp_path / str(at)), {"kind": "judge"})
        assert store.fold() == {}
        assert not Path(store.folder).exists()
        for case in order:
            store.add(reply_of(case))
            if at % 2:
                store.fold()
        store.fold()
        names |= {path.name for path in Path(store.folder).iterdir()}
    assert len(names) == 1


def test_the_last_body_of_a_reply_counts() -> None:
    """In its verdict, its words and the name of its model."""
    bodies = [does.completion(text).decode() for text in ("hm", '{"pred": "no", "score": 2}')]
    replies = {CASES[0]: {**reply_of(CASES[0]), "bodies": bodies}}
    table = pa.table({"question": ["is it red?"], "answer": ["yes"], "type": [None]})
    (row,) = judged_rows(table, ["Yes"], Judged(replies=replies, failed={}, reused=1))
    assert (row["status"], row["correct"], row["score"], row["reply"]) == ("ok", False, 2, '{"pred": "no", "score": 2}')


def test_questions_without_a_type_are_in_no_score_by_type() -> None:
    """Some data sets have types for a part of their questions."""
    rows = [
        {"question_id": str(at), "video_id": "v", "type": kind, "status": "ok", "correct": True, "score": 5, "model": "m"}
        for at, kind in enumerate(["color", None, "color"])
    ]
    found = summary(rows, 1)
    assert list(found["per_type"]) == ["color"]
    assert found["per_type"]["color"]["accuracy"]["asked"] == 2
    assert found["accuracy"]["asked"] == 3


def test_a_file_that_another_run_removed_is_removed(tmp_path: Path) -> None:
    """Two runs may fold at once."""
    store = ReplyStore(str(tmp_path), {"kind": "judge"})
    store._remove(f"{store.folder}/gone.jsonl")
    assert store.read() == {}


def test_a_reply_that_was_changed_on_storage_is_not_believed(server: JudgeServer, tmp_path: Path) -> None:
    """Files are named by their content; an edited verdict stops the run."""
    asked(server, (str(tmp_path), {}))
    path = next((tmp_path / "replies").rglob("*.jsonl"))
    path.write_text(path.read_text().replace("yes", "no ", 1))
    with pytest.raises(StoreError, match="changed after they were stored"):
        asked(server, (str(tmp_path), {}))


@pytest.mark.parametrize(
    ("text", "reason", "found"),
    [
        ("{'pred': 'yes', 'score': 4}", "length", Verdict(correct=True, score=4)),
        ("```json\n{'pred': 'yes', 'score': 4}\nbecause the two", "length", Verdict(correct=True, score=4)),
        ("I would begin with {'pred': 'yes', 'score': 4}, but then", "length", None),
        ("I would begin with {'pred': 'yes', 'score': 4}, but then", "stop", Verdict(correct=True, score=4)),
        ([{"type": "thinking", "text": "{'pred': 'no', 'score': 0}"}, {"type": "text", "text": "{'pred': 'yes', 'score': 4}"}],
         "stop", Verdict(correct=True, score=4)),
        ([], "stop", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_from_what_the_server_says_of_its_reply(text: Any, reason: str, found: Verdict | None) -> None:
    """Where it ended at the limit of tokens, an object behind other words may be a draft. Only parts that are text are read."""
    choice = {"message": {"content": text}, "finish_reason": reason}
    assert verdict_of({"bodies": [json.dumps({"choices": [choice]})]}) == found


@pytest.mark.parametrize(
    "wrong",
    [{"model": " "}, {"concurrency": 0}, *({"request": {name: 2}} for name in ("stream", "n", "messages", "model"))],
    ids=str,
)
def test_a_wrong_setting_of_the_judge_is_refused(wrong: dict[str, Any]) -> None:
    """Streams and several choices are not what we read."""
    with pytest.raises(ConfigError):
        JudgeConfig(**{"model": "m", "endpoint": EndpointConfig(url="http://h/v1"), **wrong})
