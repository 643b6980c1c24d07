"""The status page, in a browser, before a daemon whose S3 can be told to fail.

Usage: status_page.py <local-aws> <daemon> <chromium>; tests/clients on PYTHONPATH.
"""

import base64
import contextlib
import http.client
import http.server
import json
import pathlib
import re
import sys
import tempfile
import threading
import time
import unittest
from xml.sax.saxutils import escape

from playwright.sync_api import expect, sync_playwright
from run import TOKEN, Daemon, LocalAws

# The page asks every 2 s; a failing upload is tried again within a few.
WITHIN_MS = 60_000
EXECUTES = "<img src=x onerror=window.executed=1><script>window.executed=1</script>"
PHONE = {"width": 360, "height": 740}
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The contrast that WCAG 2.2 asks of text (criterion 1.4.3).
CONTRAST_MIN = 4.5
CONTRAST = """element => {
  const channels = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = color => channels(color)
    .map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  while (/, 0\\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const [dark, light] = [element, behind]
    .map((of, i) => luminance(getComputedStyle(of)[i ? 'backgroundColor' : 'color'])).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}"""


class Store:
    """Stands before the local AWS's S3: hands every request on, or refuses PUTs with `fault`."""

    def __init__(self, address):
        self.fault = None
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer(None)

            def do_PUT(self):
                self.answer(store.fault)

            def answer(self, fault):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if fault is None:
                    status, headers, answer = self.forward(body)
                else:
                    status, headers, answer = 403, [("x-amz-request-id", fault["request_id"])], error_document(fault)
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def forward(self, body):
                connection = http.client.HTTPConnection(address, timeout=30)
                with contextlib.closing(connection):
                    # The signature covers the headers, the host among them.
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        connection.putheader(name, value)
                    connection.endheaders(body)
                    answer = connection.getresponse()
                    return answer.status, answer.getheaders(), answer.read()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def error_document(fault):
    code, message, request_id = (escape(fault[name]) for name in ("code", "message", "request_id"))
    return f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{request_id}</RequestId></Error>".encode()


def fault(code, message, request_id="4442587FB7D0A2F9"):
    return {"code": code, "message": message, "request_id": request_id}


