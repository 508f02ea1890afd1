// An HTTP service in C: greets whoever the path names, and says no to everything but GET.
//
// A component's functions are those of its world by the canonical ABI: an import a function, by name, resources and
// strings as numbers. `wit-bindgen c` writes such declarations for a whole world; these few are written by hand.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(MODULE, NAME) __attribute__((import_module(MODULE), import_name(NAME)))
#define TYPES "wasi:http/types@0.2.12"
#define STREAMS "wasi:io/streams@0.2.12"

// What a function returns that is more than one number, it writes where its last argument points.
typedef struct {
    uint8_t some;
    const char *start;
    uint32_t length;
} optional_string;
typedef struct {
    uint8_t failed;
    int32_t resource;
} result;
typedef struct {
    uint8_t tag;
    const char *start;
    uint32_t length;
} method;
enum { GET = 0 };

IMPORT(TYPES, "[method]incoming-request.method") void request_method(int32_t request, method *out);
IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(int32_t request, optional_string *out);
IMPORT(TYPES, "[resource-drop]incoming-request") void drop_request(int32_t request);
IMPORT(TYPES, "[constructor]fields") int32_t new_fields(void);
IMPORT(TYPES, "[constructor]outgoing-response") int32_t new_response(int32_t fields);
IMPORT(TYPES, "[method]outgoing-response.set-status-code") int32_t set_status(int32_t response, int32_t code);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(int32_t response, result *out);
IMPORT(TYPES, "[method]outgoing-body.write") void body_stream(int32_t body, result *out);
IMPORT(TYPES, "[static]outgoing-body.finish")
void finish_body(int32_t body, int32_t has_trailers, int32_t trailers, void *out);
// response-outparam.set takes result<outgoing-response, error-code>, flattened: the largest error decides how many.
IMPORT(TYPES, "[static]response-outparam.set")
void set_response(int32_t out, int32_t failed, int32_t response, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush")
void write_and_flush(int32_t stream, const char *start, uint32_t length, void *out);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_stream(int32_t stream);

// Where the host puts strings that it returns.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t alignment, size_t size) {
    (void)old_size, (void)alignment;  // realloc knows the one, and aligns for everything
    void *memory = realloc(old, size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static void answer(int32_t out, int32_t code, const char *text, uint32_t length) {
    // The errors of these calls are a client that went away: there is nobody to be told.
    char ignored[64];
    result body, stream;
    int32_t response = new_response(new_fields());
    set_status(response, code);
    response_body(response, &body);
    set_response(out, 0, response, 0, 0, 0, 0, 0, 0);
    body_stream(body.resource, &stream);
    write_and_flush(stream.resource, text, length, ignored);
    drop_stream(stream.resource);
    finish_body(body.resource, 0, 0, ignored);
}

__attribute__((export_name("wasi:http/incoming-handler@0.2.12#handle"))) void handle(int32_t request, int32_t out) {
    method verb;
    optional_string path;
    request_method(request, &verb);
    request_path(request, &path);
    drop_request(request);
    if (verb.tag != GET) {
        answer(out, 405, "GET only\n", 9);
    } else {
        char text[256];
        bool named = path.some && path.length > 1;
        // A stream takes 4096 bytes at once; a name is cut long before that.
        int length = snprintf(text, sizeof text, "Hello, %.*s, from C\n", named ? (int)(path.length - 1) : 5,
                              named ? path.start + 1 : "world");
        answer(out, 200, text, (uint32_t)(length < (int)sizeof text ? length : (int)sizeof text - 1));
    }
    if (path.some) {
        free((void *)path.start);
    }
}
