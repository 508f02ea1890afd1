package main

import (
	"runtime"
	"unsafe"
)

// What a function returns that is more than one number, it writes where its last argument points.
// Addresses are uint32: Go's own pointers have eight bytes, also where the memory has 32 bits.
type optionalString struct {
	some   uint8
	start  uint32
	length uint32
}

type result struct {
	failed   uint8
	resource int32
}

// failure has room for any error that is not looked at: those of a client that went away, with nobody to be told.
type failure [64]byte

//go:wasmimport wasi:http/types@0.2.12 [method]incoming-request.path-with-query
func requestPath(request int32, out unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [resource-drop]incoming-request
func dropRequest(request int32)

//go:wasmimport wasi:http/types@0.2.12 [constructor]fields
func newFields() int32

//go:wasmimport wasi:http/types@0.2.12 [constructor]outgoing-response
func newResponse(fields int32) int32

//go:wasmimport wasi:http/types@0.2.12 [method]outgoing-response.set-status-code
func setStatus(response, code int32) int32

//go:wasmimport wasi:http/types@0.2.12 [method]outgoing-response.body
func responseBody(response int32, out unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [method]outgoing-body.write
func bodyStream(body int32, out unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [static]outgoing-body.finish
func finishBody(body, hasTrailers, trailers int32, out unsafe.Pointer)

// setResponse takes result<outgoing-response, error-code>, flattened: the largest error decides how many numbers.
//
//go:wasmimport wasi:http/types@0.2.12 [static]response-outparam.set
func setResponse(out, failed, response, c int32, d int64, e, f, g, h int32)

//go:wasmimport wasi:io/streams@0.2.12 [method]output-stream.blocking-write-and-flush
func writeAndFlush(stream int32, start unsafe.Pointer, length uint32, out unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.12 [resource-drop]output-stream
func dropStream(stream int32)

// largestWrite is what a stream takes at once (wasi:io/streams).
const largestWrite = 4096

// lent holds what the host was given to write strings to, until the request is answered: the collector does not see
// the host's pointers.
var lent [][]byte

// reallocate is where the host gets memory for strings that it returns. By this name it is asked by imports alone: the
// adapter wants memory before the Go runtime has started, and gets pages of its own instead.
//
//go:wasmexport cabi_import_realloc
func reallocate(old unsafe.Pointer, oldSize, alignment, size uint32) unsafe.Pointer {
	memory := make([]byte, size+alignment)
	lent = append(lent, memory)
	start := unsafe.Pointer(unsafe.SliceData(memory))
	past := uint32(uintptr(start)) % alignment
	if past != 0 {
		start = unsafe.Add(start, alignment-past)
	}
	copy(unsafe.Slice((*byte)(start), size), unsafe.Slice((*byte)(old), oldSize))
	return start
}

//go:wasmexport wasi:http/incoming-handler@0.2.12#handle
func handle(request, out int32) {
	var path optionalString
	requestPath(request, unsafe.Pointer(&path))
	dropRequest(request)
	name := "/"
	if path.some != 0 {
		name = string(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(path.start))), path.length))
	}
	lent = nil
	status, text := serve(name)
	answer(out, status, text)
}

func answer(out, status int32, text string) {
	var body, stream result
	var ignored failure
	response := newResponse(newFields())
	setStatus(response, status)
	responseBody(response, unsafe.Pointer(&body))
	setResponse(out, 0, response, 0, 0, 0, 0, 0, 0)
	bodyStream(body.resource, unsafe.Pointer(&stream))
	for len(text) > 0 {
		part := text[:min(len(text), largestWrite)]
		writeAndFlush(stream.resource, unsafe.Pointer(unsafe.StringData(part)), uint32(len(part)), unsafe.Pointer(&ignored))
		runtime.KeepAlive(part)
		text = text[len(part):]
	}
	dropStream(stream.resource)
	finishBody(body.resource, 0, 0, unsafe.Pointer(&ignored))
}
