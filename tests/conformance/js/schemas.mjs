// The official schemas as judges: OBOL_CHALLENGES is a JSON list of {header, body} of 402s; tells, per challenge, what
// each schema finds wrong.
import { decodePaymentRequiredHeader } from "@x402/core/http";
import { PaymentRequiredV1Schema, PaymentRequiredV2Schema } from "@x402/core/schemas";
import { PaymentRequirementsSchema } from "x402/types";

const judge = (schema, value) => schema.safeParse(value).error?.issues ?? [];

const verdicts = JSON.parse(process.env.OBOL_CHALLENGES).map(({ header, body }) => ({
  v2: judge(PaymentRequiredV2Schema, decodePaymentRequiredHeader(header)),
  v1: judge(PaymentRequiredV1Schema, body),
  oldV1: body.accepts.flatMap((entry) => judge(PaymentRequirementsSchema, entry)),
}));

console.log(JSON.stringify({ verdicts }));
