"""PaymentAuth: pays 402s inside any httpx2 client, and so inside the official OpenAI client, within a budget.

    client = openai.OpenAI(
        base_url="https://seller.example/v1", api_key="unused",
        http_client=openai.DefaultHttpxClient(auth=PaymentAuth.from_key_file("key", max_price="0.01", budget="1")),
    )

What it keeps to:

- One request, one payment. An answer 402 to a paid request raises `PaymentRefusedError`; nothing is signed twice.
- The amount is held against the budget before it is signed, and stays held while it may still move.
- After a lost answer the same payment is presented again with the same request (same method, address and body), also
  when the OpenAI client retries by itself; never a second one. A payment that a busy seller declined (429, 503) is
  used for the next request on the same terms.
- With `unresolved`, that holds for later processes too: see `obol.buyer.unresolved`.
- A payment goes to the origin that the caller addressed, never along a redirect.
- Answers are not buffered: of a 402 at most 64 KiB are read, of anything else nothing.
- With `allowances`, who never approved Permit2 can pay what is moved by it, where the seller offers
  `eip2612GasSponsoring`: a permit of exactly the amount, for Permit2 and nobody else, goes with the payment.
"""

import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx2

from obol.adapters.clock import SystemClock
from obol.adapters.signer_local import LocalSigner
from obol.buyer.answers import (
    BUSY_STATUSES,
    PAYMENT_REQUIRED_STATUS,
    is_declined,
    is_open,
    raise_if_refused,
    read_error,
    refuse_foreign,
)
from obol.buyer.paid_request import fingerprint, has_payment, paid_request
from obol.buyer.payment import Payment, PaymentStatus
from obol.buyer.permits import permit_nonce
from obol.buyer.purse import UNIT_DECIMALS, Purse, Signed, Terms
from obol.buyer.shelf import Shelf
from obol.buyer.steps import Flow, Step, advance, run
from obol.buyer.streams import WatchedStream
from obol.buyer.unresolved import Unresolved, note
from obol.buyer.verdict import Verdict, judge
from obol.core.clock import Clock
from obol.core.money import parse_amount
from obol.core.networks import DEFAULT_CATALOGUE, Asset, Catalogue
from obol.errors import UnpayableError
from obol.x402.allowances import Allowances
from obol.x402.authorization import parse_authorization
from obol.x402.client import (
    NONCE_BYTES,
    BuyerPolicy,
    choose,
    find_asset,
    offers_gas,
    payment_headers,
    read_challenge,
    sign_exact,
    sponsor_gas,
)
from obol.x402.eip712 import checksum_address
from obol.x402.models import PaymentPayload, PaymentRequired, PaymentRequirements
from obol.x402.signer import Signer

DEFAULT_MAX_PRICE = "0.10"
RECEIPT_ADDRESS = "X-Obol-Receipt"

_UNKNOWN = PaymentStatus.UNKNOWN


