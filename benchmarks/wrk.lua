-- wrk -s wrk.lua URL -- TARGET HOST: eight header fields, and what came of it as JSON.
function init(args)
    wrk.path = args[1]
    wrk.headers = {
        ["Host"] = args[2],
        ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        ["Accept-Language"] = "en-US,en;q=0.5",
        ["Accept-Encoding"] = "gzip, deflate",
        ["Cookie"] = "session=0123456789abcdef0123456789abcdef",
        ["Cache-Control"] = "no-cache",
        ["Connection"] = "keep-alive",
    }
end

function done(summary, latency, requests)
    local e = summary.errors
    io.stderr:write(string.format(
        '{"done": %d, "errors": %d}\n',
        summary.requests, e.connect + e.read + e.write + e.status + e.timeout))
end
