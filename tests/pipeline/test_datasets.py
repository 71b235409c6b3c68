"""Every released layout is read into the same table, and nothing depends on the order of rows."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.aliases import read_aliases
from pipeline.datasets import (
    candidate_ids,
    dataset_of,
    join_videos,
    read_questions,
    type_name,
    with_history,
)
from pipeline.errors import ConfigError

ACTIVITYNET = Path(__file__).parents[2].parent / "shared" / "annotations" / "activitynet-qa"
needs_activitynet = pytest.mark.skipif(
    not (ACTIVITYNET / "test_q.json").exists(),
    reason="the ActivityNet-QA test split may not be shipped with the project",
)

QUESTIONS = [
    {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1QIUV7WYKXg_3"},
    {"video_name": "-9niCub7u60", "question": " what is behind  the girl ", "question_id": "v_-9niCub7u60_4"},
    {"video_name": "1QIUV7WYKXg", "question": "how many people run", "question_id": "v_1QIUV7WYKXg_7"},
]
ANSWERS = [
    {"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_3"},
    {"answer": "tree", "type": 1, "question_id": "v_-9niCub7u60_4"},
    {"answer": "2", "type": 7, "question_id": "v_1QIUV7WYKXg_7"},
]


def written(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def test_activitynet_questions_and_answers_are_joined_by_id(tmp_path: Path) -> None:
    """A shuffled answer file gives the same table; ids, texts and types are those of the release."""
    questions = written(tmp_path / "test_q.json", QUESTIONS)
    straight = read_questions(questions, answers=written(tmp_path / "a1.json", ANSWERS))
    turned = read_questions(questions, answers=written(tmp_path / "a2.json", ANSWERS[::-1]))
    assert straight.equals(turned)
    assert dataset_of(straight) == "activitynet-qa"
    assert straight.to_pylist()[1] == {
        "question_id": "v_-9niCub7u60_4",
        "video_id": "-9niCub7u60",
        "question": " what is behind  the girl ",
        "answer": "tree",
        "type": "spatial",
        "turn": None,
    }


def test_the_answer_file_beside_a_question_file_is_found(tmp_path: Path) -> None:
    """`val_q.json` brings `val_a.json` along; without it the answers are null."""
    questions = written(tmp_path / "val_q.json", QUESTIONS)
    assert read_questions(questions)["answer"].to_pylist() == [None, None, None]
    written(tmp_path / "val_a.json", ANSWERS)
    assert read_questions(questions)["answer"].to_pylist() == ["no", "tree", "2"]


def test_answers_by_id_keep_the_types_of_the_questions_where_they_have_none(tmp_path: Path) -> None:
    """`id` serves as well; a type stands in either file, and an answer's wins."""
    questions = [{**row, "type": 5} for row in QUESTIONS]
    answers = [{"id": row["question_id"], "answer": row["answer"]} for row in ANSWERS]
    answers[2]["type"] = 7
    path = written(tmp_path / "test_q.json", questions)
    table = read_questions(path, answers=written(tmp_path / "a.json", answers))
    assert table["answer"].to_pylist() == ["no", "tree", "2"]
    assert table["type"].to_pylist() == ["object", "object", "number"]


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    """Only null is none; a number is its text."""
    rows = [{**row, "answer": answer} for row, answer in zip(QUESTIONS, ("", 0, None), strict=True)]
    assert read_questions(written(tmp_path / "test.json", rows))["answer"].to_pylist() == ["", "0", None]


def test_a_question_without_an_answer_stays_with_a_null(tmp_path: Path) -> None:
    """One missing answer is data to count, not a reason to stop."""
    questions = written(tmp_path / "test_q.json", QUESTIONS)
    table = read_questions(questions, answers=written(tmp_path / "a.json", ANSWERS[:1]))
    assert table["answer"].to_pylist() == ["no", None, None]


def test_answers_of_another_split_are_refused(tmp_path: Path) -> None:
    """When not one answer belongs to a question, the wrong file was named."""
    other = [{**answer, "question_id": f"other_{answer['question_id']}"} for answer in ANSWERS]
    with pytest.raises(ConfigError, match="none of its 3 answers"):
        read_questions(written(tmp_path / "test_q.json", QUESTIONS), answers=written(tmp_path / "a.json", other))


def test_a_question_with_two_answers_is_refused(tmp_path: Path) -> None:
    """The same answer twice is harmless; two different ones are not."""
    questions = written(tmp_path / "test_q.json", QUESTIONS)
    assert read_questions(questions, answers=written(tmp_path / "a.json", ANSWERS + ANSWERS)).num_rows == 3
    contrary = [*ANSWERS, {**ANSWERS[0], "answer": "yes"}]
    with pytest.raises(ConfigError, match="two different answers"):
        read_questions(questions, answers=written(tmp_path / "b.json", contrary))


