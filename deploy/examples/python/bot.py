"""A bot for Turnwise in Python, with the standard library alone: one JSON object in, one out.

    python3 deploy/examples/python/bot.py 9000

BOT_TOKEN, if it is set, is what the calls must carry as a bearer token.
"""

import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def answer(turn: dict) -> dict:
    """What to say. Everything that has to last is in the metadata: the same turn may be asked about twice."""
    text = turn["messages"][-1]["text"].strip()
    metadata = turn["conversation"]["metadata"]
    if "human" in text.lower():
        return {"replies": [{"content": "A colleague will be with you."}], "handoff": True}
    if text.lower().startswith("my name is "):
        name = text[len("my name is "):].strip()
        return {"replies": [{"content": f"Nice to meet you, {name}."}], "metadata": {"name": name}}
    said = sum(message["role"] == "user" for message in turn["history"]) + len(turn["messages"])
    name = metadata.get("name", "stranger")
    return {
        "replies": [
            {"content": f"Hello {name}, this is message {said} of yours: {text}"},
            {"content": "Would you like to talk to a person?", "buttons": [{"label": "Human, please"}]},
        ]
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = os.environ.get("BOT_TOKEN")
        if token and not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {token}"):
            self.respond(401, {"error": "wrong bearer token"})
        else:
            self.respond(200, answer(json.loads(body)))

    def respond(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """What users write stays out of logs."""


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_port}/turn", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
