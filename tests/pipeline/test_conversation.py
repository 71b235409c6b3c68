"""A conversation reads each word once and still answers as a model that reads everything again at every turn."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.answer.answer_store import QUESTIONS_ASKED, AnswerStore
from pipeline.answer.stage import Answer, AnswerConfig
from pipeline.answer.token_selection import SelectConfig
from pipeline.engines.chat import Conversation
from pipeline.engines.transformers_engine import TransformersEngine, VideoQuestions
from pipeline.errors import ConfigError
from pipeline.models.prompts import turn_text
from pipeline.questions.datasets import read_questions, with_history
from pipeline.store.token_store import TokenStore
from tests.models import tiny_checkpoint
from tests.pipeline.engines import engine, width_of
from tests.tables import SPEC, encoded, failed, row

TURNS = ["what is it", "who runs over there in the green field", "how many are there", "yes or no"]
pytestmark = pytest.mark.usefixtures("one_thread")


@torch.inference_mode()
def read_again(asked: TransformersEngine, features: Tensor, ids: list[int], before: int) -> list[int]:
    """Greedy ids after all ids so far, the whole prompt read from its beginning for every one of them."""
    model, said = asked.model, []
    shown = model.model.multi_modal_projector(features.to(model.dtype))
    while len(said) < asked.max_new_tokens:
        words = model.get_input_embeddings()(torch.tensor(ids + said))
        rows = torch.cat([words[:before], shown, words[before:]])
        hidden = model.model.language_model(inputs_embeds=rows[None], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[0, -1]).index_fill(0, asked._never, -torch.inf)
        said.append(int(logits.argmax()))
        if said[-1] in asked.eos:
            break
    return said


@pytest.mark.parametrize("seed", range(4))
def test_each_turn_sees_all_before_it(seed: int) -> None:
    """Id by id, four turns, whether answers end by themselves or where their room does."""
    asked = engine(seed, max_new_tokens=5)
    features = torch.randn(13, width_of(asked), generator=torch.Generator().manual_seed(seed))
    conversation = Conversation(asked, VideoQuestions(features=features, questions=()))
    first = asked.split(TURNS[0])
    ids, before = [*first.prefix, *first.suffix], len(first.prefix)
    for number, question in enumerate(TURNS):
        if number:
            ids += asked.tokenizer(turn_text(asked.prompt, question), add_special_tokens=False)["input_ids"]
        said = read_again(asked, features, ids, before)
        assert conversation.ask(question) == asked.reply(said)
        ids += said if said[-1] in asked.eos else [*said, asked.eos[0]]


def test_the_first_turn_is_a_question_by_itself() -> None:
    """And a second conversation about the same video does not remember the first."""
    asked = engine(1)
    features = torch.randn(9, width_of(asked))
    alone = asked.answer([VideoQuestions(features=features, questions=TURNS)])[0]
    for question, reply in zip(TURNS, alone, strict=True):
        assert asked.converse(VideoQuestions(features=features, questions=[question])) == [reply]


def test_a_turn_that_cannot_be_asked_leaves_no_trace() -> None:
    """An empty one, one with the video token, one that no room is left for."""
    asked = engine(2)
    features = torch.randn(9, width_of(asked))
    plain = asked.converse(VideoQuestions(features=features, questions=TURNS[:2]))
    odd = asked.converse(VideoQuestions(features=features, questions=[TURNS[0], " ", "a <video>", "a " * 300, TURNS[1]]))
    assert [reply.status for reply in odd] == ["ok", "empty_question", "reserved_token", "too_long", "ok"]
    assert [odd[0], odd[4]] == plain


def stage(tmp_path: Path, select: SelectConfig | None = None) -> Answer:
    model = tiny_checkpoint(tmp_path / "tiny")
    store = TokenStore.create(str(tmp_path / "store"), SPEC)
    store.commit(encoded([row(name, width=32) for name in ("a", "b")]))
    config = AnswerConfig(model=model, max_new_tokens=4, **({"select": select} if select else {}))
    return Answer(config, str(tmp_path / "store"), engine=engine(0, max_new_tokens=4))


def table(rows: list[dict[str, Any]]) -> pa.Table:
    base = {"store_id": "a", "video_id": "a", "payload_sha256": "p"}
    rows = [{**base, "question_id": str(at), "turn": None, **row} for at, row in enumerate(rows)]
    return with_history(pa.Table.from_pylist(rows)).select(QUESTIONS_ASKED.names)


def test_a_file_may_mix_turns_and_questions(tmp_path: Path) -> None:
    """Turns are asked in their order, whatever the order of rows; a question without a turn sees none of them."""
    asking = stage(tmp_path)
    turns = [{"question": TURNS[at - 1], "turn": at} for at in (3, 1, 2)]
    rows = [turns[0], {"question": TURNS[1]}, *turns[1:]]
    answered = asking(table(rows)).to_pylist()
    features = torch.from_numpy(asking.store.read("a").features.copy())
    talk = asking.engine.converse(VideoQuestions(features=features, questions=TURNS[:3]))
    alone = asking.engine.answer([VideoQuestions(features=features, questions=[TURNS[1]])])[0][0]
    assert [row["prediction"] for row in answered] == [talk[2].text, alone.text, talk[0].text, talk[1].text]


def test_two_names_of_a_video_hold_two_conversations(tmp_path: Path) -> None:
    """Data sets name a video twice; what was said under one name was not said under the other."""
    asking = stage(tmp_path)
    told = [{"question": question, "turn": at} for at, question in enumerate(TURNS[:2])]
    rows = [{**row, "video_id": name} for row in told for name in ("a", "alias")]
    said = [row["prediction"] for row in asking(table(rows)).to_pylist()]
    features = torch.from_numpy(asking.store.read("a").features.copy())
    talk = [reply.text for reply in asking.engine.converse(VideoQuestions(features=features, questions=TURNS[:2]))]
    assert said == [talk[0], talk[0], talk[1], talk[1]]


def test_an_entry_that_is_gone_is_a_missing_video(tmp_path: Path) -> None:
    """Its video was replaced by a broken one after the questions were joined; the others of the unit are answered."""
    asking = stage(tmp_path)
    TokenStore.open(str(tmp_path / "store")).commit(encoded([failed("a", seed=1)]))
    asking.store.refresh()
    rows = [{"question": TURNS[0]}, {"question": TURNS[0], "video_id": "b", "store_id": "b"}]
    answered = asking(table(rows)).to_pylist()
    assert [(row["status"], row["payload_sha256"] is None) for row in answered] == [("missing_video", True), ("ok", False)]


def test_an_answer_belongs_to_the_turns_before_it(tmp_path: Path) -> None:
    """With another first turn, the second is asked again; a conversation that is half answered is pending as a whole."""
    asking = stage(tmp_path)
    answers = AnswerStore.create(str(tmp_path / "out"), {"kind": "answer"})
    talk = table([{"question": TURNS[0], "turn": 1}, {"question": TURNS[1], "turn": 2}, {"question": TURNS[2]}])
    payload = asking.store.payloads()["a"]
    talk = talk.set_column(talk.schema.get_field_index("payload_sha256"), "payload_sha256", pa.array([payload] * 3))
    answers.commit(asking(talk))
    assert answers.pending(talk).num_rows == 0
    other = table([{"question": TURNS[3], "turn": 1}, {"question": TURNS[1], "turn": 2}, {"question": TURNS[2]}])
    other = other.set_column(other.schema.get_field_index("payload_sha256"), "payload_sha256", pa.array([payload] * 3))
    assert answers.pending(other)["question_id"].to_pylist() == ["0", "1"]
    later = {"question": TURNS[3], "turn": 9, "question_id": "9"}
    longer = pa.concat_tables([talk, table([{"question": TURNS[0], "turn": 1}, later])[1:]])
    assert answers.pending(longer)["question_id"].to_pylist() == ["0", "1", "9"]


def test_turns_are_read_from_files(tmp_path: Path) -> None:
    """Numbers as CSV, JSON or pandas write them; no number and doubled ones are refused."""
    path = tmp_path / "q.csv"
    path.write_text("video_id,question,turn\na,one,1\na,two,2.0\nb,alone,\n")
    assert read_questions(str(path))["turn"].to_pylist() == [1, 2, None]
    path.write_text("video_id,question,turn\na,one,first\n")
    with pytest.raises(ConfigError, match="whole number"):
        read_questions(str(path))
    with pytest.raises(ConfigError, match="two questions with turn 1"):
        table([{"question": "x", "turn": 1}, {"question": "y", "turn": 1}])
