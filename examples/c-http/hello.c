// An HTTP service in C: greets whoever the path names, and says no to everything but GET.
//
// service.h and service.c are what `wit-bindgen c` makes of the world in wit/.
#include <stdio.h>
#include "service.h"

static void answer(wasi_http_types_own_response_outparam_t out, uint16_t code, char *text, size_t length) {
    wasi_http_types_own_fields_t headers = wasi_http_types_constructor_fields();
    wasi_http_types_own_outgoing_response_t response = wasi_http_types_constructor_outgoing_response(headers);
    wasi_http_types_borrow_outgoing_response_t borrowed = wasi_http_types_borrow_outgoing_response(response);
    wasi_http_types_method_outgoing_response_set_status_code(borrowed, code);
    wasi_http_types_own_outgoing_body_t body;
    wasi_http_types_method_outgoing_response_body(borrowed, &body);
    wasi_http_types_result_own_outgoing_response_error_code_t result = {.is_err = false, .val.ok = response};
    wasi_http_types_static_response_outparam_set(out, &result);

    // The errors of these calls are a client that went away: there is nobody to be told.
    wasi_io_streams_own_output_stream_t stream;
    wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), &stream);
    service_list_u8_t contents = {(uint8_t *)text, length};
    wasi_io_streams_stream_error_t closed;
    wasi_io_streams_borrow_output_stream_t written = wasi_io_streams_borrow_output_stream(stream);
    wasi_io_streams_method_output_stream_blocking_write_and_flush(written, &contents, &closed);
    wasi_io_streams_output_stream_drop_own(stream);
    wasi_http_types_error_code_t error;
    wasi_http_types_static_outgoing_body_finish(body, NULL, &error);
}

void exports_wasi_http_incoming_handler_handle(wasi_http_types_own_incoming_request_t request,
                                               wasi_http_types_own_response_outparam_t out) {
    wasi_http_types_borrow_incoming_request_t borrowed = wasi_http_types_borrow_incoming_request(request);
    wasi_http_types_method_t method;
    service_string_t path = {NULL, 0};
    wasi_http_types_method_incoming_request_method(borrowed, &method);
    wasi_http_types_method_incoming_request_path_with_query(borrowed, &path);
    wasi_http_types_incoming_request_drop_own(request);
    if (method.tag != WASI_HTTP_TYPES_METHOD_GET) {
        answer(out, 405, "GET only\n", 9);
    } else {
        char text[256];
        bool named = path.len > 1;
        // A stream takes 4096 bytes at once; a name is cut long before that.
        int length = snprintf(text, sizeof text, "Hello, %.*s, from C\n", named ? (int)(path.len - 1) : 5,
                              named ? (char *)path.ptr + 1 : "world");
        answer(out, 200, text, (size_t)(length < (int)sizeof text ? length : (int)sizeof text - 1));
    }
    service_string_free(&path);
    wasi_http_types_method_free(&method);
}
