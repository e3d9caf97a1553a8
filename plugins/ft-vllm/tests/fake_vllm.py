"""A server with vLLM's routes and no model, for tests of what speaks to it. Run as `python fake_vllm.py --port N ...`.

A completion counts up from the sum of its prompt and its seed. Weights come over gloo and can be read back. The
variable FAKE says how it misbehaves.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAKE = os.environ.get("FAKE", "")
STATE = {"paused": False, "version": "default", "asked": [], "received": {}, "models": ["the model"], "group": None}


def generate(body: dict) -> dict:
    params = body["sampling_params"]
    if body["model"] not in STATE["models"]:
        raise LookupError(f"The model `{body['model']}` does not exist.")
    if FAKE == "dies" and STATE["version"] == "1":
        print("RuntimeError: the engine has had enough", flush=True)
        os._exit(3)
    if FAKE == "hangs" and STATE["version"] == "1":
        time.sleep(60)
    start, length = sum(body["token_ids"]) + params.get("seed", 0) % 7, params["max_tokens"]
    tokens = [(start + place) % 200 for place in range(length)]
    ends = [place for place, token in enumerate(tokens) if token in params.get("stop_token_ids", [])]
    tokens = tokens[: ends[0] + 1] if ends else tokens
    logprob = 0.0 if params.get("top_k") == 1 and FAKE != "raw" else -0.5
    return {
        "choices": [
            {
                "token_ids": tokens,
                "finish_reason": "stop" if ends else "length",
                "logprobs": {"content": [{"token_id": token, "logprob": logprob} for token in tokens]},
                "weight_versions": [{"version": STATE["version"], "start": 0, "end": len(tokens)}],
            }
        ]
    }


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


def join(info: dict) -> dict:
    from datetime import timedelta

    import torch.distributed as dist

    patience = timedelta(seconds=info["timeout"])
    store = dist.TCPStore(info["address"], info["port"], info["world_size"], False, patience)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=info["address"])]
    options._timeout = patience
    STATE["group"] = dist.ProcessGroupGloo(dist.PrefixStore("ft-vllm", store), 1, info["world_size"], options)
    return {}


def receive(update: dict) -> dict:
    import torch
    import torch.distributed as dist

    if not STATE["paused"]:
        raise RuntimeError("update without pause")
    if FAKE == "refuses weights":
        raise KeyError(update["names"][0])
    options = dist.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    for start, end in update["buckets"]:
        shapes, types = update["shapes"][start:end], update["dtype_names"][start:end]
        sizes = [torch.Size(shape).numel() * getattr(torch, name).itemsize for shape, name in zip(shapes, types)]
        piece = torch.empty(sum(sizes), dtype=torch.uint8)
        STATE["group"].broadcast([piece], options).wait()
        parts = zip(update["names"][start:end], shapes, types, piece.split(sizes), strict=True)
        for name, shape, dtype, part in parts:
            whole = part.clone().view(getattr(torch, dtype)).view(shape).double()
            STATE["received"][name] = [shape, whole.sum().item(), whole.abs().sum().item()]
    return {}


def answer(method: str, path: str, body: dict) -> dict | None:
    """What a route gives; LookupError: 404, PermissionError: 403, another exception: 500."""
    route = (method, path)
    if route == ("GET", "/health"):
        return {}
    if route == ("GET", "/version"):
        return {"version": "0.31.0" if FAKE == "old" else "0.32.0+cpu"}
    if route == ("GET", "/v1/models"):
        return {"data": [{"id": name, "max_model_len": 64} for name in STATE["models"]]}
    if route == ("POST", "/inference/v1/generate"):
        if FAKE == "no tokens":
            raise PermissionError("scale-out is disabled")
        return generate(body)
    if route == ("POST", "/v1/completions"):
        return score(body)
    if FAKE == "no weights":
        raise LookupError("Not Found")
    if route == ("GET", "/weight_info"):
        return {"weight_version": STATE["version"]}
    if route == ("GET", "/get_world_size"):
        return {"world_size": 1}
    if route == ("POST", "/pause"):
        STATE["paused"] = True
    elif route == ("POST", "/resume"):
        STATE["paused"] = False
    elif route == ("POST", "/init_weight_transfer_engine"):
        return join(body["init_info"])
    elif route == ("POST", "/update_weights"):
        return receive(body["update_info"])
    elif route == ("POST", "/finish_weight_update"):
        STATE["version"] = body["weight_version"]
    elif route == ("POST", "/update_weight_version"):
        STATE["version"] = body["new_version"]
    elif route == ("POST", "/v1/load_lora_adapter"):
        if not STATE["paused"] or not os.path.exists(os.path.join(body["lora_path"], "adapter_config.json")):
            raise RuntimeError("no adapter, or no pause")
        STATE["models"].append(body["lora_name"])
    elif route == ("POST", "/v1/unload_lora_adapter"):
        STATE["models"].remove(body["lora_name"])
    elif route == ("GET", "/state"):
        return {name: STATE[name] for name in ("asked", "received", "models", "version", "paused")}
    elif route == ("POST", "/shutdown_weight_transfer_engine"):
        STATE["group"] = None
    elif route != ("POST", "/start_weight_update"):
        raise LookupError("Not Found")
    return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def handle_any(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = urlsplit(self.path)
        if path.path not in ("/state", "/health"):
            STATE["asked"].append(self.command + " " + self.path)
        codes = {LookupError: 404, PermissionError: 403}
        try:
            code, found = 200, answer(self.command, path.path, body)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            code, found = codes.get(type(error), 500), {"error": {"message": str(error)}}
        data = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = handle_any


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def serve(port: int = 0) -> Server:
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
