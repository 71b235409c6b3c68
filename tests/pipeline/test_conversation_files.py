"""Files of conversations become questions, turns and answers, whoever trains on them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.questions.datasets import dataset_of, join_videos, read_questions, with_history

HUMAN, GPT = {"from": "human", "value": "<video>\nwhat is it?"}, {"from": "gpt", "value": "red"}
USER, ASSISTANT = {"role": "user", "content": "<video>what is it?"}, {"role": "assistant", "content": "red"}
SHOWN = {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "what is it?"}]}
LINKED = {
    "role": "user",
    "content": [{"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "text", "text": "what is it?"}],
}
SAID = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
SYSTEM = {"role": "system", "content": "You are helpful."}


def read(folder: Path, value: Any, name: str = "q.json") -> list[dict[str, Any]]:
    (folder / name).write_text(json.dumps(value))
    return read_questions(str(folder / name)).to_pylist()


@pytest.mark.parametrize(
    "row",
    [
        {"video": "a.mp4", "conversations": [HUMAN, GPT]},
        {"video": ["a.mp4"], "conversations": [HUMAN, GPT]},
        {"video": {"path": "a.mp4", "bytes": None}, "conversations": [HUMAN, GPT]},
        {"videos": ["a.mp4"], "conversations": [HUMAN, GPT], "system": "You are helpful."},
        {"path": "a.mp4", "conversations": [HUMAN, GPT]},
        {"video_id": "a.mp4", "conversations": json.dumps([HUMAN, GPT])},
        {"videos": ["a.mp4"], "messages": [SYSTEM, USER, ASSISTANT]},
        {"messages": [SYSTEM, SHOWN, SAID]},
        {"messages": [LINKED, ASSISTANT]},
        {"Video": "a.mp4", "Messages": [USER, SAID]},
        [SYSTEM, SHOWN, SAID],
        {"video": "a.mp4", "conversations": [{"from": "user", "value": "what is it?"}, {"from": "assistant", "value": "red"}]},
    ],
)
@pytest.mark.parametrize("layout", ["one.json", "list.json", "lines.jsonl"])
def test_a_conversation_of_any_style_is_a_question_with_its_answer(tmp_path: Path, row: Any, layout: str) -> None:
    found = read(tmp_path, [row] if layout == "list.json" else row, layout)
    assert [(r["video_id"], r["question"], r["answer"], r["turn"]) for r in found] == [("a.mp4", "what is it?", "red", None)]


def test_a_conversation_in_parquet_is_read(tmp_path: Path) -> None:
    table = pa.table({"id": [1.0], "video": ["a.mp4"], "conversations": [[HUMAN, GPT]]})
    pq.write_table(table, tmp_path / "q.parquet")
    found = read_questions(str(tmp_path / "q.parquet"))
    assert found.select(["question_id", "question", "answer"]).to_pylist() == [
        {"question_id": "1", "question": "what is it?", "answer": "red"}
    ]
    assert dataset_of(found) == "plain"


def test_turns_of_a_conversation_are_counted_and_named_by_its_id(tmp_path: Path) -> None:
    """A conversation of one question has no turn and keeps its id."""
    more = [
        HUMAN,
        GPT,
        {"from": "human", "value": "and <image> then?"},
        {"from": "human", "value": "why?"},
        {"from": "gpt", "value": 3},
    ]
    found = read(tmp_path, [{"id": 7, "video": "a", "conversations": more}, {"id": 8, "video": "a", "conversations": [HUMAN]}])
    assert [(r["question_id"], r["turn"], r["question"], r["answer"]) for r in found] == [
        ("7:1", 1, "what is it?", "red"),
        ("7:2", 2, "and then?", None),
        ("7:3", 3, "why?", "3"),
        ("8", None, "what is it?", None),
    ]
    history = with_history(read_questions(str(tmp_path / "q.json")))["history"].to_pylist()
    assert len(set(history)) == 4
    assert history[3] is None


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("<image>\nwhat", "what"),
        ("what\n<video>", "what"),
        ("<video><video>\n\nwhat", "what"),
        ("<|vision_start|><|video_pad|><|vision_end|>what", "what"),
        ("in <Video> this", "in this"),
        ("a\n<image>\nb", "a\nb"),
        ("a  <b> c", "a  <b> c"),
        ("<video>", ""),
    ],
)
def test_placeholders_are_no_part_of_a_question(tmp_path: Path, text: str, asked: str) -> None:
    found = read(tmp_path, [{"video": "a", "conversations": [{"from": "human", "value": text}, GPT]}])
    assert [row["question"] for row in found] == [asked]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [HUMAN, GPT]}, "got no video"),
        ({"video": [], "conversations": [HUMAN, GPT]}, "got no video"),
        ({"video": " ", "conversations": [HUMAN, GPT]}, "got no video"),
        ({"videos": ["a", "b"], "conversations": [HUMAN, GPT]}, "got 2 videos"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": ["1.jpg", "2.jpg"]}]}]}, "got 2 videos"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "1.jpg"}]}]}, "got an image"),
        ({"video": True, "conversations": [HUMAN, GPT]}, "the boolean true"),
        ({"video": "a", "conversations": []}, "without a question"),
        ({"video": "a", "conversations": None}, "without a question"),
        ({"video": "a", "conversations": [GPT]}, "without a question in front of it"),
        ({"video": "a", "conversations": [HUMAN, GPT, GPT]}, "without a question in front of it"),
        ({"video": "a", "conversations": [HUMAN, {"from": "tool", "value": "x"}]}, "a message of 'tool'"),
        ({"video": "a", "conversations": [{"from": "human"}]}, "expected from and value"),
        ({"video": "a", "conversations": [{"value": "x"}]}, "expected from and value"),
        ({"video": "a", "conversations": [{"from": "human", "value": False}]}, "the boolean false"),
        ({"video": "a", "conversations": [{"from": "human", "value": "x\ud83d"}]}, "surrogate pair"),
        ({"video": "a", "conversations": [{"from": "human", "value": "x\0"}]}, "control character U+0000"),
        ({"video": "a", "conversations": {"from": "human", "value": "x"}}, "expected a list of messages"),
        ({"video": "a", "conversations": ["x"]}, "expected a list of messages"),
        ({"video": "a", "conversations": "[{"}, "no JSON"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    good = {"video": "good", "conversations": [HUMAN, GPT], "messages": [USER, ASSISTANT]}
    first = {name: value for name, value in good.items() if name == "video" or name in row}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, [first, row])
    assert "q.json: row 2, column " in str(caught.value)
    assert said in str(caught.value)


def test_two_conversations_of_several_turns_about_one_video_are_not_read_as_one(tmp_path: Path) -> None:
    talk = {"video": "a", "conversations": [HUMAN, GPT, HUMAN, GPT]}
    with pytest.raises(ConfigError, match="rows 1 and 3 are two conversations"):
        read(tmp_path, [talk, {**talk, "video": "b"}, talk])


def test_a_file_with_questions_of_its_own_is_no_file_of_conversations(tmp_path: Path) -> None:
    found = read(tmp_path, [{"video_id": "a", "question": "x", "messages": 3}])
    assert [row["question"] for row in found] == ["x"]


@pytest.mark.parametrize(
    ("name", "known", "store_id"),
    [
        ("a.mp4", {"a", "a.mp4"}, "a.mp4"),
        ("a.mp4", {"a"}, "a"),
        ("x/a.MP4", {"x/a", "a"}, "x/a"),
        ("file:///data/x/a.mp4", {"x/a", "a"}, "x/a"),
        ("/data/x/a.mp4", {"a"}, "a"),
        ("C:\\data\\a.mp4", {"a"}, "a"),
        ("data/a", {"a"}, None),
        ("a.b", {"a"}, None),
        ("a.mp4", {"x/a"}, None),
    ],
)
def test_a_path_of_a_video_file_is_joined_to_the_id_it_has_in_a_store(
    tmp_path: Path, name: str, known: set[str], store_id: str | None
) -> None:
    read(tmp_path, [{"video": name, "question": "x"}])
    assert join_videos(read_questions(str(tmp_path / "q.json")), known)["store_id"].to_pylist() == [store_id]


def test_two_paths_that_end_alike_are_joined_to_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of them would be answered from the other's tokens."""
    read(tmp_path, [{"video": name, "question": "x"} for name in ("x/a.mp4", "y/a.mp4", "x/b.mp4", "z/c.mp4", "c")])
    joined = join_videos(read_questions(str(tmp_path / "q.json")), {"a", "b", "c"})
    assert joined["store_id"].to_pylist() == [None, None, "b", None, "c"]


def test_names_of_files_tell_their_data_set(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([{"video_name": "v_abcdefghijk.mp4", "question": "x", "question_id": "1"}]))
    table = read_questions(str(tmp_path / "q.json"))
    assert dataset_of(table) == "activitynet-qa"
    assert join_videos(table, {"v_abcdefghijk"})["store_id"].to_pylist() == ["v_abcdefghijk"]