def test_a_repeated_question_id_is_refused(tmp_path: Path) -> None:
    """An id that names two questions cannot be joined."""
    with pytest.raises(ConfigError, match="1 question ids are used more than once"):
        read_questions(written(tmp_path / "test_q.json", [*QUESTIONS, QUESTIONS[0]]))


def test_msvd_and_msrvtt_release_files_are_told_apart(tmp_path: Path) -> None:
    """The same layout, but only MSRVTT-QA has a category; the type is the question word."""
    row = {"id": 36302, "video_id": 1451, "question": "who opened the box with a knife?", "answer": "someone"}
    msvd = read_questions(written(tmp_path / "msvd.json", [row]))
    msrvtt = read_questions(written(tmp_path / "msrvtt.json", [{**row, "category_id": 3, "video_id": 7010}]))
    assert (dataset_of(msvd), dataset_of(msrvtt)) == ("msvd-qa", "msrvtt-qa")
    assert msvd["question_id"].to_pylist() == ["36302"]
    assert msvd["video_id"].to_pylist() == ["1451"]
    assert msvd["type"].to_pylist() == ["who"]
    assert msrvtt["video_id"].to_pylist() == ["7010"]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("klFyrnrUSck_87_100", "msvd-qa"),
        ("_9-a-b_c--__12_100", "msvd-qa"),
        ("vid1451", "msvd-qa"),
        ("video7010", "msrvtt-qa"),
        ("tumblr_no73q2fm0I1uuf348o1_250", "tgif-qa"),
        ("v_UmAH95xls", "activitynet-qa"),
    ],
)
def test_a_zero_shot_package_is_recognised_by_its_video_names(tmp_path: Path, name: str, dataset: str) -> None:
    """All four packages have one layout; only the names tell which data set it is."""
    rows = [{"video_name": name, "question": "what is it", "question_id": f"v_{name}_1"}]
    assert dataset_of(read_questions(written(tmp_path / "test_q.json", rows))) == dataset


@pytest.mark.parametrize("name", ["video7010x", "xvideo7010", "vid12a", "v_UmAH95xlsX", "tumblr-a", "video"])
def test_one_name_that_does_not_fit_is_enough_to_ask(tmp_path: Path, name: str) -> None:
    """A data set is recognised by all of its names, each from its beginning to its end."""
    rows = [
        {"video_name": one, "question": "what is it", "question_id": str(at)}
        for at, one in enumerate(["video7010", "vid1451", "v_UmAH95xls", name])
    ]
    for start in range(3):
        with pytest.raises(ConfigError, match="--dataset"):
            read_questions(written(tmp_path / "test_q.json", [rows[start], rows[3]]))


def test_a_plain_file_may_number_its_questions(tmp_path: Path) -> None:
    """`id` beside names of videos that are text is nobody's release; a question id is taken before it."""
    rows = [{"id": 7, "video_id": "1451", "question": "what is it"}]
    table = read_questions(written(tmp_path / "q.json", rows))
    assert (dataset_of(table), table["question_id"].to_pylist()) == ("plain", ["7"])
    both = read_questions(written(tmp_path / "both.json", [{**rows[0], "question_id": "q"}]))
    assert both["question_id"].to_pylist() == ["q"]


@pytest.mark.parametrize(
    ("dataset", "raw", "question", "name"),
    [
        ("msvd-qa", None, "Who is it", "who"),
        ("msrvtt-qa", None, "is it red", "other"),
        ("msvd-qa", 3, " ", "other"),
        ("activitynet-qa", 0, "x", "motion"),
        ("activitynet-qa", "8", "x", "other"),
        ("activitynet-qa", 9, "x", "9"),
        ("activitynet-qa", "-1", "x", "-1"),
        ("activitynet-qa", "colour", "x", "colour"),
        ("activitynet-qa", None, "x", None),
        ("tgif-qa", "3", "x", "location"),
        ("tgif-qa", "4", "x", "4"),
        ("plain", 1, "x", "1"),
    ],
)
def test_types_are_named_as_the_data_set_names_them(dataset: str, raw: object, question: str, name: str | None) -> None:
    """A number that it does not have stays what it is; MSVD and MSRVTT go by the first word."""
    assert type_name(dataset, raw, question) == name


