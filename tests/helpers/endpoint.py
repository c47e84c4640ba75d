"""A server on this machine that answers as an endpoint of chat completions does, with what a test gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Endpoint:
    """``answers`` are taken in turn: a text is the content of an answer, a number a status. ``calls`` is what came."""

    def __init__(self) -> None:
        self.answers: list[str | int] = []
        self.answer: Callable[[dict[str, Any]], str] | None = None
        """Makes the content from the body of a call, in place of ``answers``."""
        self.calls: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.calls.append(
                    {"path": self.path, "authorization": self.headers.get("Authorization"), "body": body}
                )
                answer = outer.answer(body) if outer.answer is not None else outer.answers.pop(0)
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                choice = {"message": {"role": "assistant", "content": answer}}
                usage = {"prompt_tokens": 7, "completion_tokens": 5}
                content = json.dumps({"choices": [choice], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Nothing on the terminal of the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
