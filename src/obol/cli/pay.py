"""`obol pay`: one request, like curl, paid for when the seller asks; the answer on stdout, the receipt on stderr."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode
from obol.errors import ChainUnavailableError, PaymentRefusedError

if TYPE_CHECKING:
    import httpx2

    from obol.adapters.kept_payments import KeptPayments
    from obol.buyer.payment import Payment
    from obol.buyer.payment_auth import PaymentAuth
    from obol.cli.pay_request import PayRequest
    from obol.x402.allowances import Allowances

DEFAULT_MAX_PRICE = "0.10"
NO_ANSWER = "no_answer"
"""PaymentAuth's reason for a payment that was sent and not answered."""
_NOT_ALLOWED = "permit2_allowance_required"
"""Its reason for a refusal because Permit2 may not move the amount."""
_RPC_HINT = "Or give --rpc URL: where the seller offers eip2612GasSponsoring, a permit goes with the payment instead."
_AGAIN = "Nothing is kept of this payment. The same command pays anew."
T = TypeVar("T")

_EPILOG = """Exit codes: 0 the request succeeded (with --dry-run: there is a quote), 2 usage, 3 connection,
4 the seller answered with an error, 5 it answered 404, 6 the quote is above --max-price, 7 the payment was refused or
cannot be made. A payment whose fate is unknown is said so on stderr, whatever the code.

The signed payment is kept in DIR/payments (0600: it is money) from before it is sent until its answer was whole or the
seller refused it for good. Until then the same request (method, URL, body) with the same key presents it again and
signs no other: after a lost answer, a 503 settlement_unknown, a kill, or when an answer is owed, run the same command
again."""


@click.command(epilog=_EPILOG)
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", help="HTTP method; POST when there is a body.")
@click.option("-d", "--data", metavar="TEXT|@FILE|-", help="Body: text, a file, or - for stdin. JSON unless -H says.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Request header (repeatable).")
@click.option("--model", metavar="NAME", help="Model to put in the JSON body.")
@click.option("--prompt", metavar="TEXT", help="Make the body: a chat request with this message; needs --model.")
@click.option("--stream", is_flag=True, help="Ask for a stream in the JSON body.")
@click.option("--max-price", default=DEFAULT_MAX_PRICE, show_default=True, help="Pay at most this, in whole units.")
@click.option(
    "--key-file",
    envvar="OBOL_KEY_FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key to pay with (or OBOL_KEY_FILE); `obol wallet new` makes one.",
)
@click.option(
    "--rpc",
    envvar="OBOL_RPC",
    metavar="URL[,URL…]",
    help="Nodes of the chain (or OBOL_RPC): lets a wallet that never approved Permit2 pay what is moved by it, without "
    "gas, where the seller offers that.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where payments are kept until they are resolved.  [default: by XDG]",
)
@click.option(
    "--new-payment",
    "is_new",
    is_flag=True,
    help="Sign another payment although one of this request is kept: that one may have been paid, or still be.",
)
@click.option("--dry-run", is_flag=True, help="Show the quote; sign and pay nothing.")
@click.option("--text", "as_text", is_flag=True, help="Print only the text of the answer, as it arrives.")
@click.option("-i", "--include", is_flag=True, help="Print the status and headers of the answer too.")
@click.option("--json", "as_json", is_flag=True, help="The receipt (stderr) or quote (stdout) as JSON.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Longest silence to bear.",
)
def pay(url: str, **options: Any) -> None:
    """Send one request to URL, paying for it when the seller asks (HTTP 402, x402).

    The answer goes to stdout as its bytes arrive, the receipt to stderr.
    """
    from obol.cli.pay_request import BodyArguments, build_request

    body = BodyArguments(options["data"], options["model"], options["prompt"], options["stream"])
    request = build_request(url, options["method"], options["headers"], body)
    if options["dry_run"]:
        _show_quote(request, options)
    else:
        _buy(request, options)


def _buy(request: "PayRequest", options: dict[str, Any]) -> None:
    """Send, print, and tell what was paid: also when it ends badly, because the money may have moved."""
    if options["key_file"] is None:
        raise click.UsageError("--key-file (or OBOL_KEY_FILE) says what to pay with; `obol wallet new` makes a key.")
    kept = _kept_payments(options)
    auth = _auth(options, kept)
    try:
        status_code = _connected(lambda: _send_until_known(request, auth, options), request.url)
    except PaymentRefusedError as refused:
        hint = _RPC_HINT if refused.reason == _NOT_ALLOWED and not options["rpc"] else _AGAIN
        raise output.CommandError(str(refused), code=ExitCode.PAYMENT, hint=hint) from None
    except ChainUnavailableError as error:
        raise output.CommandError(f"--rpc: {error}", code=ExitCode.CONNECTION, hint="Nothing was signed.") from None
    finally:
        if auth.last_payment is not None:
            _tell(auth.last_payment, kept, options)
        kept.close()
    if status_code >= 400:
        code = ExitCode.NOT_FOUND if status_code == 404 else ExitCode.REFUSED
        raise output.CommandError(f"the seller answered {status_code}", code=code)


def _kept_payments(options: dict[str, Any]) -> "KeptPayments":
    from obol.adapters.kept_payments import KeptPayments, payments_folder
    from obol.adapters.paths import default_data_dir

    return KeptPayments(payments_folder(options["data_dir"] or default_data_dir(os.environ)), field="--data-dir")


