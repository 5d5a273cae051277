"""The short page that a person sees who opens a paid address in a browser."""

from html import escape

from obol.core.money import format_amount
from obol.core.offer import Api, Offer
from obol.inference.routes import SALE_PATHS

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} &middot; {price}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }}
dt {{ font-weight: 600; margin-top: .6rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem; border: 1px solid #8884; border-radius: .4rem; }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>{description}. This is an API for programs: each request is paid in stablecoins over HTTP 402 (x402).</p>
<dl>
<dt>Price</dt><dd>{price} per request</dd>
<dt>Network</dt><dd>{network} ({caip2})</dd>
<dt>Asset</dt><dd>{symbol}, {asset}</dd>
<dt>Paid to</dt><dd>{pay_to}</dd>
<dt>Models</dt><dd>{models}</dd>
</dl>
<p>Buy one answer from a terminal:</p>
<pre>obol pay {resource} --model {model} {body} --max-price {amount} --key-file wallet.key</pre>
<p><a href="{models_url}">Models</a></p>
</body>
</html>
"""

_CHATS = tuple(SALE_PATHS[api] for api in (Api.CHAT, Api.OLLAMA_CHAT))
"""Where a body made of a prompt alone is a whole request."""


def quote_page(offer: Offer, resource_url: str) -> str:
    """What is sold, for how much, and how to buy it, as HTML. Everything from outside is escaped."""
    asset = offer.asset
    amount = format_amount(offer.price_atomic, asset.decimals)
    fields = {
        "name": offer.name,
        "description": offer.description.rstrip("."),
        "price": f"{amount} {asset.symbol}",
        "amount": amount,
        "network": asset.network.name,
        "caip2": asset.network.caip2,
        "symbol": asset.symbol,
        "asset": asset.address,
        "pay_to": offer.pay_to,
        "models": ", ".join(model.public for model in offer.models),
        "model": offer.models[0].public if offer.models else "MODEL",
        "resource": resource_url,
        "body": '--prompt "Hello"' if resource_url.endswith(_CHATS) else "-d @request.json",
        "models_url": f"{_base(resource_url)}/v1/models",
    }
    return _PAGE.format_map({name: escape(value) for name, value in fields.items()})


def _base(resource_url: str) -> str:
    """The address under which the sold paths are: a prefix of a proxy's stays."""
    path = next((path for path in SALE_PATHS.values() if resource_url.endswith(path)), "")
    return resource_url.removesuffix(path).rstrip("/")
