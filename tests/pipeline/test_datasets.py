"""Every released layout is read into the same table, and nothing depends on the order of rows."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.questions.aliases import read_aliases
from pipeline.questions.datasets import (
    candidate_ids,
    dataset_of,
    join_videos,
    read_questions,
    type_name,
    with_history,
)
from tests.activitynet import made_up_split
from tests.pipeline.question_rows import ANSWERS, QUESTIONS, written


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


def test_a_mapping_of_names_with_spaces_of_other_kinds_is_read(tmp_path: Path) -> None:
    """Blanks part two names where no tab does; every other space is part of a name, and so is a line separator."""
    path = tmp_path / "mapping.txt"
    path.write_text("3.15\u202fPM vid1\r\n東京\u3000散歩   vid2\nRec 3.16\u00a0PM\tvid3\nls\u2028x vid4\n")
    found = read_aliases(str(path))
    assert {found[f"vid{number}"] for number in (1, 2, 3, 4)} == {
        "3.15\u202fPM", "東京\u3000散歩", "Rec 3.16\u00a0PM", "ls\u2028x",
    }  # fmt: skip


def test_a_question_names_a_video_by_its_id_or_by_the_name_of_its_file(tmp_path: Path) -> None:
    """Control characters of a name are escaped in the id; where both are ids, the id itself is meant."""
    path = tmp_path / "q.jsonl"
    names = ["tab\tname", "tab%09name", "%0A", "a\u202fb"]
    path.write_text("\n".join(json.dumps({"video_id": name, "question": name + "?"}) for name in names))
    ids = ["tab%09name", "tab%2509name", "%250A", "a\u202fb"]
    joined = join_videos(read_questions(str(path), "plain"), ids)
    assert joined["store_id"].to_pylist() == ["tab%09name", "tab%09name", "%250A", "a\u202fb"]


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


def test_a_split_of_activitynet_has_its_counts_in_any_order(tmp_path: Path, activitynet: Path) -> None:
    """400 questions, 10 for each of 40 videos, with the types that the numbers stand for; shuffling changes nothing."""
    table = read_questions(str(activitynet / "test_q.json"))
    assert (table.num_rows, len(set(table["video_id"].to_pylist())), table["answer"].null_count) == (400, 40, 0)
    counts = {row["values"]: row["counts"] for row in table["type"].value_counts().to_pylist()}
    assert counts == {
        "motion": 40, "spatial": 40, "temporal": 40, "yes/no": 90, "color": 40,
        "object": 20, "location": 20, "number": 40, "other": 70,
    }  # fmt: skip
    answers = made_up_split()[1]
    random.Random(0).shuffle(answers)
    shuffled = read_questions(str(activitynet / "test_q.json"), answers=written(tmp_path / "shuffled.json", answers))
    assert shuffled.equals(table)