def _auth(options: dict[str, Any], kept: "KeptPayments") -> "PaymentAuth":
    from obol.buyer.payment_auth import PaymentAuth
    from obol.buyer.unresolved import Unresolved
    from obol.cli.pay_receipt import ignored_words, presented_words
    from obol.errors import SettingsError

    words = ignored_words if options["is_new"] else presented_words
    unresolved = Unresolved(kept, on_found=lambda found: output.note(words(found)), is_ignored=options["is_new"])
    allowances = _allowances(options["rpc"])
    try:
        return PaymentAuth.from_key_file(
            options["key_file"], max_price=options["max_price"], allowances=allowances, unresolved=unresolved
        )
    except SettingsError as error:  # it names its argument; a person gave a flag
        if error.field != "max_price":
            raise
        raise SettingsError("--max-price", str(error).removeprefix("max_price: ")) from None


def _allowances(rpc: str | None) -> "Allowances | None":
    urls = [url.strip() for url in (rpc or "").split(",") if url.strip()]
    if not urls:
        return None
    from obol.adapters.allowances_evm import EvmAllowances

    return EvmAllowances(urls)


def _send_until_known(request: "PayRequest", auth: "PaymentAuth", options: dict[str, Any]) -> int:
    """Send; when the answer to a paid request is lost, ask once more for it with the same payment."""
    import httpx2

    try:
        return _send(request, auth, options)
    except httpx2.TimeoutException:
        raise
    except httpx2.TransportError:
        lost = auth.last_payment
        if lost is None or lost.reason != NO_ANSWER:
            raise
        output.note("the connection broke before the answer: asking again with the same payment")
        return _send(request, auth, options)


def _send(request: "PayRequest", auth: "PaymentAuth", options: dict[str, Any]) -> int:
    with (
        _client(options, auth) as client,
        client.stream(request.method, request.url, content=request.body, headers=request.headers) as response,
    ):
        if options["include"]:
            _print_head(response)
        is_text = options["as_text"] and response.is_success
        _print_body(_texts(response) if is_text else response.iter_bytes())
        return response.status_code


def _client(options: dict[str, Any], auth: "PaymentAuth | None" = None) -> "httpx2.Client":
    import httpx2

    # identity: the bytes are shown as they come. Redirects are shown, not followed, as curl does.
    return httpx2.Client(auth=auth, timeout=options["timeout_s"], headers={"Accept-Encoding": "identity"})


def _connected(call: Callable[[], T], url: str) -> T:
    """The call's result; a failing connection as exit code 3."""
    import httpx2

    try:
        return call()
    except httpx2.InvalidURL as error:
        raise output.CommandError(f"{url!r} is not an address: {error}", code=ExitCode.USAGE) from None
    except httpx2.TimeoutException as error:
        message = f"no answer in time ({type(error).__name__})"
        raise output.CommandError(message, code=ExitCode.CONNECTION, hint="--timeout says how long to wait.") from None
    except httpx2.TransportError as error:
        raise output.CommandError(f"{url}: {str(error) or type(error).__name__}", code=ExitCode.CONNECTION) from None


def _print_head(response: "httpx2.Response") -> None:
    lines = [f"{response.http_version} {response.status_code} {response.reason_phrase}"]
    lines += [f"{name}: {value}" for name, value in response.headers.multi_items()]
    _write("".join(f"{output.printable(line)}\r\n" for line in [*lines, ""]).encode())


def _print_body(chunks: Iterable[bytes]) -> None:
    last = b""
    for chunk in chunks:
        _write(chunk)
        last = chunk or last
    if last and not last.endswith(b"\n") and sys.stdout.isatty():
        _write(b"\n")  # what follows on stderr begins a line of its own; a file gets the answer's bytes only


def _texts(response: "httpx2.Response") -> Iterable[bytes]:
    from obol.cli.chat_text import ChatText

    text = ChatText(response.headers.get("Content-Type", ""))
    for chunk in response.iter_bytes():
        yield text.feed(chunk).encode()
    yield (text.end() + "\n").encode()


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()  # live: a chunk is shown when it arrives


def _tell(payment: "Payment", kept: "KeptPayments", options: dict[str, Any]) -> None:
    """The receipt, on stderr. Asks the seller's receipt address while the head did not say which transaction."""
    from obol.cli.pay_receipt import receipt_record, receipt_words, wait_for_receipt

    final = wait_for_receipt(payment) if payment.receipt_url and not payment.transaction else None
    record = receipt_record(payment, final, kept=next(iter(kept.held), ""))
    if options["as_json"]:
        output.print_json(record, to_stderr=True)
    else:
        output.note(receipt_words(record))


def _show_quote(request: "PayRequest", options: dict[str, Any]) -> None:
    from obol.cli.pay_quote import free_words, quote_record, quote_words, refused_words
    from obol.core.networks import DEFAULT_CATALOGUE

    with _client(options) as client:
        response = _connected(
            lambda: client.request(request.method, request.url, content=request.body, headers=request.headers),
            request.url,
        )
    if response.status_code != 402:
        if response.status_code >= 400:
            code = ExitCode.NOT_FOUND if response.status_code == 404 else ExitCode.REFUSED
            raise output.CommandError(refused_words(response), code=code)
        output.note(free_words(response.status_code))
        return
    record = quote_record(response, DEFAULT_CATALOGUE, options["max_price"])
    if output.wants_json(options["as_json"]):
        output.print_json(record)
    else:
        click.echo(output.printable(quote_words(record)))
