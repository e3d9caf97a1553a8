"""A server with vLLM's routes and no model, for tests of what speaks to it. Run as `python fake_vllm.py --port N ...`,
or begun within a test by `serve`.

A completion counts up from the sum of its prompt and its seed. Weights come over gloo, or from a folder, and can be
read back. The variable FAKE says how it misbehaves; so does `Fake.fault`, which a test may change while it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

FAKE = os.environ.get("FAKE", "")


class Fake:
    """One server. `pace`: seconds that a token takes."""

    def __init__(self) -> None:
        self.fault = FAKE
        self.key = os.environ.get("VLLM_API_KEY")
        self.pace = 0.0
        self.after = 0  # tokens, until a fault shows
        self.bodies: list[dict] = []  # of requests for completions
        self.state: dict = {
            "paused": False,
            "version": "default",
            "asked": [],
            "received": {},
            "models": ["the model"],
            "group": None,
        }
        self.active = False  # an update has begun
        self.running = 0
        self.aborted = 0  # how often all requests were
        self.held: dict = {}  # of transfer: folder
        self.read: int | None = None
        self.moved = threading.Condition()
        self.server: Server | None = None
        self.sockets: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def die(self) -> None:
        """As after SIGKILL: connections break off, and nobody listens any more."""
        self.server.shutdown()
        self.server.server_close()
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self.moved:
            self.aborted += 1
            self.moved.notify_all()

    # -- completions

    def begin(self, body: dict) -> tuple[list[int], str, float]:
        params, state = body["sampling_params"], self.state
        self.bodies.append(body)
        if body["model"] not in state["models"]:
            raise LookupError(f"The model `{body['model']}` does not exist.")
        if self.fault == "dies" and state["version"] == "1":
            print("RuntimeError: the engine has had enough", flush=True)
            os._exit(3)
        if self.fault == "hangs" and state["version"] == "1":
            time.sleep(60)
        if self.fault == "500":
            raise RuntimeError("the kernel has had enough")
        start, length = sum(body["token_ids"]) + params.get("seed", 0) % 7, params["max_tokens"]
        tokens = [(start + place) % 200 for place in range(length)]
        ends = [place for place, token in enumerate(tokens) if token in params.get("stop_token_ids", [])]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        return tokens, "stop" if ends else "length", 0.0 if params.get("top_k") == 1 and self.fault != "raw" else -0.5

    def sampled(self, body: dict) -> Iterator[dict]:
        """The choices of a stream: so many tokens at a time as were asked for, and the first at once."""
        tokens, reason, logprob = self.begin(body)
        interval = body["sampling_params"].get("stream_interval", 1)
        versions: list[str] = []
        sent = 0
        with self.moved:
            self.running += 1
            begun = self.aborted
        try:
            for place in range(len(tokens)):
                with self.moved:
                    free = lambda: self.aborted != begun or not self.state["paused"]  # noqa: E731
                    self.moved.wait_for(free)
                    if self.pace and self.aborted == begun:
                        self.moved.wait_for(lambda: self.aborted != begun, self.pace)
                        self.moved.wait_for(free)
                    if self.aborted != begun:
                        yield self.choice(tokens[sent:place], logprob, "abort", versions)
                        return
                    versions.append(self.state["version"])
                if place + 1 < len(tokens) and (place == 0 or place + 1 - sent >= interval):
                    yield self.choice(tokens[sent : place + 1], logprob, None, versions)
                    sent = place + 1
                if self.fault in ("half", "silent") and place + 1 >= self.after:
                    if self.fault == "silent":
                        with self.moved:
                            self.moved.wait_for(lambda: self.aborted != begun, 60)
                    raise BrokenPipeError
            yield self.choice(tokens[sent:], logprob, reason, versions)
        finally:
            with self.moved:
                self.running -= 1
                self.moved.notify_all()

    def choice(self, tokens: list[int], logprob: float, reason: str | None, versions: list[str]) -> dict:
        spans: list[dict] = []
        for place, version in enumerate(versions):
            if not spans or spans[-1]["version"] != version:
                spans.append({"version": version, "start": place, "end": place})
            spans[-1]["end"] = place + 1
        return {
            "token_ids": tokens,
            "finish_reason": reason,
            "logprobs": {"content": [{"token_id": token, "logprob": logprob} for token in tokens]},
            "weight_versions": spans if reason is not None else None,
        }

    def whole(self, body: dict) -> dict:
        found = list(self.sampled(body))
        last = found[-1]
        last["token_ids"] = [token for each in found for token in each["token_ids"]]
        last["logprobs"]["content"] = [entry for each in found[:-1] for entry in each["logprobs"]["content"]] + last[
            "logprobs"
        ]["content"]
        return {"choices": [last]}

    # -- weights

    def pause(self, mode: str) -> None:
        with self.moved:
            self.state["paused"] = True
            if mode == "abort":
                self.aborted += 1
                self.moved.notify_all()
            if mode != "keep":
                self.moved.wait_for(lambda: not self.running, 30)

    def resume(self) -> None:
        with self.moved:
            self.state["paused"] = False
            self.moved.notify_all()

    def join(self, info: dict) -> None:
        if not info:  # transfer: folder
            return
        from datetime import timedelta

        import torch.distributed as dist

        patience = timedelta(seconds=info["timeout"])
        store = dist.TCPStore(info["address"], info["port"], info["world_size"], False, patience)
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=info["address"])]
        options._timeout = patience
        self.state["group"] = dist.ProcessGroupGloo(dist.PrefixStore("ft-vllm", store), 1, info["world_size"], options)

    def receive(self, update: dict) -> None:
        import torch
        import torch.distributed as dist

        if not self.state["paused"]:
            raise RuntimeError("update without pause")
        if self.fault == "refuses weights":
            raise KeyError(update["names"][0])
        if "folder" in update:
            from ft_vllm.published import read_version

            self.held, self.read = read_version(Path(update["folder"]), self.held, self.read)
            for name, tensor in self.held.items():
                self.state["received"][name] = sums(tensor.double())
            return
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        for start, end in update["buckets"]:
            shapes, types = update["shapes"][start:end], update["dtype_names"][start:end]
            sizes = [torch.Size(shape).numel() * getattr(torch, name).itemsize for shape, name in zip(shapes, types)]
            piece = torch.empty(sum(sizes), dtype=torch.uint8)
            self.state["group"].broadcast([piece], options).wait()
            parts = zip(update["names"][start:end], shapes, types, piece.split(sizes), strict=True)
            for name, shape, dtype, part in parts:
                self.state["received"][name] = sums(part.clone().view(getattr(torch, dtype)).view(shape).double())

    def answer(self, method: str, path: str, query: dict, body: dict) -> dict | None:
        """What a route gives; LookupError: 404, PermissionError: 403, another exception: 500."""
        route, state = (method, path), self.state
        if route == ("GET", "/health"):
            return {}
        if route == ("GET", "/version"):
            return {"version": "0.31.0" if self.fault == "old" else "0.32.0+cpu"}
        if route == ("GET", "/v1/models"):
            return {"data": [{"id": name, "max_model_len": 64} for name in state["models"]]}
        if route == ("POST", "/inference/v1/generate"):
            if self.fault == "no tokens":
                raise PermissionError("scale-out is disabled")
            return self.whole(body)
        if route == ("POST", "/v1/completions"):
            return score(body)
        if self.fault == "no weights":
            raise LookupError("Not Found")
        if route == ("GET", "/weight_info"):
            if self.fault == "asleep":
                time.sleep(60)
            return {"weight_version": state["version"]}
        if route == ("GET", "/is_paused"):
            return {"is_paused": state["paused"]}
        if route == ("GET", "/get_world_size"):
            return {"world_size": 1}
        if route == ("POST", "/pause"):
            self.pause(query.get("mode", "abort"))
        elif route == ("POST", "/resume"):
            self.resume()
        elif route == ("POST", "/init_weight_transfer_engine"):
            self.join(body["init_info"])
        elif route == ("POST", "/update_weights"):
            self.receive(body["update_info"])
        elif route == ("POST", "/start_weight_update"):
            if self.active:
                raise RuntimeError("start_weight_update called while a weight update is already active.")
            self.active = True
        elif route == ("POST", "/finish_weight_update"):
            self.active = False
            state["version"] = body.get("weight_version", state["version"])
        elif route == ("POST", "/update_weight_version"):
            state["version"] = body["new_version"]
        elif route == ("POST", "/v1/load_lora_adapter"):
            if self.fault == "dies of adapters":
                print("RuntimeError: out of memory", flush=True)
                os._exit(4)
            if not state["paused"] or not os.path.exists(os.path.join(body["lora_path"], "adapter_config.json")):
                raise RuntimeError("no adapter, or no pause")
            state["models"].append(body["lora_name"])
        elif route == ("POST", "/v1/unload_lora_adapter"):
            state["models"].remove(body["lora_name"])
        elif route == ("GET", "/state"):
            return {name: state[name] for name in ("asked", "received", "models", "version", "paused")}
        elif route == ("POST", "/shutdown_weight_transfer_engine"):
            state["group"] = None
        else:
            raise LookupError("Not Found")
        return {}


def sums(tensor) -> list:
    return [list(tensor.shape), tensor.sum().item(), tensor.abs().sum().item()]


def score(body: dict) -> dict:
    """The token that stands there has log-prob -1 and rank 3; the likeliest are the two after it, with -0.1 and
    -0.2."""
    places = [None]
    for token in body["prompt"][1:]:
        found = [(token + 1, -0.1), (token + 2, -0.2), (token, -1.0)]
        place = {str(each): {"logprob": logp, "rank": rank} for rank, (each, logp) in enumerate(found, 1)}
        kept = {
            each: said for each, said in place.items() if said["rank"] <= body["prompt_logprobs"] or each == str(token)
        }
        places.append(dict(reversed(kept.items())))
    return {"choices": [{"prompt_logprobs": places}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.fake.sockets.add(self.connection)

    def finish(self) -> None:
        self.server.fake.sockets.discard(self.connection)
        with contextlib.suppress(OSError, ValueError):  # the client has gone
            super().finish()

    def handle_any(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = urlsplit(self.path)
        if path.path not in ("/state", "/health", "/weight_info"):
            fake.state["asked"].append(self.command + " " + self.path)
        codes = {LookupError: 404, PermissionError: 403}
        if fake.key and path.path != "/health" and self.headers.get("Authorization") != f"Bearer {fake.key}":
            self.reply(401, {"error": "Unauthorized"})
            return
        try:
            if body.get("stream") and path.path == "/inference/v1/generate" and fake.fault != "no tokens":
                self.stream(fake.sampled(body))
                return
            query = {name: values[-1] for name, values in parse_qs(path.query).items()}
            code, found = 200, fake.answer(self.command, path.path, query, body)
        except OSError as error:  # PermissionError is one too
            if not isinstance(error, PermissionError):
                self.close_connection = True
                return
            code, found = 403, {"error": {"message": str(error)}}
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            code, found = codes.get(type(error), 500), {"error": {"message": str(error)}}
        self.reply(code, found)

    def reply(self, code: int, found: dict | None) -> None:
        data = json.dumps(found).encode()
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def stream(self, choices: Iterator[dict]) -> None:
        first = next(choices)  # an error comes before the answer has begun
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.send(json.dumps({"choices": [first]}))
        for choice in choices:
            self.send(json.dumps({"choices": [choice]}))
        self.send("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def send(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    do_GET = do_POST = handle_any


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    fake: Fake

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is nothing to speak of."""


def serve(port: int = 0, fake: Fake | None = None) -> Server:
    server = Server(("127.0.0.1", port), Handler)
    server.fake = fake or Fake()
    server.fake.server = server
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    return server


if __name__ == "__main__":
    print("starting with", *sys.argv[1:], flush=True)
    if FAKE == "refuses model":
        print("ValueError: head_dim=16 is nothing I know", flush=True)
        sys.exit(1)
    if FAKE == "never starts":
        time.sleep(60)
    serve(int(sys.argv[sys.argv.index("--port") + 1]))
    threading.Event().wait()
