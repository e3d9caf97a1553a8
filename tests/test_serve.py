"""`ft-host serve` asks a backend for servers; what they are is the backend's."""

from __future__ import annotations

import contextlib
import signal

import pytest

from ft_host.api import Served, hookimpl
from ft_host.cli import main, serve
from ft_host.errors import FtHostError, UsageError


class Backend:
    """Serves until somebody presses Ctrl-C, which comes with the second look."""

    def __init__(self, looks=(["one was started anew"], KeyboardInterrupt())):
        self.looks, self.ended, self.asked = list(looks), False, None

    @hookimpl
    @contextlib.contextmanager
    def ft_serve(self, model, servers, host, backend_config):
        self.asked = (model, servers, host, backend_config)
        try:
            urls = [f"http://{host}:{8000 + number}" for number in range(servers)]
            yield Served(urls=urls, backend_config={"urls": urls}, environment={"KEY": "s3cret"}, look=self.look)
        finally:
            self.ended = True

    def look(self):
        found = self.looks.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found


@pytest.fixture
def serving(monkeypatch):
    """`serving(backend)`: the command asks this one."""
    from ft_host.hooks import NAME, generation

    def made(backend):
        import pluggy

        manager = pluggy.PluginManager(NAME)
        manager.add_hookspecs(generation)
        manager.register(backend)
        monkeypatch.setattr(serve, "alone", lambda info: manager)
        monkeypatch.setattr(serve, "settings_of", lambda info, fields: fields)
        monkeypatch.setattr(serve, "PERIOD", 0.0)
        return backend

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_prints_where_they_are_and_ends_them_with_ctrl_c(serving, capsys):
    backend = serving(Backend())
    command = ["serve", "a model", "--servers", "2", "--backend", "transformers", "--backend-config", "{a: 1}"]
    assert main([*command, "--host", "10.0.0.7"]) == 0
    assert backend.ended and backend.asked == ("a model", 2, "10.0.0.7", {"a": 1})
    said = capsys.readouterr().out
    assert "serving a model at http://10.0.0.7:8001" in said and "one was started anew" in said
    assert 'backend_config: {"urls": ["http://10.0.0.7:8000", "http://10.0.0.7:8001"]}' in said
    assert "export KEY=s3cret" in said


def test_servers_that_can_not_go_on_end_the_command_with_the_reason(serving, capsys):
    backend = serving(Backend([FtHostError("out of memory")]))
    assert main(["serve", "a model", "--backend", "transformers"]) == 1
    assert backend.ended and "out of memory" in capsys.readouterr().err


def test_what_can_not_be_is_refused_by_name(capsys):
    assert main(["serve", "x", "--backend", "transformers"]) == 2
    assert "the backend transformers has no servers (ft_serve)" in capsys.readouterr().err
    assert main(["serve", "x", "--servers", "0"]) == 2
    assert "--servers: 0 is none; expected at least 1" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--backend-config: found '.1.'; expected fields"):
        serve.fields_of("[1]")
