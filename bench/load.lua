-- wrk's side of the load: POST one body for ever, with a payment of its own each time where a file of them is given.
-- Usage: wrk ... -s load.lua URL -- BODY-FILE [PAYMENTS-FILE]. Ends early when the payments are used up.

local head, body, payments, used

function init(args)
  local file = assert(io.open(args[1], "rb"))
  body = file:read("*a")
  file:close()
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"]
    .. "\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\n"
  if args[2] then
    payments, used = {}, 0
    for line in io.lines(args[2]) do payments[#payments + 1] = line end
  end
end

function request()
  if not payments then return head .. "\r\n" .. body end
  used = used + 1
  if used >= #payments then wrk.thread:stop() end
  return head .. "PAYMENT-SIGNATURE: " .. payments[math.min(used, #payments)] .. "\r\n\r\n" .. body
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'FIGURES {"requests":%d,"duration_us":%d,"p50_us":%.1f,"p99_us":%.1f,"bad_status":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
