"""Where servers are: their devices and addresses, as fields have them."""

from __future__ import annotations

from urllib.parse import urlsplit

from ft_host.api import ConfigError


def devices_of(devices: str, servers: int) -> list[str]:
    """The devices of each server, dealt out in order: "0,1,2,3" for two servers is "0,1" and "2,3". Raises ConfigError
    where they can't be dealt out evenly."""
    each = [device.strip() for device in devices.split(",")]
    share = len(each) // servers
    if not share or len(each) % servers:
        raise ConfigError(
            f"backend_config.devices: {devices} can't be dealt out to {servers} servers; expected as many for each"
        )
    return [",".join(each[share * place : share * (place + 1)]) for place in range(servers)]


def check_url(field: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ConfigError(f"backend_config.{field}: {url!r} is not the address of a server; expected http://HOST:PORT")
