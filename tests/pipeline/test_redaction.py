"""Each kind of secret by itself: the name of an option, the parameter of a URL, the user before a host."""

import pytest

from pipeline.redaction import redact, redact_all, secrets_of

OPTIONS = [
    "key", "account_key", "client_secret", "session_token", "password", "passwd", "pwd", "credential", "Authorization", "auth",
    "sas", "Cookie", "connection_string", "CONNECTION_STRING", "AWS_SECRET_ACCESS_KEY",
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_the_value_of_each_of_these_options_is_a_secret(name: str) -> None:
    """In any case of letters; each name is known by one word alone."""
    assert secrets_of({name: "hunter2", "region": "us-east-1"}) == {"hunter2"}


@pytest.mark.parametrize("name", ["region_name", "endpoint_url", "sasha", "anon", "timeout"])
def test_the_value_of_a_plain_setting_is_none(name: str) -> None:
    """Or half of what a run says would be stars."""
    assert secrets_of({name: "hunter2"}) == set()


@pytest.mark.parametrize(("value", "found"), [("abc", set()), ("abcd", {"abcd"})])
def test_a_secret_of_four_characters_is_looked_for(value: str, found: set[str]) -> None:
    """A shorter one would be found in every word."""
    assert secrets_of({"password": value}) == found


def test_a_secret_that_begins_another_leaves_nothing_of_it() -> None:
    """The longest is taken out first."""
    for secrets in (["abcd", "abcdefgh"], ["abcdefgh", "abcd"]):
        assert redact("key abcdefgh and abcd", secrets) == "key *** and ***"


def test_a_tuple_is_searched_as_a_list_is() -> None:
    """At any depth, and what is no text stays what it is."""
    found = redact_all({"a": ("x hunter2", [{"b": "hunter2"}], 3, None)}, {"hunter2"})
    assert found == {"a": ["x ***", [{"b": "***"}], 3, None]}


SIGNING = [
    "X-Amz-Date", "x-goog-algorithm", "sig", "Signature", "token", "client_secret", "password", "pwd", "AWSAccessKeyId",
    "api_key", "credential", "authuser", "Expires", "Policy", "my.token-x", "SIG",
]  # fmt: skip


@pytest.mark.parametrize("name", SIGNING)
@pytest.mark.parametrize("before", ["?", "?part=1&", "?part=1;"])
def test_each_parameter_that_signs_a_url_is_taken_out(name: str, before: str) -> None:
    """Wherever it stands, and nothing beside it."""
    assert redact(f"https://h/x{before}{name}=abc%3D&page=2") == f"https://h/x{before}{name}=***&page=2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://AKIA1:hunter2@bucket/x", "s3://***@bucket/x"),
        ("sftp://me:hunter2@host/x", "sftp://***@host/x"),
        ("ftp://hunter2@host/x", "ftp://***@host/x"),
        ("HTTPS://hunter2@host/x", "HTTPS://***@host/x"),
        ("https://me:hun@ter2@host/x", "https://***@host/x"),
        ("two: http://a:b@h/x, http://c:d@h/y", "two: http://***@h/x, http://***@h/y"),
        ("wasbs://container@account.blob.core.windows.net/x", "wasbs://container@account.blob.core.windows.net/x"),
        ("wasb://container@account/x", "wasb://container@account/x"),
        ("abfss://container@account/x", "abfss://container@account/x"),
        ("abfs://container:hunter2@account/x", "abfs://***@account/x"),
    ],
)
def test_who_stands_before_a_host_is_taken_out_where_it_is_a_secret(text: str, said: str) -> None:
    """A password anywhere, a lone user where it may be a token; not a container, not a lone user of SSH."""
    assert redact(text) == said
