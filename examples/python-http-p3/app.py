"""An HTTP service for WASI 0.3, whose coroutines share one instance: counts up to the number in the path, a line each
quarter of a second, for any number of clients at once."""

import componentize_py_async_support
from componentize_py_async_support.streams import ByteStreamWriter
from componentize_py_types import Ok
from wit_world import byte_stream, exports
from wit_world import result_option_wasi_http_types_fields_wasi_http_types_error_code_future as trailers_future
from wit_world.imports import monotonic_clock
from wit_world.imports.wasi_http_types import Fields, Request, Response

PAUSE = 250_000_000  # nanoseconds
MOST = 1000


async def count(upto: int, body: ByteStreamWriter) -> None:
    with body:
        for number in range(1, upto + 1):
            if number > 1:
                await monotonic_clock.wait_for(PAUSE)
            line = f"{number}\n".encode()
            if await body.write_all(line) < len(line):
                return  # the client is gone


class Handler(exports.Handler):
    async def handle(self, request: Request) -> Response:
        wanted = (request.get_path_with_query() or "/").removeprefix("/")
        fits = wanted.isdecimal() and int(wanted) <= MOST
        sender, body = byte_stream()
        # No trailers follow: the default is what the host reads when the writer is dropped.
        _, trailers = trailers_future(lambda: Ok(None))
        response, _ = Response.new(Fields.from_list([("content-type", b"text/plain")]), body, trailers)
        if fits:
            # The answer is on its way while its body is still made.
            componentize_py_async_support.spawn(count(int(wanted), sender))
        else:
            response.set_status_code(404)
            componentize_py_async_support.spawn(refuse(sender))
        return response


async def refuse(body: ByteStreamWriter) -> None:
    with body:
        await body.write_all(f"GET a number up to {MOST}\n".encode())