def unsigned_token(subject):
    """An OIDC token that nobody signed. It ends before the local AWS's own, so that that one is tried first."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return ".".join([part({"alg": "RS256", "kid": "any"}), part({"sub": subject, "exp": int(time.time()) + 3600}), "c2ln"])


class StatusPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        local_aws, program, chromium = sys.argv[1:4]
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="<b>spool")))
        (cls.folder / "token").write_text(unsigned_token(EXECUTES))
        cls.aws = LocalAws(local_aws)
        cls.addClassCleanup(cls.aws.bucket)
        cls.store = Store(cls.aws.environment["AWS_ENDPOINT_URL_S3"].removeprefix("http://"))
        cls.addClassCleanup(cls.store.close)
        cls.aws.environment |= {
            "AWS_ENDPOINT_URL_S3": cls.store.url,
            "ENV0_S3_LOG_BUCKET_PATH": "logs" + EXECUTES.replace("/", ""),
            "ENV0_S3_LOG_OIDC_TOKEN_FILE": str(cls.folder / "token"),
        }
        cls.daemon = Daemon(program, cls.folder, cls.aws)
        cls.addClassCleanup(cls.daemon.kill)
        playwright = cls.enterClassContext(sync_playwright())
        cls.browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.store.fault = None
        self.complaints, self.hosts = [], set()

    def open(self, **options):
        page = self.enterContext(contextlib.closing(self.browser.new_page(**options)))
        page.set_default_timeout(WITHIN_MS)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.policy = page.goto(f"http://127.0.0.1:{self.daemon.admin_port}/").headers["content-security-policy"]
        return page

    def tearDown(self):
        self.assertEqual(self.complaints, [], "the console is clean")
        self.assertLessEqual(self.hosts, {f"127.0.0.1:{self.daemon.admin_port}"}, "nothing comes from elsewhere")

    def send(self, log_type, *messages):
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
        with contextlib.closing(connection):
            body = "\n".join(json.dumps({"message": message}) for message in messages)
            connection.request("POST", f"/v1/logs/{log_type}", body, {"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            self.assertEqual(answer.status, 200)
            return json.load(answer)["object"]

    def card(self, page, log_type):
        return page.locator(f"[data-type={log_type}]")

    def shows(self, locator, text):
        expect(locator).to_contain_text(text, timeout=WITHIN_MS)

    def test_it_shows_both_types_and_the_objects_that_their_events_are_in(self):
        page = self.open()
        for log_type in ("env0-deployments", "env0-audits"):
            key = self.send(log_type, "one")
            self.shows(self.card(page, log_type).locator(".objects"), key)
        self.shows(page.locator("#verdict"), "Everything accepted is in S3.")
        self.shows(page.locator("#credentials"), self.aws.environment["ENV0_S3_LOG_ROLE_ARN"])
        self.shows(page.locator("#heads"), "env0-audits")

    def test_the_figures_follow_without_a_reload(self):
        page = self.open()
        counts = self.card(page, "env0-audits").locator("dl")
        self.shows(counts, "recovered")
        before = int(re.search(r"([\d,]+) in, ", counts.inner_text())[1].replace(",", ""))
        page.evaluate("window.stayed = true")
        key = self.send("env0-audits", *["again"] * 5)
        self.shows(counts, f"{before + 5} in, ")
        self.shows(self.card(page, "env0-audits").locator(".objects"), key)
        self.assertTrue(page.evaluate("window.stayed"))

    def test_an_outage_shows_what_s3_said_and_the_remedy_until_it_is_over(self):
        page = self.open()
        trouble = self.card(page, "env0-deployments").locator(".trouble")
        self.store.fault = fault("AccessDenied", "User is not authorized to perform: s3:PutObject")
        self.send("env0-deployments", "one")
        self.shows(page.locator("#verdict"), "Uploads fail: env0-deployments")
        self.shows(page.locator("#verdict"), "1 event is safe on disk.")
        for told in ("Uploads fail for", "AccessDenied", "4442587FB7D0A2F9", "allow the role s3:PutObject"):
            self.shows(trouble, told)
        self.store.fault = None
        self.shows(trouble, "The last outage ended")
        self.shows(page.locator("#verdict"), "Events flow")

    def test_the_pull_is_shown_with_its_position_rate_and_error_and_only_where_something_is_pulled(self):
        page = self.open()
        self.shows(page.locator("#verdict"), "Events flow")
        self.assertTrue(page.locator("#pulls").is_hidden())
        hour_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7200))
        error = {"since": hour_ago, "latest": hour_ago, "attempts": 3, "message": "GET /audit/events: 403" + EXECUTES,
                 "remedy": "give the key's role that permission", "code": "forbidden", "request_id": None}
        pulled = {"type": "env0-audits", "organization": "acme", "position": hour_ago, "events_pulled": 1234,
                  "events_cut": 0, "events_odd": 0, "last_round": None, "last_round_millis": 0, "error": error}

        def with_a_pull(route):
            answer = route.fetch()
            route.fulfill(response=answer, json=answer.json() | {"pull": [pulled]})

        page.route("**/status", with_a_pull)
        for told in ("env0-audits of acme", "2.0 h ago", "1,234 events", EXECUTES, "give the key's role", "3 attempts"):
            self.shows(page.locator("#pulls"), told)
        self.shows(page.locator("#verdict"), "The pull from env0 fails: env0-audits")
        for told in ("Since ", "Remedy: give the key's role that permission"):
            self.shows(page.locator("#verdict"), told)
        self.shows(page.locator("#pulls"), "what came later is not fetched yet")
        self.assertIsNone(page.evaluate("window.executed || null"))
        pulled["error"] = None
        self.shows(page.locator("#verdict"), "Events flow")
        page.unroute("**/status")

    def test_what_is_refused_is_shown_and_only_where_something_is(self):
        page, refused = self.open(), {"requests_refused_total": {}, "connections_refused_total": {}}

        def with_refusals(route):
            answer = route.fetch()
            route.fulfill(response=answer, json=answer.json() | refused)

        page.route("**/status", with_refusals)
        self.shows(page.locator("#verdict"), "Events flow")
        expect(page.locator("#refused")).to_be_hidden(timeout=WITHIN_MS)
        refused["requests_refused_total"] = {"400": 1234, "413": 1}
        refused["connections_refused_total"] = {"malformed": 2}
        for told in ("400 1,234, 413 1", "malformed 2", "The log names client and reason"):
            self.shows(page.locator("#refused"), told)

    def test_cloudwatch_is_a_lane_of_its_own_and_shown_only_where_there_is_one(self):
        page = self.open()
        self.shows(page.locator("#verdict"), "Events flow")
        self.assertTrue(page.locator("#cloudwatch").is_hidden())
        hour_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7200))
        error = {"since": hour_ago, "latest": hour_ago, "attempts": 3, "message": "PutLogEvents: denied" + EXECUTES,
                 "remedy": "allow logs:PutLogEvents", "code": "AccessDeniedException", "request_id": "r"}
        audits = {"type": "env0-audits", "group": "team/env0-audits", "batches": 7, "bytes": 2048, "oldest": hour_ago,
                  "events_sent": 1234, "events_skipped": 56, "last_sent": None, "error": error}
        session = {"role_arn": "arn:role", "state": "valid", "waits_for": None, "remedy": None, "last_error": None}

        def with_a_lane(route):
            answer = route.fetch()
            lanes = {"stream": "env0-s3-logs-abc", "types": [audits], "credentials": session}
            route.fulfill(response=answer, json=answer.json() | {"cloudwatch": lanes})

        page.route("**/status", with_a_lane)
        for told in ("team/env0-audits / env0-s3-logs-abc", "7 batches that S3 has", "2.0 h ago", "1,234 events", EXECUTES,
                     "allow logs:PutLogEvents", "3 attempts", "Not in CloudWatch: 56 events"):
            self.shows(page.locator("#cloudwatch"), told)
        self.shows(page.locator("#verdict"), "Events flow, and CloudWatch takes none: env0-audits")
        self.assertIsNone(page.evaluate("window.executed || null"))
        session["waits_for"], session["remedy"] = "an OIDC token", "hand one over"
        self.shows(page.locator("#cloudwatch"), "The role for CloudWatch waits for an OIDC token")
        page.unroute("**/status")

    def test_what_s3_told_of_the_bucket_is_shown_and_a_mistake_with_its_remedy(self):
        page = self.open()
        bucket = self.aws.environment["ENV0_S3_LOG_BUCKET_NAME"]
        region = self.aws.environment["ENV0_S3_LOG_AWS_REGION"]
        for told in (bucket, region, f"it is in {region}", "ago"):
            self.shows(page.locator("#bucket"), told)
        self.assertEqual(page.locator("#bucket-trouble .note").count(), 0)
        told = {"region": "ap-south-1", "checked_at": "2026-01-01T00:00:00Z", "error": None, "remedy": None, "code": None}

        def with_a_bucket(route):
            answer = route.fetch()
            route.fulfill(response=answer, json=answer.json() | {"bucket": told})

        page.route("**/status", with_a_bucket)
        self.shows(page.locator("#bucket-trouble"), "ENV0_S3_LOG_AWS_REGION=ap-south-1")
        told |= {"region": None, "error": "no" + EXECUTES, "code": "NoSuchBucket", "remedy": "make the bucket"}
        for said in ("no" + EXECUTES, "NoSuchBucket", "make the bucket"):
            self.shows(page.locator("#bucket-trouble"), said)
        self.assertIsNone(page.evaluate("window.executed || null"))
        page.unroute("**/status")

    def test_a_log_type_that_is_pulled_and_sent_is_told_with_what_to_do_and_only_that_one(self):
        page = self.open()
        self.shows(page.locator("#verdict"), "Events flow")
        both = "Pulled, and sent by senders, too"
        expect(page.locator("body")).not_to_contain_text(both)

        def audits_both_ways(route):
            answer = route.fetch()
            status = answer.json()
            for of_type in status["types"]:
                of_type["pulled_and_sent"] = of_type["type"] == "env0-audits"
            route.fulfill(response=answer, json=status)

        page.route("**/status", audits_both_ways)
        for told in (both, "send each log type one way only"):
            self.shows(self.card(page, "env0-audits").locator(".trouble"), told)
        expect(self.card(page, "env0-deployments")).not_to_contain_text(both)
        page.unroute("**/status")
        expect(page.locator("body")).not_to_contain_text(both, timeout=WITHIN_MS)

    def test_what_senders_sent_that_is_no_text_is_told_for_its_log_type_only(self):
        page = self.open()
        self.shows(page.locator("#verdict"), "Events flow")
        told = "Senders sent what is no text"

        def audits_replaced(route):
            answer = route.fetch()
            status = answer.json()
            for of_type in status["types"]:
                if of_type["type"] == "env0-audits":
                    of_type["bytes_replaced"] = 119
            route.fulfill(response=answer, json=status)

        page.route("**/status", audits_replaced)
        for words in (told, "119 bytes"):
            self.shows(self.card(page, "env0-audits").locator(".trouble"), words)
        expect(self.card(page, "env0-deployments")).not_to_contain_text(told)
        page.unroute("**/status")

    def test_hostile_words_are_shown_and_never_run(self):
        page = self.open()
        self.store.fault = fault(f"Code{EXECUTES}", f"Message{EXECUTES}", f"Request{EXECUTES}")
        self.send("env0-audits", EXECUTES)
        trouble = self.card(page, "env0-audits").locator(".trouble")
        self.shows(trouble, "Message" + EXECUTES)
        # A code and a request id keep only the characters that theirs have.
        kept = re.sub(r"[^A-Za-z0-9_.:/+=-]", "", EXECUTES)
        for told in ("Code", "Request"):
            self.shows(trouble, told + kept)
        self.shows(page.locator("#destination"), EXECUTES.replace("/", ""))
        self.shows(page.locator("#spool"), str(self.folder))
        self.shows(page.locator("#tokens"), EXECUTES[:8])
        self.assertEqual(page.locator("img, b:not([data-of]), script:not(body > script)").count(), 0)
        self.assertIsNone(page.evaluate("window.executed || null"))

    def test_the_policy_stops_a_script_that_got_in(self):
        page = self.open()
        self.assertIn("default-src 'none'", self.policy)
        page.evaluate(
            """html => {
              document.body.insertAdjacentHTML('beforeend', html);
              const script = document.createElement('script');
              script.textContent = 'window.executed = 1';
              document.body.append(script);
            }""",
            EXECUTES,
        )
        self.assertIsNone(page.evaluate("window.executed || null"))
        self.assertTrue(any("Content Security Policy" in complaint for complaint in self.complaints), self.complaints)
        self.complaints.clear()
        self.hosts.clear()

    def test_it_is_readable_on_a_phone_by_day_and_by_night(self):
        self.store.fault = fault("AccessDenied", "x" * 300)
        self.send("env0-deployments", "one")
        for scheme in ("light", "dark"):
            page = self.open(viewport=PHONE, color_scheme=scheme)
            self.shows(page.locator("#verdict"), "x" * 300)
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            self.assertEqual(wider, 0, f"{scheme}: it has to be scrolled sideways")
            for selector in ("h1", "#verdict", ".note", "h2", "dt", "dd", "td.key-cell"):
                contrast = page.locator(selector).first.evaluate(CONTRAST)
                self.assertGreaterEqual(contrast, CONTRAST_MIN, f"{scheme}: {selector}")

    def test_it_says_when_the_daemon_is_gone_and_goes_on_when_it_is_back(self):
        page = self.open()
        self.shows(page.locator("#verdict"), "Events flow")
        self.daemon.kill()
        self.shows(page.locator("#verdict"), "The daemon does not answer")
        self.daemon.start()
        self.shows(page.locator("#verdict"), "Events flow")
        # Chromium itself tells the console of every request that failed.
        self.complaints = [complaint for complaint in self.complaints if "ERR_CONNECTION" not in complaint]


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
