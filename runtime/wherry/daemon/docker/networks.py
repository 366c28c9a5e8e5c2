"""Networks. Decides how docker's bodies become the engine's words, and nothing else."""

from __future__ import annotations

from aiohttp import web

from .call import Call, Route, Version
from .fields import Fields
from .gate import answer
from .requests import endpoint

__all__ = ["ROUTES"]


async def listed(call: Call) -> web.StreamResponse:
    """`GET /networks`."""
    return answer(await call.parts.look(call.engine.network_list, call.filters()))


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /networks/{id}`."""
    return answer(await call.parts.look(call.engine.network_inspect, call.ref()))


async def create(call: Call) -> web.StreamResponse:
    """`POST /networks/create`."""
    asked = Fields(await call.json())
    ipam = asked.part("IPAM")
    pools, driver = ipam.parts("Config"), ipam.text("Driver")
    made = await call.parts.change(
        call.engine.network_create, asked.text("Name"), driver=asked.text("Driver") or "bridge",
        subnets=_column(pools, "Subnet"), gateways=_column(pools, "Gateway"), ip_ranges=_column(pools, "IPRange"),
        aux_addresses={key: value for pool in pools for key, value in pool.pairs("AuxiliaryAddresses").items()},
        internal=asked.flag("Internal"), attachable=asked.flag("Attachable"),
        ipv4=not asked.has("EnableIPv4") or asked.flag("EnableIPv4"), ipv6=asked.flag("EnableIPv6"),
        options=asked.pairs("Options"), labels=asked.pairs("Labels"), ipam="" if driver == "default" else driver,
        ipam_options=ipam.pairs("Options"),
    )  # fmt: skip
    return answer({"Id": made, "Warning": ""}, 201)


def _column(pools: list[Fields], key: str) -> list[str]:
    return [pool.text(key) for pool in pools if pool.text(key)]


async def connect(call: Call) -> web.StreamResponse:
    """`POST /networks/{id}/connect`."""
    asked = Fields(await call.json())
    how = endpoint(call.ref(), asked.part("EndpointConfig"))
    await call.parts.change(call.engine.network_connect, call.ref(), asked.text("Container"), how)
    return web.Response()


async def disconnect(call: Call) -> web.StreamResponse:
    """`POST /networks/{id}/disconnect`."""
    asked = Fields(await call.json())
    ref, force = asked.text("Container"), asked.flag("Force")
    await call.parts.change(call.engine.network_disconnect, call.ref(), ref, force=force)
    return web.Response()


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /networks/{id}`."""
    await call.parts.change(call.engine.network_remove, call.ref())
    return web.Response(status=204)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /networks/prune`."""
    return answer(await call.parts.wait(call.engine.network_prune, call.filters()))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/networks", listed),
    Route("POST", "/networks/create", create),
    Route("POST", "/networks/prune", prune, Version(1, 25)),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
    Route("POST", "/networks/{id}/connect", connect),
    Route("POST", "/networks/{id}/disconnect", disconnect),
)