def test_names_that_fit_no_data_set_must_be_explained(tmp_path: Path) -> None:
    """Nothing is guessed; naming the data set is enough."""
    rows = [{"video_name": "holiday", "question": "what is it", "question_id": "1"}]
    path = written(tmp_path / "test_q.json", rows)
    with pytest.raises(ConfigError, match="--dataset"):
        read_questions(path)
    assert dataset_of(read_questions(path, dataset="plain")) == "plain"


def test_tgif_frameqa_is_read_from_its_tab_separated_csv(tmp_path: Path) -> None:
    """The file is called .csv and separated by tabs; vid_id is unique, gif_name is the video."""
    path = tmp_path / "Test_frameqa_question.csv"
    path.write_text(
        "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\n"
        "tumblr_a_250\thow many dogs , and what are they doing ?\ttwo\t1\tFRAMEQA7\t27138\ttwo dogs run .\n"
        "tumblr_b_r1_500\twhere is the man ?\tboat\t3\tFRAMEQA3\t2853\tin a boat .\n"
    )
    table = read_questions(str(path))
    assert dataset_of(table) == "tgif-qa"
    assert table["question_id"].to_pylist() == ["FRAMEQA7", "FRAMEQA3"]
    assert table["video_id"].to_pylist() == ["tumblr_a_250", "tumblr_b_r1_500"]
    assert table["type"].to_pylist() == ["number", "location"]


def test_multiple_choice_files_are_refused(tmp_path: Path) -> None:
    """TGIF-QA action and transition offer five answers; an open answer cannot be scored on them."""
    path = tmp_path / "Test_action_question.csv"
    path.write_text("gif_name\tquestion\ta1\ta2\tanswer\ntumblr_a\twhat?\tx\ty\t0\n")
    with pytest.raises(ConfigError, match="multiple-choice"):
        read_questions(str(path))


PLAIN_ROWS = [
    {"video_id": "a/b.mp4", "question": "was ist das?"},
    {"video_id": "c", "question": "what, exactly, is it?"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_plain_questions_are_read_from_every_format_with_the_same_ids(tmp_path: Path, suffix: str) -> None:
    """Without ids of their own, questions get ids from video and text, whatever the format and the order."""
    path = tmp_path / f"questions.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(PLAIN_ROWS), path)
    elif suffix == "json":
        path.write_text(json.dumps(PLAIN_ROWS))
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in PLAIN_ROWS) + "\n\n")
    else:
        sep = {"csv": ",", "tsv": "\t"}[suffix]
        lines = [("video_id", "question"), *((r["video_id"], f'"{r["question"]}"') for r in PLAIN_ROWS)]
        path.write_text("\ufeff" + "\n".join(sep.join(line) for line in lines))
    reversed_path = tmp_path / "reversed.jsonl"
    reversed_path.write_text("\n".join(json.dumps(row) for row in PLAIN_ROWS[::-1]))
    table, turned = read_questions(str(path)), read_questions(str(reversed_path))
    assert dataset_of(table) == "plain"
    assert table["question"].to_pylist() == [row["question"] for row in PLAIN_ROWS]
    assert table["question_id"].to_pylist() == turned["question_id"].to_pylist()[::-1]


@pytest.mark.parametrize("name", ["q.ndjson", "Q.JSONL", "one.json"])
def test_other_spellings_of_a_format_are_read(tmp_path: Path, name: str) -> None:
    """Another suffix for lines, capitals, and a file with one object that stands in no list."""
    (tmp_path / name).write_text(json.dumps(PLAIN_ROWS[1]))
    assert read_questions(str(tmp_path / name))["question"].to_pylist() == [PLAIN_ROWS[1]["question"]]


def test_made_ids_tell_questions_of_equal_length_apart(tmp_path: Path) -> None:
    """They depend on the text, so a file with one question more has the same ids for the others."""
    rows = [{"video_id": "a", "question": text} for text in ("what is it", "who is she", "what is it")]
    ids = read_questions(written(tmp_path / "q.json", rows))["question_id"].to_pylist()
    alone = read_questions(written(tmp_path / "r.json", rows[1:2]))["question_id"].to_pylist()
    assert ids == [ids[0], *alone, f"{ids[0]}:2"]
    assert len(set(ids)) == 3


