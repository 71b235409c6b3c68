"""Prompts read as documented, and are split around the video without tokenising a piece alone."""

import pytest

from pipeline.errors import ConfigError
from pipeline.models.prompts import ONE_WORD, PromptTemplate, split_at_video, split_prompt, turn_text, video_token_id
from pipeline.synthetic.model import VIDEO, build_tokenizer


def test_the_default_prompt_is_the_documented_one() -> None:
    """Word for word as the transformers documentation of Video-LLaVA has it."""
    assert PromptTemplate().text("Why is this video funny?") == "USER: <video>\nWhy is this video funny? ASSISTANT:"


def test_the_original_prompt_carries_the_system_text() -> None:
    """One line of system text, "human" and not "user", then the same turn."""
    text = PromptTemplate(style="original").text("what is it")
    assert text.startswith("A chat between a curious human and an artificial intelligence assistant. The assistant ")
    assert text.endswith("to the human's questions. USER: <video>\nwhat is it ASSISTANT:")


def test_an_instruction_stands_on_its_own_line_after_the_question() -> None:
    """The instruction does not run into the question."""
    text = PromptTemplate(instruction=ONE_WORD).text("what is it")
    assert text == f"USER: <video>\nwhat is it\n{ONE_WORD} ASSISTANT:"


def test_white_space_of_a_question_is_tidied() -> None:
    """ActivityNet-QA has questions with outer and double spaces; a line break must not end the question."""
    assert PromptTemplate().text("  what is\n behind  her ") == PromptTemplate().text("what is behind her")


@pytest.mark.parametrize("wrong", [{"style": "chatml"}, {"instruction": "look at <video>"}])
def test_a_template_that_cannot_work_is_refused(wrong: dict[str, str]) -> None:
    """An unknown style and a second video are settings to mend."""
    with pytest.raises(ConfigError):
        PromptTemplate(**wrong)  # type: ignore[arg-type]


def test_the_ids_on_both_sides_are_those_of_the_whole_prompt() -> None:
    """Prefix, video token and suffix put together are the tokenised prompt, BOS once and in front."""
    tokenizer = build_tokenizer()
    split = split_prompt(tokenizer, PromptTemplate(), "what color is the circle ?", VIDEO)
    whole = tokenizer(PromptTemplate().text("what color is the circle ?"))["input_ids"]
    assert [*split.prefix, VIDEO, *split.suffix] == whole
    assert whole.count(tokenizer.bos_token_id) == 1
    assert split.prefix[0] == tokenizer.bos_token_id


def test_the_prefix_is_the_same_for_every_question() -> None:
    """What stands before the video cannot depend on what is asked after it."""
    tokenizer = build_tokenizer()
    questions = ("", "what is it", "USER: ASSISTANT:", "<video> again")
    assert len({split_prompt(tokenizer, PromptTemplate(), q, VIDEO).prefix for q in questions}) == 1


def test_a_tokeniser_without_the_video_token_is_refused() -> None:
    """The message names both ids; nothing is asked with a prompt that shows no video."""
    with pytest.raises(ConfigError, match="the model expects 32001"):
        video_token_id(build_tokenizer(), 32001)
    with pytest.raises(ConfigError, match="no video token"):
        split_at_video([1, 2, 3], VIDEO)


def test_a_later_turn_is_written_as_the_first_one_is() -> None:
    """Without system text and video, with the instruction, its white space tidied."""
    assert turn_text(PromptTemplate(), " and  then\n what ") == "USER: and then what ASSISTANT:"
    original = PromptTemplate(style="original", instruction=ONE_WORD)
    assert turn_text(original, "who") == f"USER: who\n{ONE_WORD} ASSISTANT:"


def test_a_prompt_is_split_at_its_first_video() -> None:
    """A second one, in a question, stays where it is said."""
    split = split_at_video([1, 9, 2, 9, 3], 9)
    assert (split.prefix, split.suffix) == ((1,), (2, 9, 3))
