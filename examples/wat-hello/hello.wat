;; Says hello and ends: a whole program in a quarter of a kilobyte, for what no compiler is needed.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $buffers i32) (param $count i32) (param $written i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param $code i32)))
  (memory (export "memory") 1)
  ;; One buffer: where the text is, and how long.
  (data (i32.const 0) "\10\00\00\00\0f\00\00\00")
  (data (i32.const 16) "Hello from WAT\n")
  (func (export "_start")
    ;; fd_write answers an errno, which is this program's exit code when it is not 0.
    (call $proc_exit
      (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
