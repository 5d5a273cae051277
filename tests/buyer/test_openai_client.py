"""PaymentAuth inside the official OpenAI client, sync and async, against a seller on a real port."""

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from obol.adapters.signer_local import LocalSigner
from obol.buyer.payment_auth import PaymentAuth
from obol.errors import BudgetExceededError, PaymentRefusedError
from tests.fakes.seller import Answer, Drop, FakeSeller

MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hi"}]


def client_of(seller: FakeSeller, auth: PaymentAuth) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(auth=auth)
    return openai.OpenAI(base_url=f"{seller.url}/v1", api_key="sk-mine", http_client=http)


def async_client_of(seller: FakeSeller, auth: PaymentAuth) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(auth=auth)
    return openai.AsyncOpenAI(base_url=f"{seller.url}/v1", api_key="sk-mine", http_client=http)


def nonces(seller: FakeSeller) -> int:
    return len({seen.nonce for seen in seller.paid})


def test_a_plain_answer_is_paid_and_the_api_key_goes_along(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)
    with client_of(seller, auth) as client:
        answer = client.chat.completions.create(model="m", messages=MESSAGES)

    assert answer.choices[0].message.content == "Three small words."
    assert [seen.authorization for seen in seller.paid] == ["Bearer sk-mine"]
    assert auth.spent == "0.001"


async def test_a_plain_answer_is_paid_by_the_async_client(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)
    async with async_client_of(seller, auth) as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)

    assert (answer.choices[0].message.content, auth.spent) == ("Three small words.", "0.001")


def test_a_stream_arrives_while_the_seller_still_holds_the_rest(seller: FakeSeller, signer: LocalSigner) -> None:
    with client_of(seller, PaymentAuth(signer)) as client:
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        first = next(stream)
        seller.release()  # only now may the seller go on: a buffered stream would never have got here
        rest = [chunk.choices[0].delta.content for chunk in stream]

    assert [first.choices[0].delta.content, *rest] == ["Three ", "small ", "words."]


async def test_an_async_stream_arrives_while_the_seller_still_holds_the_rest(
    seller: FakeSeller, signer: LocalSigner
) -> None:
    async with async_client_of(seller, PaymentAuth(signer)) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        first = await anext(stream)
        seller.release()
        rest = [chunk.choices[0].delta.content async for chunk in stream]

    assert [first.choices[0].delta.content, *rest] == ["Three ", "small ", "words."]


def test_the_clients_own_retry_after_a_lost_answer_presents_the_same_payment(
    seller: FakeSeller, signer: LocalSigner
) -> None:
    seller.then(Drop())
    auth = PaymentAuth(signer)
    with client_of(seller, auth) as client:
        client.chat.completions.create(model="m", messages=MESSAGES)

    assert (len(seller.paid), nonces(seller), auth.spent) == (2, 1, "0.001")


def test_the_clients_own_retry_does_not_buy_a_lost_answer_twice(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Drop(claims=True))
    with client_of(seller, PaymentAuth(signer)) as client, pytest.raises(PaymentRefusedError, match="used before"):
        client.chat.completions.create(model="m", messages=MESSAGES)

    assert (len(seller.paid), nonces(seller)) == (2, 1)


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_the_clients_own_retry_after_an_error_presents_the_same_payment(
    seller: FakeSeller, signer: LocalSigner, status: int
) -> None:
    seller.then(Answer(status, headers={"Retry-After-Ms": "1"}))
    auth = PaymentAuth(signer, budget="0.001")
    with client_of(seller, auth) as client:
        client.chat.completions.create(model="m", messages=MESSAGES)

    assert (len(seller.paid), nonces(seller), auth.spent) == (2, 1, "0.001")


def test_our_errors_reach_the_caller_as_they_are_and_are_not_retried(seller: FakeSeller, signer: LocalSigner) -> None:
    with client_of(seller, PaymentAuth(signer, max_price="0.0009")) as client, pytest.raises(BudgetExceededError):
        client.chat.completions.create(model="m", messages=MESSAGES)

    assert (len(seller.unpaid), seller.paid) == (1, [])


def test_one_auth_serves_many_clients_on_one_budget(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer, budget="0.001")
    with client_of(seller, auth) as first, client_of(seller, auth) as second:
        first.chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises(BudgetExceededError):
            second.chat.completions.create(model="m", messages=MESSAGES)