class PaymentAuth(httpx2.Auth):
    """An `httpx2.Auth` that pays; one may serve many clients, threads and tasks at once.

    `max_price` is the most that one request may cost, `budget` the most that all may, both decimal strings in whole
    units of the asset (None: no limit); assets of different kinds count together. `networks` names the allowed ones
    (None: all of the catalogue). `on_payment` is called with each payment when its answer's head arrives or is lost,
    from the thread or task that sends. `allowances` tells whether a payment needs a permit (None: none is signed); it
    needs asyncio where the client is async. `unresolved` keeps payments beyond the process (None: in memory only); it
    reads and writes in the thread or task that sends.

    Sending raises `BudgetExceededError`, `UnpayableError`, `PaymentRefusedError`, `PeerProtocolError`,
    `ChainUnavailableError` (from `allowances`; nothing is signed) and what the client raises; the constructor
    `SettingsError`.
    """

    requires_request_body = True

    def __init__(  # noqa: PLR0913 - each is a setting of its own, by keyword
        self,
        signer: Signer,
        *,
        max_price: str | None = DEFAULT_MAX_PRICE,
        budget: str | None = None,
        catalogue: Catalogue = DEFAULT_CATALOGUE,
        networks: Sequence[str] | None = None,
        allowances: Allowances | None = None,
        unresolved: Unresolved | None = None,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        on_payment: Callable[[Payment], None] | None = None,
    ) -> None:
        if max_price is not None:
            parse_amount(max_price, UNIT_DECIMALS, field="max_price")
        allowed = (
            None if networks is None else frozenset(catalogue.network(n, field="networks").caip2 for n in networks)
        )
        self._policy = BuyerPolicy(max_price=max_price, networks=allowed)
        self._signer = signer
        self._catalogue = catalogue
        self._allowances = allowances
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._on_payment = on_payment
        self._purse = Purse(budget)
        self._ids = itertools.count(1)
        self._shelf = Shelf(signer.address, catalogue, self._policy, self._purse, self._ids, unresolved)

    @classmethod
    def from_key_file(  # noqa: PLR0913 - as above
        cls,
        path: str | Path,
        *,
        max_price: str | None = DEFAULT_MAX_PRICE,
        budget: str | None = None,
        catalogue: Catalogue = DEFAULT_CATALOGUE,
        networks: Sequence[str] | None = None,
        allowances: Allowances | None = None,
        unresolved: Unresolved | None = None,
        on_payment: Callable[[Payment], None] | None = None,
    ) -> Self:
        """One that signs with the private key in a file. Raises `SettingsError` for a file that is not one."""
        return cls(
            LocalSigner.from_key_file(Path(path)),
            max_price=max_price,
            budget=budget,
            catalogue=catalogue,
            networks=networks,
            allowances=allowances,
            unresolved=unresolved,
            on_payment=on_payment,
        )

    @property
    def address(self) -> str:
        """The address that pays."""
        return self._signer.address

    @property
    def payments(self) -> tuple[Payment, ...]:
        """The latest 1000 payments, oldest first, as last known."""
        return self._purse.payments

    @property
    def last_payment(self) -> Payment | None:
        """The latest payment, or None. After a lost answer it has the `headers` to present again."""
        return self.payments[-1] if self.payments else None

    @property
    def spent(self) -> str:
        """What is known to be paid, as a decimal string."""
        return self._purse.spent

    @property
    def unknown(self) -> str:
        """What may or may not have been paid, as a decimal string: held against the budget until it is known."""
        return self._purse.unknown

    @property
    def unknown_count(self) -> int:
        """How many payments that is."""
        return self._purse.unknown_count

    @property
    def remaining(self) -> str | None:
        """What may still be signed for: the budget less all that is paid, unknown, or could still be settled."""
        return self._purse.remaining(self._clock.now_s())

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.read()
        with closing(self._flow(request)) as flow:
            step: Step | None = next(flow)
            while step is not None:
                if isinstance(step, httpx2.Request):
                    answer: Any = yield step
                elif isinstance(step, httpx2.Response):
                    step.read()
                    answer = step
                else:
                    answer = run(step)
                step = advance(flow, answer)

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        await request.aread()
        with closing(self._flow(request)) as flow:
            step: Step | None = next(flow)
            while step is not None:
                if isinstance(step, httpx2.Request):
                    answer: Any = yield step
                elif isinstance(step, httpx2.Response):
                    await step.aread()
                    answer = step
                else:
                    answer = await step
                step = advance(flow, answer)

    def _flow(self, request: httpx2.Request) -> Flow:
        """One purchase: ask, read the quote, sign (or take what is out already), pay, conclude."""
        response: httpx2.Response = yield request
        if response.status_code != PAYMENT_REQUIRED_STATUS or has_payment(request):
            return
        asked = response.request
        refuse_foreign(request, asked)
        body = yield from read_error(response)
        required = read_challenge(response.status_code, response.headers, body)
        purchase = fingerprint(request)
        signed = self._shelf.take_open(purchase, self._clock.now_s())
        if signed is None:
            signed = yield from self._sign(required, asked, purchase)
        yield from self._pay(asked, signed)

    def _sign(self, required: PaymentRequired, asked: httpx2.Request, purchase: str) -> Generator[Step, Any, Signed]:
        requirements = choose(required, self._catalogue, self._policy)
        asset = find_asset(requirements, self._catalogue)
        if asset is None:
            raise UnpayableError(f"asset {requirements.asset!r} is not known")
        terms = Terms(str(asked.url.origin), requirements, required.x402_version)
        now_s = self._clock.now_s()
        declined = self._shelf.take_declined(terms, purchase, now_s)
        if declined is not None:
            return declined
        units = self._purse.reserve(asset, int(requirements.amount), now_s)
        signed: Signed | None = None
        try:
            nonce = yield from self._permit_nonce(required, requirements, asset)
            payload = self._payload(required, requirements, asset, nonce)
            payment = self._payment(payload, asset, asked, version=required.x402_version, permit_nonce=nonce)
            signed = Signed(terms=terms, purchase=purchase, payment=payment, units=units)
            self._shelf.write_down(signed)
            self._purse.add(signed)
        except BaseException:
            self._purse.release(units)  # nothing was signed, or what was is lost with this frame
            _forget(signed)
            raise
        return signed

    def _permit_nonce(
        self, required: PaymentRequired, requirements: PaymentRequirements, asset: Asset
    ) -> Generator[Step, Any, int | None]:
        """The nonce of the permit that has to go with a payment, None where none has to, or none can be known of."""
        if self._allowances is None or not offers_gas(required, asset):
            return None
        nonce: int | None = yield permit_nonce(self._allowances, asset, self._signer.address, int(requirements.amount))
        return nonce

    def _payload(
        self, required: PaymentRequired, requirements: PaymentRequirements, asset: Asset, nonce: int | None
    ) -> PaymentPayload:
        payload = sign_exact(
            self._signer,
            requirements,
            asset=asset,
            now_s=self._clock.now_s(),
            nonce=self._entropy(NONCE_BYTES),
            version=required.x402_version,
        )
        return payload if nonce is None else sponsor_gas(payload, required, self._signer, asset, token_nonce=nonce)

    def _payment(
        self, payload: PaymentPayload, asset: Asset, asked: httpx2.Request, *, version: int, permit_nonce: int | None
    ) -> Payment:
        authorization = parse_authorization(payload.payload)
        return Payment(
            id=next(self._ids),
            url=str(asked.url),
            amount_atomic=authorization.value_atomic,
            asset=asset,
            pay_to=checksum_address(authorization.to),
            valid_before_s=authorization.valid_before_s,
            status=PaymentStatus.SENT,
            permit_nonce=permit_nonce,
            headers=payment_headers(payload, version),
        )

    def _pay(self, asked: httpx2.Request, signed: Signed) -> Flow:
        paid = paid_request(asked, signed.payment.headers)
        try:
            response: httpx2.Response = yield paid
            error = yield from read_error(response)
        except GeneratorExit:  # the client got no answer: the seller may have the payment
            self._conclude(signed, Verdict(_UNKNOWN, reason="no_answer"))
            self._purse.keep(signed)
            raise
        payment = self._take_in(signed, response, error, is_ours=response.request is paid)
        raise_if_refused(response, error, payment)

    def _take_in(self, signed: Signed, response: httpx2.Response, error: bytes, *, is_ours: bool) -> Payment:
        """The answer's head is here: conclude, and see to it that a lost body does not cost a second payment.

        `is_ours` is False where a redirect was followed, without the payment: that answer is not about it.
        """
        location = response.headers.get(RECEIPT_ADDRESS, "") if is_ours else ""
        payment = self._conclude(
            signed,
            judge(response.status_code, response.headers) if is_ours else Verdict(_UNKNOWN, reason="redirected"),
            receipt_url=str(response.request.url.join(location)) if location else "",
            is_reusable=response.status_code in BUSY_STATUSES,
        )
        resolve = _forget if is_ours else _let_go
        if response.is_success:
            response.stream = WatchedStream(response.stream, partial(self._keep, signed), partial(resolve, signed))
        elif is_open(response, error, payment):
            self._keep(signed)
        elif is_declined(response, payment):
            note(signed.kept, payment)
        else:
            resolve(signed)
        return payment

    def _keep(self, signed: Signed) -> None:
        """The answer is still to come: the next identical request presents this payment again."""
        self._purse.keep(signed)
        note(signed.kept, signed.payment)

    def _conclude(
        self, signed: Signed, verdict: Verdict, *, receipt_url: str = "", is_reusable: bool = False
    ) -> Payment:
        payment = self._purse.conclude(signed, verdict, receipt_url=receipt_url, is_reusable=is_reusable)
        if self._on_payment is not None:
            self._on_payment(payment)
        return payment


def _forget(signed: Signed | None) -> None:
    """It has had its answer, was refused for good, or never left: nothing is kept of it."""
    if signed is not None and signed.kept is not None:
        signed.kept.remove()


def _let_go(signed: Signed) -> None:
    """It stays kept: what was answered was not about it."""
    if signed.kept is not None:
        signed.kept.release()
