"""What aiohttp alone costs: reads the body, answers 202, keeps nothing. Usage: bare_aiohttp.py PORT"""

import sys

import uvloop
from aiohttp import web


async def accept(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b'{"success":true}', status=202, content_type="application/json")


application = web.Application(client_max_size=1 << 30)
application.router.add_post("/v1/log_event", accept)
uvloop.install()
web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
