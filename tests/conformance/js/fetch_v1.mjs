// The official v1 client, as its README says: x402-fetch.
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";
import { buy, key } from "./common.mjs";

const signer = await createSigner("base-sepolia", key);

await buy(
  (fetch) => wrapFetchWithPayment(fetch, signer),
  (headers) => headers.has("X-PAYMENT-RESPONSE") ? decodeXPaymentResponse(headers.get("X-PAYMENT-RESPONSE")) : null,
);
