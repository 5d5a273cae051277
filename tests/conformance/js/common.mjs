// What the buyers share: one purchase as the environment orders it, told as JSON lines on standard output:
// {"event": "first_chunk"} when the first bytes of the answer's body are here, then the outcome.
//
// OBOL_URL, OBOL_KEY (0x hex), OBOL_BODY (JSON), OBOL_HEADERS (JSON object: sent with the first request already).

export const key = process.env.OBOL_KEY;

const PAYMENT_HEADERS = ["PAYMENT-SIGNATURE", "X-PAYMENT"];

/** `wrap(fetch)` makes the client's paying fetch; `readReceipt(headers)` is the client's own decoder. */
export async function buy(wrap, readReceipt) {
  const outcome = { status: null, error: "", headers: {}, body: "", receipt: null, presented: {}, first_s: 0, last_s: 0 };
  const watched = (input, init) => {
    const headers = input instanceof Request ? input.headers : new Headers(init?.headers);
    for (const name of PAYMENT_HEADERS) {
      if (headers.has(name)) outcome.presented[name] = headers.get(name);
    }
    return fetch(input, init);
  };
  try {
    const started = performance.now();
    const response = await wrap(watched)(process.env.OBOL_URL, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...JSON.parse(process.env.OBOL_HEADERS) },
      body: process.env.OBOL_BODY,
    });
    outcome.status = response.status;
    outcome.headers = Object.fromEntries(response.headers);
    await readBody(response, started, outcome);
    outcome.receipt = readReceipt(response.headers);
  } catch (error) {
    outcome.error = `${error.name}: ${error.message}`;
  }
  tell(outcome);
}

async function readBody(response, started, outcome) {
  const decoder = new TextDecoder();
  for await (const chunk of response.body) {
    if (outcome.first_s === 0) {
      outcome.first_s = (performance.now() - started) / 1000;
      tell({ event: "first_chunk" });
    }
    outcome.body += decoder.decode(chunk, { stream: true });
  }
  outcome.last_s = (performance.now() - started) / 1000;
}

function tell(line) {
  console.log(JSON.stringify(line));
}
