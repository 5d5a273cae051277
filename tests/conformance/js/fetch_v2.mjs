// The official v2 client, as its README says: @x402/fetch with the exact scheme of @x402/evm.
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { buy, key } from "./common.mjs";

const client = new x402Client().register("eip155:*", new ExactEvmScheme(privateKeyToAccount(key)));

await buy(
  (fetch) => wrapFetchWithPayment(fetch, client),
  (headers) => headers.has("PAYMENT-RESPONSE") ? decodePaymentResponseHeader(headers.get("PAYMENT-RESPONSE")) : null,
);
