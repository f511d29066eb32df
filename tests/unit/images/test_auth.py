"""Challenges, credentials, token requests, endpoints: what is asked, what is sent where, what stays secret."""

from __future__ import annotations

import base64

import pytest

from bridge.errors import ImagePullFailed, InvalidRequest
from bridge.images import endpoints
from bridge.images.auth import Challenge, Credentials, credentials, parse_challenges, parse_token, token_request
from bridge.ports.images import RegistryAuth


def test_challenges() -> None:
    header = 'Bearer realm="https://a/t?x=1",service="a, b",scope="repository:x:pull", Basic realm="q\\"uoted", Negotiate'
    assert parse_challenges(header) == [
        Challenge("bearer", {"realm": "https://a/t?x=1", "service": "a, b", "scope": "repository:x:pull"}),
        Challenge("basic", {"realm": 'q"uoted'}),
    ]
    assert parse_challenges("bearer realm=bare,error=x") == [Challenge("bearer", {"realm": "bare", "error": "x"})]
    assert parse_challenges("") == parse_challenges("Digest realm=x") == []


def test_credentials_from_every_form() -> None:
    assert not credentials(None)
    assert not credentials(RegistryAuth())
    packed = base64.b64encode(b"user:pa:ss").decode()
    assert credentials(RegistryAuth(auth=packed)) == Credentials("user", "pa:ss")
    assert credentials(RegistryAuth(username="u", password="p", auth=packed)) == Credentials("u", "p")
    for bad in ("!!!", base64.b64encode(b"nocolon").decode(), base64.b64encode(b"\xff\xfe").decode()):
        with pytest.raises(InvalidRequest, match=r"auth\.auth") as caught:
            credentials(RegistryAuth(auth=bad))
        assert bad not in str(caught.value)


def test_secrets_have_no_repr() -> None:
    assert "hunter2" not in repr(Credentials("u", "hunter2", "hunter2", "hunter2")) + repr(RegistryAuth("u", "hunter2"))


def test_token_requests() -> None:
    challenge = Challenge("bearer", {"realm": "https://t/token", "service": "s"})
    anonymous = token_request(challenge, Credentials(), "repository:a:pull", allow_http=False)
    assert (anonymous.query, anonymous.authorization) == ({"service": "s", "scope": "repository:a:pull"}, "")
    basic = token_request(challenge, Credentials("u", "p"), "x", allow_http=False)
    assert basic.query["account"] == "u"
    assert basic.authorization.startswith("Basic ")
    refresh = token_request(challenge, Credentials(identity_token="I"), "x", allow_http=False)
    assert refresh.form is not None
    assert refresh.form["refresh_token"] == "I"
    with pytest.raises(ImagePullFailed, match="not https"):
        token_request(Challenge("bearer", {"realm": "http://t"}), Credentials("u", "p"), "x", allow_http=False)
    with pytest.raises(ImagePullFailed, match="not https"):
        token_request(Challenge("bearer", {"realm": "file:///etc"}), Credentials(), "x", allow_http=True)


def test_token_answers() -> None:
    assert parse_token(b'{"token":"a"}') == parse_token(b'{"access_token":"a"}') == "a"
    for bad in (b"", b"[]", b"{}", b'{"token":7}', b'{"token":"a\\r\\nX: y"}'):
        with pytest.raises(ImagePullFailed):
            parse_token(bad)


def test_loopback() -> None:
    assert all(map(endpoints.is_loopback, ("127.9.9.9:1", "[::1]:5", "localhost:1", "a.localhost")))
    assert not any(map(endpoints.is_loopback, ("10.0.0.1", "q.io", "127.example:1", "[::2]")))


def test_proxies_come_from_the_environment_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inner.example")
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert endpoints.proxy_of("https://q.io/v2/") == "http://proxy:3128"
    assert endpoints.proxy_of("http://q.io/v2/") is None
    assert endpoints.proxy_of("https://inner.example/v2/") is None
    assert endpoints.proxy_of("https://127.0.0.1:5000/v2/") is None