def test_the_same_question_asked_twice_gets_two_ids(tmp_path: Path) -> None:
    """Thirteen questions of ActivityNet-QA are asked twice of one video; a made id must not collide."""
    ids = read_questions(written(tmp_path / "q.json", [PLAIN_ROWS[0]] * 3))["question_id"].to_pylist()
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.json", "[]", "one or more"),
        ("q.json", "[1, 2]", "one or more"),
        ("q.json", "{broken", "cannot read"),
        ("q.jsonl", '{"video_id": "a", "question": "b"}\n{"vid', "cannot read"),
        ("q.txt", "what?", "expected .json"),
        ("q.parquet", "not parquet", "cannot read"),
        ("q.csv", "clip,text\na,b", "cannot tell the layout"),
        ("q.json", '[{"video_id": "a", "question": null}]', "a row has no question"),
        ("q.json", b"\xff\xfe".decode("latin1"), "cannot read"),
    ],
)
def test_a_file_that_cannot_be_used_is_the_operators_to_mend(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Broken, empty and foreign files end in ConfigError, with the path."""
    path = tmp_path / name
    path.write_text(content, encoding="latin1")
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions(str(path))
    assert name in str(caught.value)


def test_only_a_line_feed_ends_a_line_of_jsonl(tmp_path: Path) -> None:
    """Our own answers.jsonl holds what a model said as it is, U+2028 and U+0085 among it."""
    text = "what\u2028is\u0085this\x0c"
    path = tmp_path / "q.jsonl"
    path.write_bytes((json.dumps({"video_id": "a", "question": text}, ensure_ascii=False) + "\r\n").encode())
    assert read_questions(str(path))["question"].to_pylist() == [text]


def test_a_bad_line_of_jsonl_is_named_by_its_number(tmp_path: Path) -> None:
    """The position that the parser tells is within the line."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"video_id": "a", "question": "b"}\n\n{"video_id": "a",\n')
    with pytest.raises(ConfigError, match="line 3: "):
        read_questions(str(path))


def test_a_row_with_more_fields_than_the_header_is_refused_not_cut(tmp_path: Path) -> None:
    """A comma in a question without quotes would cut the question."""
    path = tmp_path / "q.csv"
    path.write_text("video_id,question\na,why\nb,what, really?\n")
    with pytest.raises(ConfigError, match="line 3: expected 2 fields, got more"):
        read_questions(str(path))


def test_a_long_field_of_a_csv_is_read(tmp_path: Path) -> None:
    """Python's own limit is 131,072 characters, which a question with a transcript in it may pass."""
    path = tmp_path / "q.csv"
    path.write_text("video_id,question\na," + "x" * 200_000 + "\n")
    assert len(read_questions(str(path))["question"][0].as_py()) == 200_000


def test_a_missing_file_and_an_unknown_data_set_say_so(tmp_path: Path) -> None:
    """Both messages name what was given."""
    with pytest.raises(ConfigError, match="no such file"):
        read_questions(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="expected auto or one of"):
        read_questions(str(tmp_path / "none.json"), dataset="kinetics")


def test_files_are_read_from_any_fsspec_url(tmp_path: Path) -> None:
    """The sibling answer file is found there as well."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/qa/test_q.json", json.dumps(QUESTIONS).encode())
    fs.pipe_file("/qa/test_a.json", json.dumps(ANSWERS).encode())
    assert read_questions("memory://qa/test_q.json")["answer"].to_pylist() == ["no", "tree", "2"]


@pytest.mark.parametrize(
    ("dataset", "name", "expected"),
    [
        ("activitynet-qa", "-9niCub7u60", ("v_-9niCub7u60", "-9niCub7u60")),
        ("activitynet-qa", "v_UmAH95xls", ("v_v_UmAH95xls", "v_UmAH95xls")),
        ("msvd-qa", "1451", ("vid1451", "1451", "klFyrnrUSck_87_100")),
        ("msvd-qa", "klFyrnrUSck_87_100", ("klFyrnrUSck_87_100", "vid1451")),
        ("msrvtt-qa", "7010", ("video7010", "7010")),
        ("tgif-qa", "tumblr_a_250", ("tumblr_a_250",)),
        ("plain", "clips/a", ("clips/a",)),
    ],
)
def test_a_video_is_looked_for_under_the_names_its_data_set_gives_it(
    tmp_path: Path, dataset: str, name: str, expected: tuple[str, ...]
) -> None:
    """`v_` is added and never stripped; MSVD's mapping file leads from either name to the other."""
    mapping = tmp_path / "youtube_mapping.txt"
    mapping.write_text("klFyrnrUSck_87_100 vid1451\n-_hbPLsZvvo_5_8 vid2\n")
    assert candidate_ids(dataset, name, read_aliases(str(mapping))) == expected


@pytest.mark.parametrize("content", [None, "one two three\n", "one\n", "klFyrnrUSck_87_100,vid1451\n"])
def test_a_mapping_that_cannot_be_one_is_refused(tmp_path: Path, content: str | None) -> None:
    """Missing, or with anything but two names on a line; empty lines are none."""
    path = tmp_path / "mapping.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"mapping\.txt"):
        read_aliases(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (str(path), str(tmp_path), "nope://mapping.txt"):
        with pytest.raises(ConfigError, match="cannot read"):
            read_aliases(wrong)
    path.write_text("\na b\n\n")
    assert read_aliases(str(path)) == {"a": "b", "b": "a"}


def test_a_mapping_may_know_any_of_the_names(tmp_path: Path) -> None:
    """Not only the likeliest; no name is told twice."""
    assert candidate_ids("msvd-qa", "1451", {"1451": "clip"}) == ("vid1451", "1451", "clip")
    assert candidate_ids("msvd-qa", "1451", {"vid1451": "1451", "1451": "vid1451"}) == ("vid1451", "1451")


def test_turns_before_a_question_are_told_apart_by_where_one_ends(tmp_path: Path) -> None:
    """`ab` then `c` is another history than `a` then `bc`; videos have histories of their own; no turn, no history."""
    talks = {"x": ["ab", "c", "same"], "y": ["a", "bc", "same"], "z": ["ab", "c", "same"]}
    rows = [{"video_id": name, "question": text, "turn": at} for name, talk in talks.items() for at, text in enumerate(talk)]
    found = with_history(read_questions(written(tmp_path / "q.json", [*rows, {"video_id": "x", "question": "alone"}])))
    last = [row["history"] for row in found.to_pylist() if row["question"] == "same"]
    assert last[0] == last[2] != last[1]
    assert found["history"].to_pylist()[-1] is None
    assert len(set(found["history"].to_pylist()[:3])) == 3


def test_names_of_videos_are_read_from_every_format(tmp_path: Path) -> None:
    """Lines as MSVD has them, or columns; several names may mean one video, one name never two."""
    lines, rows = "one vid1\ntwo vid2\nzwei vid2\n", [("one", "vid1"), ("two", "vid2"), ("zwei", "vid2")]
    want = {"one": "vid1", "two": "vid2", "zwei": "vid2", "vid1": "one", "vid2": "two"}
    (tmp_path / "mapping").write_text(lines)
    (tmp_path / "m.csv").write_text("name,video_id\n" + "".join(f"{a},{b}\n" for a, b in rows))
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"name": a, "video_id": b}) + "\n" for a, b in rows))
    pq.write_table(pa.table({"name": [a for a, _ in rows], "video_id": [b for _, b in rows]}), tmp_path / "m.parquet")
    for file in ("mapping", "m.csv", "m.jsonl", "m.parquet"):
        assert read_aliases(str(tmp_path / file)) == want, file
    (tmp_path / "twice.txt").write_text("one vid1\none vid2\n")
    with pytest.raises(ConfigError, match="expected one other name for 'one', got 'vid1' and 'vid2'"):
        read_aliases(str(tmp_path / "twice.txt"))
    (tmp_path / "three.txt").write_text("one vid1 x\n")
    with pytest.raises(ConfigError, match="expected two names on each line"):
        read_aliases(str(tmp_path / "three.txt"))


