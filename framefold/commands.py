"""Encode, answer and evaluate in this process, without Ray: the commands of the same names as functions.

Every flag of `framefold encode|answer|evaluate --help` is a keyword argument, with underscores for dashes; the flags about Ray
are not. A function returns the report of its command, plain JSON, and raises where the command exits with 2 or 4.
"""

from collections.abc import Callable, Mapping
from typing import Any

from framefold.settings import job_of
from pipeline.errors import ConfigError

Report = dict[str, Any]
RAY_ONLY = ("runner", "address", "encoders", "engines", "gpus_per_encoder", "gpus_per_engine")
"""Settings that say where the actors of a Ray cluster run."""


def encode(corpus: str, store: str, *, model: str, reducer: str = "prumerge+", **settings: Any) -> Report:
    """Encode every video of a corpus that the token store does not hold yet.

    Args:
        corpus: directory, glob or manifest; a path or any fsspec URL.
        store: root of the token store.
        model: directory or hub id of a Video-LLaVA checkpoint.
        reducer: a spec such as `"nest(keep=256)"`, of a plug-in or of a class that `register_reducer` was given, too.
        settings: other flags of `framefold encode`, e.g. `frames=8`, `decoders=2`, `storage_options={...}`. Any: of all types.

    Returns:
        The report: among others `fingerprint`, `videos`, `committed`, `failed`, `failed_by_class`, `tokens_per_video`.

    Raises ConfigError for a wrong setting, before anything is written; StoreError for a store that cannot be trusted.
    """
    from jobs.commands import encode as command

    given = {"corpus": corpus, "store": store, "model": model, "reducer": reducer, **settings}
    return _run("encode", command.EncodeJob, command.run, given)


def answer(questions: str, store: str, out: str, *, model: str, **settings: Any) -> Report:
    """Answer every question of a file that has no answer yet, from stored tokens.

    Args:
        questions: question file of a data set, or JSONL, CSV, Parquet with video_id and question.
        store: root of the token store.
        out: folder for answers.jsonl and answers.parquet.
        model: the checkpoint that the store was encoded with.
        settings: other flags of `framefold answer`, e.g. `budget=64`, `max_new_tokens=16`. Any: of all types.

    Returns:
        The report: among others `questions`, `statuses`, and `answers`, the path of answers.jsonl.

    Raises ConfigError for a wrong setting, before anything is written; StoreError for a store that cannot be trusted.
    """
    from jobs.commands import answer as command

    given = {"questions": questions, "store": store, "out": out, "model": model, **settings}
    return _run("answer", command.AnswerJob, command.run, given)


def evaluate(predictions: str, *, questions: str, **settings: Any) -> Report:
    """Score predictions against the answers of a data set.

    Args:
        predictions: our answers.jsonl or answers.parquet, or a list of question_id and answer.
        questions: the data set's question file.
        settings: other flags of `framefold evaluate`, e.g. `answers=...`, `dataset="activitynet-qa"`. Any: of all types.

    Returns:
        The report: among others `coverage`, and `exact` and `normalised` with their accuracies and intervals.

    Raises ConfigError for a wrong setting, or files that do not fit together.
    """
    from jobs.commands import evaluate as command

    given = {"predictions": predictions, "questions": questions, **settings}
    return _run("evaluate", command.EvaluateJob, command.run, given)


def _run(name: str, kind: type[Any], run: Callable[[Any], Report], settings: Mapping[str, Any]) -> Report:
    """Run a job of some settings in this process. Any: each command has its own job."""
    for setting in RAY_ONLY:
        if setting in settings and (setting, settings[setting]) != ("runner", "local"):
            raise ConfigError(f"framefold.{name}: {setting} is a setting of Ray: use the command framefold {name}")
    local = {} if name == "evaluate" else {"runner": "local"}
    return run(job_of(kind, {**settings, **local}, f"framefold.{name}", RAY_ONLY))
