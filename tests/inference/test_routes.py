"""The only doors: exact canonical paths, nothing else."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.offer import Api
from obol.inference.routes import SALE_PATHS, Route, RouteKind, match, split_service

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(("api", "path"), list(SALE_PATHS.items()))
def test_each_api_has_one_door(api: Api, path: str) -> None:
    assert match("POST", path) == Route(RouteKind.SALE, api, path)


def test_every_api_is_sold_somewhere() -> None:
    assert set(SALE_PATHS) == set(Api)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_model_list_is_free(method: str) -> None:
    assert match(method, "/v1/models?limit=3") == Route(RouteKind.MODELS)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/chat%2Fcompletions",
        "/v1/chat%2fcompletions",
        "/v1/%63hat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/.",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/v1/x/%2e%2e/chat/completions",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/V1/chat/completions",
        "/v1/Chat/Completions",
        "/v1\\chat\\completions",
        "/v1/chat/completions;a=b",
        "/v1/chat/completions%3Fa=b",
        "/v1/chat/completions%00",
        "/v1/chat/completions\t",
        "/v1/chat/completions\r\nX: y",
        "/v1/chat/completions#a",
        " /v1/chat/completions",
        "http://localhost/v1/chat/completions",
        "/v1/chat/completions\N{LATIN SMALL LETTER LONG S}",
        "",
        "*",
        "/",
        "/v1",
        "/v1/audio/speech",
        "/api/pull",
        "/api/delete",
        "/api/tags",
        "/tokenize",
        "/metrics",
        "/slots",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_another_spelling_is_no_door(method: str, target: str) -> None:
    assert match(method, target) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "post", ""])
def test_a_sale_is_a_post(method: str) -> None:
    assert match(method, CHAT) is None


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "get"])
def test_models_are_only_read(method: str) -> None:
    assert match(method, "/v1/models") is None
    assert match(method, "/v1/models/m") is None


@given(st.text(alphabet=string.printable, max_size=40))
def test_what_goes_upstream_is_always_a_constant(suffix: str) -> None:
    for target in (suffix, CHAT + suffix, CHAT + "?" + suffix):
        route = match("POST", target)
        assert route is None or route.target in SALE_PATHS.values() or "?api-version=" in route.target


@pytest.mark.parametrize(
    ("raw", "model_id"),
    [
        ("m", "m"),
        ("qwen3:8b", "qwen3:8b"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("meta-llama%2FLlama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("a%20b", "a b"),
        ("%C3%A9", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("100%25", "100%"),
        ("a%2525", "a%25"),
    ],
)
def test_a_model_id_is_decoded_once(raw: str, model_id: str) -> None:
    assert match("GET", f"/v1/models/{raw}?x=1") == Route(RouteKind.MODEL, model_id=model_id)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/../b",
        "%2e%2e",
        "a/%2E/b",
        "%",
        "%4",
        "%zz",
        "%FF",
        "%00",
        "a%0Ab",
        "a b",
        "a;b",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "a\\b",
        "x" * 257,
        "#",
    ],
)
def test_a_model_id_that_others_might_read_differently_is_refused(raw: str) -> None:
    assert match("GET", f"/v1/models/{raw}") is None


@pytest.mark.parametrize(
    ("path", "query", "kept"),
    [
        (CHAT, "api-version=2024-10-21", "?api-version=2024-10-21"),
        (CHAT, "a=b&api-version=2024-10-21-preview&c=d", "?api-version=2024-10-21-preview"),
        (CHAT, "api-version=1&api-version=2", "?api-version=1"),
        (CHAT, "beta=true", ""),
        (CHAT, "api-version=a%26b", ""),
        (CHAT, "API-Version=1", ""),
        (CHAT, "key=secret", ""),
        ("/v1/messages", "beta=true", "?beta=true"),
        ("/v1/messages", "beta=false", ""),
        ("/v1/messages", "api-version=1", ""),
        ("/api/chat", "beta=true&api-version=1", ""),
    ],
)
def test_a_query_is_dropped_unless_it_is_listed(path: str, query: str, kept: str) -> None:
    route = match("POST", f"{path}?{query}")
    assert route is not None
    assert route.target == path + kept


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/services/qwen36-fast/v1/models", ("qwen36-fast", "/v1/models")),
        ("/services/x/v1/chat/completions?a=b", ("x", "/v1/chat/completions?a=b")),
        ("/services/x/", ("x", "/")),
        ("/services/x/services/y/v1/models", ("x", "/services/y/v1/models")),
        ("/services/x", None),
        ("/services//v1/models", None),
        ("/services/../v1/models", None),
        ("/services/a%2Fb/v1/models", None),
        ("/Services/x/v1/models", None),
        ("//services/x/v1/models", None),
        ("/v1/models", None),
        ("/services/x/v1/models\n", None),
    ],
)
def test_the_service_prefix_is_split_only_in_its_one_form(target: str, parts: tuple[str, str] | None) -> None:
    assert split_service(target) == parts