def test_questions_are_joined_to_the_first_name_that_a_store_knows(tmp_path: Path) -> None:
    """A video that the store does not hold has no store id; it is not dropped."""
    table = read_questions(written(tmp_path / "test_q.json", QUESTIONS))
    joined = join_videos(table, {"v_1QIUV7WYKXg", "1QIUV7WYKXg", "other"})
    assert joined["store_id"].to_pylist() == ["v_1QIUV7WYKXg", None, "v_1QIUV7WYKXg"]
    assert dataset_of(joined) == "activitynet-qa"


@needs_activitynet
def test_the_activitynet_test_split_has_its_published_counts(tmp_path: Path) -> None:
    """8000 questions, 10 for each of 800 videos, and the type counts of the release; shuffling changes nothing."""
    table = read_questions(str(ACTIVITYNET / "test_q.json"))
    assert (table.num_rows, len(set(table["video_id"].to_pylist())), table["answer"].null_count) == (8000, 800, 0)
    counts = {row["values"]: row["counts"] for row in table["type"].value_counts().to_pylist()}
    assert counts == {
        "motion": 800, "spatial": 800, "temporal": 800, "yes/no": 2094, "color": 697,
        "object": 318, "location": 386, "number": 606, "other": 1499,
    }  # fmt: skip
    answers = json.loads((ACTIVITYNET / "test_a.json").read_text())
    random.Random(0).shuffle(answers)
    shuffled = read_questions(str(ACTIVITYNET / "test_q.json"), answers=written(tmp_path / "shuffled.json", answers))
    assert shuffled.equals(table)
