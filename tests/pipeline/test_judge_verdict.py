"""The verdict in a judge's reply: every rendering of a verdict and a score is read as that pair, and nothing else is read."""

import ast
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.evaluate.judge import messages
from pipeline.evaluate.judge_verdict import Verdict, verdict
from tests.pipeline.judging import CASES

SAID = {
    True: ["yes", "correct", "right", "true", "it is correct", "yes, correct.", "not incorrect"],
    False: [
        "no",
        "incorrect",
        "wrong",
        "false",
        "not correct",
        "isn't correct",
        "isn’t right",
        "no, the answer is not correct",
    ],
}
OTHER = [
    "",
    "maybe",
    "yes or no",
    "yes/no",
    "yes, no",
    "partially correct",
    "not",
    "no doubt",
    "yes?",
    "not sure",
    "5",
    "null",
    "正解",
]
FAR = ["6", -1, "-1", 5.5, "8/10", "4/6", "4-5", "four", "", True, None, [4], {"value": 4}, "nan", "1e1", "4,5", 10**30]
PROSE = st.text(st.characters(exclude_characters='{}<[◁"', codec="utf-8"), max_size=40)
THOUGHT = ["think", "THINK", "thinking", "reasoning", "thought"]
EXAMPLES = [
    "{'pred': 'yes', 'score': 5}",
    '{"pred": "no", "score": 0}',
    "Is it CORRECT or INCORRECT?",
    '{"pred": "ye',
    "{'score': 3",
    "",
]
RESERVED = {"pred", "score", "correct", "is_correct", "verdict", "judgement", "judgment"}
PARTS = [
    *"{}[]':,\"“”\n",
    " yes",
    "no",
    "CORRECT",
    "INCORRECT",
    "'score': 3",
    "score",
    "{'correct': True, 'score': 3}",
    "5",
    "predicted",
]


def names_in_any_case(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name, name.upper(), name.title(), f" {name}"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[Verdict, dict[str, Any]]:
    """A verdict, and the fields that say it among others."""
    correct, score = draw(st.booleans()), draw(st.integers(0, 5))
    word = draw(st.sampled_from(SAID[correct]))
    pred = draw(st.sampled_from([word, word.upper(), word.title(), f" {word}\n", correct]))
    number = draw(
        st.sampled_from([score, float(score), str(score), f"{score}.0", f"{score}/5", f"{score} out of 5", f" {score} "])
    )
    if score < 5:
        number = draw(st.sampled_from([number, score + 0.75, f"{score}.5"]))
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
        max_leaves=4,
    )
    others = draw(st.dictionaries(st.text(max_size=12), values | st.sampled_from(EXAMPLES), max_size=3))
    nested = draw(st.sampled_from([{}, {"example": {"pred": "no", "score": 0}}, {"examples": [{"pred": "yes", "score": 5}]}]))
    kept = {name: value for name, value in {**others, **nested}.items() if name.strip(" \t*").casefold() not in RESERVED}
    fields = [*kept.items(), (draw(names_in_any_case("pred")), pred), (draw(names_in_any_case("score")), number)]
    return Verdict(correct=correct, score=score), dict(draw(st.permutations(fields)))


@st.composite
def wrapped(draw: st.DrawFn, body: str) -> str:
    """A reply around an object: prose, fences, reasoning, an earlier example."""
    body = draw(st.sampled_from([body, f"```json\n{body}\n```", f"```\n{body}\n```", f"[{body}]", f'{{"result": {body}}}']))
    body = draw(PROSE) + draw(st.sampled_from(["", "For example {'pred': 'no', 'score': 1}, but "])) + "\n" + body + draw(PROSE)
    thought, tag = draw(st.sampled_from(EXAMPLES)), draw(st.sampled_from(THOUGHT))
    return draw(
        st.sampled_from(
            [body, f"<{tag}>{thought}</{tag}>{body}", f"{thought}</{tag}>{body}", f"{body}<{tag}>{thought}</{tag}>"]
        )
    )


