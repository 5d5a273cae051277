"""What the demo shows, chapter by chapter; every part is the real one, on a port of its own."""

import asyncio
import secrets
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import structlog
from openai.types.chat import ChatCompletionMessageParam

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.clock import SystemClock
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.adapters.llamacpp import LlamaCppServer
from obol.adapters.logs import make_logger
from obol.adapters.signer_local import LocalSigner
from obol.buyer.payment_auth import PaymentAuth
from obol.cli.exit_codes import ExitCode
from obol.cli.narrator import Narrator
from obol.cli.output import CommandError
from obol.core.money import format_amount, parse_amount
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.facilitator.app import build_app
from obol.facilitator.serve import serve
from obol.facilitator.settings import load
from obol.gateway.gateway import Gateway
from obol.gateway.settings import GatewayConfig
from obol.x402.client import read_challenge

MAX_INFLIGHT = 2
USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
_POCKET_MONEY = "1"
_LONG_ANSWER_TOKENS = 1500
_WAIT_S = 30.0
_PROMPT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story."}]


class Story:
    """The demo. `folder` holds the model, both ledgers and the keys, and goes away with the demo."""

    def __init__(self, narrator: Narrator, folder: Path, *, upstream: str | None, price: str) -> None:
        self._say = narrator
        self._folder = folder
        self._upstream = upstream
        self._price_atomic = parse_amount(price, USDC.decimals, field="--price")
        self._price = price
        self._clock = SystemClock()
        self._buyer = LocalSigner.generate()
        self._seller = LocalSigner.generate()

    async def tell(self, *, keep: bool) -> None:
        """Everything, and everything stopped at the end; with `keep` only after Ctrl-C."""
        async with AsyncExitStack() as stack:
            self._say.heading("Starting the parts")
            chain = await self._start_chain(stack)
            facilitator_url = await self._start_facilitator(stack, chain)
            gateway = await self._start_gateway(stack, await self._start_model(stack), facilitator_url)
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=gateway.url, timeout=_WAIT_S))
            await self._show_quote(gateway, http)
            await self._buy(gateway, chain, http)
            await self._fill(gateway, http)
            if keep:
                await self._keep(gateway, facilitator_url)
        self._say.heading("Everything is stopped.")

    async def _start_chain(self, stack: AsyncExitStack) -> DevnetChain:
        chain = await DevnetChain.open(self._folder / "devnet.sqlite3", self._clock)
        stack.push_async_callback(chain.close)
        await chain.fund(USDC, self._buyer.address, parse_amount(_POCKET_MONEY, USDC.decimals, field="AMOUNT"))
        return chain

    async def _start_model(self, stack: AsyncExitStack) -> str:
        if self._upstream is not None:
            return self._upstream
        folder = self._folder / "model"
        folder.mkdir()
        server = LlamaCppServer(folder, n_parallel=MAX_INFLIGHT)
        with self._say.step(
            "starting llama.cpp's server with a random-weight model",
            "a real llama.cpp server; its model has random weights, so its text is gibberish by design",
        ):
            await stack.enter_async_context(server)
        return server.url

    async def _start_facilitator(self, stack: AsyncExitStack, chain: DevnetChain) -> str:
        app = build_app(
            DevnetFacilitator(chain),
            new_request_id=lambda: secrets.token_hex(8),
            log=_quiet(),
            catalogue=DEFAULT_CATALOGUE,
        )
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        settings = load("127.0.0.1:0", self._folder, ())
        serving = asyncio.get_running_loop().create_task(
            serve(app, settings, on_listening=listening.set_result, stop=stop)
        )

        async def end() -> None:
            stop.set()
            await serving

        stack.push_async_callback(end)
        with self._say.step("starting the facilitator", "a facilitator that settles on a devnet ledger: play money"):
            first: tuple[asyncio.Future[Any], ...] = (listening, serving)
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            return await listening

    async def _start_gateway(self, stack: AsyncExitStack, upstream_url: str, facilitator_url: str) -> Gateway:
        config = GatewayConfig(
            name="demo",
            upstream_url=upstream_url,
            pay_to=self._seller.address,
            price=self._price,
            facilitator_url=facilitator_url,
            listen="127.0.0.1:0",
            data_dir=self._folder,
            max_inflight=MAX_INFLIGHT,
            gpu_count=1,
        )
        with self._say.step("starting the gateway", "the gateway sells its answers"):
            gateway = await stack.enter_async_context(Gateway(config, log=_quiet()))
        self._say.facts(
            "For sale",
            {
                "address": f"{gateway.url}/v1",
                "models": ", ".join(model.public for model in gateway.offer.models),
                "price": f"{self._price} USDC per request",
                "paid to": gateway.offer.pay_to,
                "capacity": f"{MAX_INFLIGHT} requests at once",
            },
        )
        return gateway

    async def _show_quote(self, gateway: Gateway, http: httpx2.AsyncClient) -> None:
        self._say.heading("1. A request without payment gets a quote")
        answer = await http.post("/v1/chat/completions", json=self._request(gateway))
        self._expect(answer, 402)
        asked = read_challenge(answer.status_code, answer.headers, answer.content).accepts[0]
        amount = format_amount(int(asked.amount), USDC.decimals)
        self._say.say(
            f"402 Payment Required: {amount} {USDC.symbol} on {USDC.network.name} ({asked.network}), "
            f"to {asked.pay_to}, by a payment that is valid for {asked.max_timeout_seconds} s."
        )

    async def _buy(self, gateway: Gateway, chain: DevnetChain, http: httpx2.AsyncClient) -> None:
        self._say.heading("2. The OpenAI SDK with our paying transport buys a streamed answer")
        before = await self._balances(chain)
        auth = PaymentAuth(self._buyer, max_price=self._price, budget=_POCKET_MONEY)
        async with self._client(gateway, auth) as client:
            started_s = self._clock.monotonic_s()
            first_s, pieces = None, 0
            stream = await client.chat.completions.create(
                model=gateway.offer.models[0].public, messages=_PROMPT, max_tokens=48, stream=True
            )
            async for event in stream:
                text = event.choices[0].delta.content if event.choices else None
                if text:
                    first_s = first_s if first_s is not None else self._clock.monotonic_s() - started_s
                    pieces += 1
                    self._say.stream(text)
        self._say.end_stream()
        if first_s is None or auth.last_payment is None:
            raise CommandError("the paid stream brought no text", code=ExitCode.REFUSED)
        total_s = self._clock.monotonic_s() - started_s
        self._say.say(
            f"{pieces} pieces; the first after {first_s * 1000:.0f} ms, the last after {total_s * 1000:.0f} ms."
        )
        receipt = await self._settled_receipt(http, auth.last_payment.receipt_url)
        self._show_receipt(receipt)
        self._show_balances(before, await self._balances(chain))

    async def _settled_receipt(self, http: httpx2.AsyncClient, url: str) -> Mapping[str, Any]:
        """A stream's receipt is final once the facilitator has answered, which is beside the stream."""
        async with asyncio.timeout(_WAIT_S):
            while True:
                receipt: dict[str, Any] = (await http.get(url)).json()
                if receipt["state"] not in ("claimed", "serving", "served", "settling", "settle_unknown"):
                    return receipt
                await asyncio.sleep(0.05)

    def _show_receipt(self, receipt: Mapping[str, Any]) -> None:
        settled = format_amount(int(receipt["settledAtomic"] or 0), USDC.decimals)
        self._say.facts(
            "Receipt",
            {
                "id": receipt["id"],
                "state": f"{receipt['state']}, delivery {receipt['delivery']}",
                "settled": f"{settled} {USDC.symbol}",
                "payer": receipt["payer"],
                "paid to": receipt["payTo"],
                "transaction": receipt["transaction"],
            },
        )

    async def _balances(self, chain: DevnetChain) -> tuple[int, int]:
        return await chain.balance(USDC, self._buyer.address), await chain.balance(USDC, self._seller.address)

    def _show_balances(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        def change(index: int) -> str:
            texts = (format_amount(balances[index], USDC.decimals) for balances in (before, after))
            return f" {USDC.symbol}  →  ".join(texts) + f" {USDC.symbol}"

        self._say.facts("Balances", {"buyer": change(0), "seller": change(1)})
        if after[1] - before[1] != self._price_atomic or before[0] - after[0] != self._price_atomic:
            raise CommandError("the balances did not move by the price", code=ExitCode.BUG)

    async def _fill(self, gateway: Gateway, http: httpx2.AsyncClient) -> None:
        self._say.heading(f"3. With {MAX_INFLIGHT} answers in flight, the next request is not asked for money")
        auth = PaymentAuth(self._buyer, max_price=self._price, budget=_POCKET_MONEY)
        async with self._client(gateway, auth) as client, AsyncExitStack() as streams:
            for _ in range(MAX_INFLIGHT):
                stream = await client.chat.completions.create(
                    model=gateway.offer.models[0].public,
                    messages=_PROMPT,
                    max_tokens=_LONG_ANSWER_TOKENS,
                    stream=True,
                )
                await streams.enter_async_context(stream)
            answer = await http.post("/v1/chat/completions", json=self._request(gateway))
        self._expect(answer, 429)
        self._say.say(
            f"429 Too Many Requests, Retry-After: {answer.headers['Retry-After']} s, "
            f"quote: {answer.headers.get('PAYMENT-REQUIRED', 'none')}. Nobody pays into a full shop."
        )

    async def _keep(self, gateway: Gateway, facilitator_url: str) -> None:
        key_file = self._folder / "buyer.key"
        self._buyer.write_key_file(key_file)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # before the person is told that Ctrl-C stops everything
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self._say.facts(
            "Still running; Ctrl-C stops everything",
            {
                "gateway": f"{gateway.url}/v1",
                "status": f"{gateway.url}/status",
                "metrics": f"{gateway.url}/metrics",
                "upstream": gateway.config.upstream_url,
                "facilitator": facilitator_url,
                "buyer's key": key_file,
            },
        )
        self._say.say("Try:")
        self._say.say(f"  obol pay {gateway.url}/v1/chat/completions --key-file {key_file} \\")
        self._say.say(f"      --model {gateway.offer.models[0].public} --prompt Hello --stream --text")
        await stop.wait()

    def _client(self, gateway: Gateway, auth: PaymentAuth) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(auth=auth)
        return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", http_client=http, max_retries=0)

    def _request(self, gateway: Gateway) -> dict[str, Any]:
        return {"model": gateway.offer.models[0].public, "messages": _PROMPT, "max_tokens": 48}

    def _expect(self, answer: httpx2.Response, status: int) -> None:
        if answer.status_code != status:
            message = f"the gateway answered {answer.status_code} where {status} was expected: {answer.text[:200]}"
            raise CommandError(message, code=ExitCode.REFUSED)


def _quiet() -> structlog.typing.FilteringBoundLogger:
    return make_logger(as_json=False, level="error")
