"""When a payment is kept beyond its process: before it leaves, until it is resolved."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from obol.errors import SettingsError
from tests.buyer.processes import NewAuth, kept, nonces, try_to_buy
from tests.buyer.test_openai_client import MESSAGES, async_client_of, client_of
from tests.buyer.test_payment_auth import BODY, FAILED, PENDING, SETTLED, post
from tests.fakes.seller import (
    Answer,
    Behaviour,
    Break,
    Challenge,
    Drop,
    FakeSeller,
    Hang,
    Serve,
)


def test_a_whole_answer_leaves_nothing(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    assert try_to_buy(seller, new_auth()) == 200
    assert kept(folder) == []


def test_a_payment_is_on_the_disk_before_the_seller_has_it(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Hang())
    with ThreadPoolExecutor(1) as pool:
        buying = pool.submit(try_to_buy, seller, new_auth())
        seller.arrived.wait()
        (path,) = kept(folder)
        first = json.loads(path.read_bytes())
        seller.release()
        assert buying.result() == 200

    assert first["headers"].keys() == {"PAYMENT-SIGNATURE"}
    assert kept(folder) == []


@pytest.mark.parametrize(
    ("behaviour", "is_kept"),
    [
        (Drop(), True),
        (Break(), True),
        (Answer(500), True),
        (Answer(502, PENDING), True),
        (Answer(503, PENDING), True),
        (Answer(502, SETTLED), True),
        (Answer(409), True),
        (Answer(303), True),
        (Answer(429), True),
        (Answer(503), True),
        (Serve(has_receipt=False), False),
        (Serve(settled=False), False),
        (Answer(400), False),
        (Answer(404), False),
        (Answer(502, FAILED), True),
        (Answer(402, FAILED), False),
        (Challenge(), False),
    ],
    ids=str,
)
def test_it_is_kept_while_it_may_still_buy_something(
    seller: FakeSeller, new_auth: NewAuth, folder: Path, behaviour: Behaviour, is_kept: bool
) -> None:
    seller.then(behaviour)
    try_to_buy(seller, new_auth())

    assert bool(kept(folder)) == is_kept


def test_a_redirect_does_not_resolve_it(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Answer(307, headers={"Location": "/free"}))
    try_to_buy(seller, new_auth())
    assert len(kept(folder)) == 1

    seller.then(Answer(307, headers={"Location": "/v1/elsewhere"}))
    try_to_buy(seller, new_auth())
    assert (len(kept(folder)), nonces(seller)) == (1, 1)


def test_where_it_cannot_be_kept_it_does_not_leave(
    seller: FakeSeller, new_auth: NewAuth, tmp_path: Path, folder: Path
) -> None:
    folder.write_text("in the way")
    auth = new_auth(budget="1")

    with pytest.raises(SettingsError):
        post(seller, auth)
    assert (seller.paid, auth.remaining, auth.payments) == ([], "1", ())


def test_who_closes_an_answer_has_had_it(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    with httpx2.Client(auth=new_auth()) as client:
        request = client.build_request("POST", seller.url + "/v1/x", json=BODY | {"stream": True})
        response = client.send(request, stream=True)
        chunks = response.iter_raw()
        next(chunks)
        assert len(kept(folder)) == 1
        response.close()
        assert kept(folder) == []


def test_an_answer_that_is_left_for_an_error_stays_open(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    def read(client: httpx2.Client) -> None:
        with client.stream("POST", seller.url + "/v1/x", json=BODY | {"stream": True}) as response:
            for _ in response.iter_raw():
                raise KeyboardInterrupt

    with httpx2.Client(auth=new_auth()) as client, pytest.raises(KeyboardInterrupt):
        read(client)
    assert len(kept(folder)) == 1


def test_the_openai_client_leaves_nothing_of_a_stream(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.release()
    for _ in range(2):
        with client_of(seller, new_auth()) as client:
            assert len(list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))) == 3
        assert kept(folder) == []


async def test_the_async_openai_client_leaves_nothing_either(
    seller: FakeSeller, new_auth: NewAuth, folder: Path
) -> None:
    seller.release()
    async with async_client_of(seller, new_auth()) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert len([chunk async for chunk in stream]) == 3
    assert kept(folder) == []


async def test_an_async_client_keeps_and_resolves_too(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Hang())
    async with httpx2.AsyncClient(auth=new_auth()) as client:
        task = asyncio.get_running_loop().create_task(client.post(seller.url + "/v1/x", json=BODY))
        await asyncio.to_thread(seller.arrived.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(kept(folder)) == 1

    async with httpx2.AsyncClient(auth=new_auth()) as client:
        assert (await client.post(seller.url + "/v1/x", json=BODY)).status_code == 200
    assert (kept(folder), nonces(seller)) == ([], 1)
