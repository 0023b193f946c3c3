"""A chat endpoint on the loopback interface that answers as a test tells it to."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Served:
    """Attributes: url, for `Endpoint.base_url`; requests, the bodies received; headers, theirs, names in lower case."""

    url: str
    requests: list[dict]
    headers: list[dict]


def completion(content: str | list | None, finish_reason: str = "stop") -> tuple[int, bytes]:
    """(status, body) of an ordinary answer."""
    message = {"role": "assistant", "content": content}
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return 200, json.dumps(body).encode()


@contextlib.contextmanager
def serve(answer: Callable[[dict, int], str | tuple[int, bytes]]) -> Iterator[Served]:
    """An endpoint; `answer` gets the request's body and its number, and gives a reply or (status, body)."""
    served, lock = Served("", [], []), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(served.requests)
                served.requests.append(body)
                served.headers.append({name.lower(): value for name, value in self.headers.items()})
            said = answer(body, number)
            status, content = completion(said) if isinstance(said, str) else said
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has stopped waiting
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
