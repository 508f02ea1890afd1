;; Ends with the code that its argument asks for: '!' is 1, and so on. A shim that runs nothing does not know it.
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    ;; Pointers to the arguments at 0, the arguments at 1024: two of them, the second of one character.
    (if (call $args_get (i32.const 0) (i32.const 1024)) (then unreachable))
    (call $proc_exit (i32.sub (i32.load8_u (i32.load (i32.const 4))) (i32.const 32)))))
