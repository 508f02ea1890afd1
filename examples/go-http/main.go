// Hello is an HTTP service made by the standard Go toolchain, which has no component model of its own.
//
// The functions of a component's world are called by the canonical ABI: an import a function, by name, resources and
// strings as numbers. What is needed of it is in wasi.go; here is what a service does with it.
package main

import (
	"fmt"
	"net/url"
	"strings"
)

// main is never called: a component is a library, whose exports are.
func main() {}

// serve answers a request: status and body.
func serve(path string) (int32, string) {
	address, err := url.Parse(path)
	if err != nil {
		return 400, err.Error() + "\n"
	}
	name := strings.TrimPrefix(address.Path, "/")
	if name == "" {
		name = "world"
	}
	return 200, fmt.Sprintf("Hello, %s, from Go\n", name)
}