@given(answers(), st.data())
@settings(max_examples=400)
def test_every_rendering_of_a_verdict_is_read_as_that_verdict(
    answer: tuple[Verdict, dict[str, Any]], data: st.DataObject
) -> None:
    """JSON or a Python dictionary, with other and nested fields, in any order and case, wherever in a reply."""
    expected, fields = answer
    pretty = partial(json.dumps, ensure_ascii=False, indent=2)
    render = data.draw(st.sampled_from([repr, json.dumps, pretty, lambda fields: json.dumps(fields)[:-1] + ",}"]))
    assert verdict(data.draw(wrapped(render(fields)))) == expected


@given(st.booleans(), st.integers(0, 5), st.data())
def test_every_kind_of_quotes_is_read(correct: bool, score: int, data: st.DataObject) -> None:
    """Straight, typographic or no quotes, around names, values and scores, with quotes inside a reason that nobody escaped."""
    word = data.draw(st.sampled_from([said for said in SAID[correct] if not {"'", "’", ","} & {*said}]))
    quotes = ['""', "''", "“”", "„“", "‘’", "«»", "””", "``"]
    reasons = ["it isn't red", "the dogs', not the cats", 'he said "no", then left', "a: b, c", "a {pred} b"]
    opening, closing = data.draw(st.sampled_from(quotes))
    reason = data.draw(st.sampled_from([reason for reason in reasons if closing not in reason or closing in "'\""]))
    said = [("pred", word), ("score", str(score)), ("reason", reason)]
    fields = [f"{opening}{name}{closing}: {opening}{value}{closing}" for name, value in data.draw(st.permutations(said))]
    assert verdict("{" + ", ".join(fields) + "}") == Verdict(correct=correct, score=score)
    assert verdict(f"{{pred: {word}, score: {score}}}") == Verdict(correct=correct, score=score)


@given(st.lists(st.sampled_from(PARTS), max_size=16).map("".join) | st.text())
@example("The answer is CORRECT, score 5")
@example("pred: yes, score: 4")
@example("{'note': \"{'pred': 'no', 'score': 1}\"}")
@settings(max_examples=500)
def test_a_text_without_a_verdict_field_has_no_verdict(text: str) -> None:
    """Whatever words it holds, whatever braces and other fields are around them, and whatever it quotes."""
    assert verdict(text) is None


@given(answers(), st.sampled_from([repr, json.dumps]))
def test_an_object_without_either_field_has_no_verdict(answer: tuple[Verdict, dict[str, Any]], render: Any) -> None:
    """A score alone is none, and neither is the word alone."""
    for missing in ("pred", "score"):
        left = {name: value for name, value in answer[1].items() if name.strip().casefold() != missing}
        assert verdict(render({name: value for name, value in left.items() if not name.startswith("example")})) is None


@given(answers(), st.data())
@settings(max_examples=200)
def test_a_reply_that_is_cut_short_has_no_verdict(answer: tuple[Verdict, dict[str, Any]], data: st.DataObject) -> None:
    """Wherever it is cut; an example before it, or one that it quotes, is not taken for it."""
    text = data.draw(st.sampled_from([repr, json.dumps]))(answer[1])
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    assert verdict(cut) is None
    assert verdict(f"```json\n{cut}\n```") is None
    if "{" in cut:
        assert verdict(f"{{'pred': 'yes', 'score': 5}} or rather {cut}") is None


@given(st.booleans(), st.integers(0, 5), st.sampled_from([repr, json.dumps]), st.data())
def test_an_object_that_contradicts_itself_has_no_verdict(correct: bool, score: int, render: Any, data: st.DataObject) -> None:
    """Two verdicts or two scores, under one name in any case, or beside `pred` under a name that models use for it."""
    said = render({"pred": data.draw(st.sampled_from(SAID[correct])), "score": score})[:-1]
    name = data.draw(st.sampled_from(["pred", "PRED", "correct", "is_correct", "verdict"]))
    against = render({name: data.draw(st.sampled_from(SAID[not correct]))})[1:]
    same = render({name: data.draw(st.sampled_from(SAID[correct]))})[1:]
    assert verdict(f"{said}, {against}") is None
    assert verdict(f"{said}, {same}") == Verdict(correct=correct, score=score)
    assert verdict(f"{said}, {render({'Score': (score + 1) % 6})[1:]}") is None


@pytest.mark.parametrize("render", [repr, json.dumps])
@pytest.mark.parametrize("pred", [*OTHER, None, 1, 0, ["yes"], {"pred": "maybe"}], ids=str)
def test_a_verdict_of_other_words_is_not_guessed(render: Any, pred: Any) -> None:
    """Nor is an earlier verdict taken in its place."""
    assert verdict(render({"pred": pred, "score": 3})) is None
    assert verdict(f"{{'pred': 'yes', 'score': 5}} {render({'pred': pred, 'score': 3})}") is None


@pytest.mark.parametrize("render", [repr, json.dumps])
@pytest.mark.parametrize("score", FAR, ids=str)
def test_a_score_off_the_scale_is_not_guessed(render: Any, score: Any) -> None:
    """0 to 5, as a number, a text, or a share of 5."""
    assert verdict(render({"pred": "yes", "score": score})) is None
    assert verdict(render({"pred": "yes"})) is None


@given(st.sampled_from(["yes", "no", "Yes", "NO"]), st.integers(0, 5))
def test_a_well_formed_reply_counts_as_in_the_published_script(pred: str, score: int) -> None:
    """evaluate_activitynet_qa.py of Video-ChatGPT reads the dictionary and takes `"yes" in pred.lower()` and `int(score)`."""
    text = str({"pred": pred, "score": score})
    published = ast.literal_eval(text)
    assert verdict(text) == Verdict(correct="yes" in published["pred"].lower(), score=int(published["score"]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{'pred':'incorrect','score':4}", Verdict(correct=False, score=4)),
        ("{'pred': 'yes', 'score': 4.8}", Verdict(correct=True, score=4)),
        ("As in {'pred': 'no', 'score': 3}, so {'pred': 'yes', 'score': 5}", Verdict(correct=True, score=5)),
        ("{'pred': 'yes', 'score': 5} {}", Verdict(correct=True, score=5)),
        ("{{'pred': 'yes', 'score': 5}}", Verdict(correct=True, score=5)),
        ("{'pred': 'yes', # it means the same\n 'score': 5 // of 5\n}", Verdict(correct=True, score=5)),
        ('{"**pred**": "**yes**", "score": "**4**"}', Verdict(correct=True, score=4)),
        ('{\n"pred": "yes"\n"score": 4\n}', Verdict(correct=True, score=4)),
        ('"{\\"pred\\": \\"yes\\", \\"score\\": 4}"', Verdict(correct=True, score=4)),
        ("On a scale {0-5} and $\\frac{a}{b}$: {'pred': 'no', 'score': 0}", Verdict(correct=False, score=0)),
        ("[THINK]{'pred': 'no', 'score': 0}[/THINK]{'pred': 'yes', 'score': 4}", Verdict(correct=True, score=4)),
        (
            "<|channel|>analysis<|message|>{'pred': 'no', 'score': 1}<|end|><|start|>assistant"
            "<|channel|>final<|message|>{'pred': 'yes', 'score': 4}",
            Verdict(correct=True, score=4),
        ),
        ("<think>{'pred': 'yes', 'score': 5} it is", None),
        ("<think>{'pred': 'yes', 'score': 5}</think>", None),
        ("{'pred': 'yes', 'score': 4} {'pred': 'no', 'score': }", None),
        ("{'pred': 'yes', 'score': 4} but then {'pred': 'no', 'sc", None),
    ],
)
def test_which_object_of_a_reply_counts(text: str, found: Verdict | None) -> None:
    """The last one that has a verdict, outside of reasoning; where it cannot be read, none."""
    assert verdict(text) == found


@pytest.mark.parametrize(
    "part", ["{", '{"a":', '{"a": "', "{'a': '", '{"pred": "# # #', "{//#", "<think", "<|channel|>", '{"a": "x", ']
)
def test_a_reply_made_to_waste_time_ends_without_a_verdict(part: str) -> None:
    """The largest reply that is read at all, of beginnings that never end."""
    assert verdict(part * ((1 << 20) // len(part))) is None


def test_the_prompt_asks_for_what_is_read() -> None:
    """The names in the prompt are those of the parser, and the example in it is no verdict."""
    user = messages(CASES[0])[1]["content"]
    assert '"pred"' in user
    assert '"score"' in user
    assert verdict(user) is None
