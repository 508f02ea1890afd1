//! Makes a process call the kernel, from outside: by ptrace(2), with the filters and rights that it has.
#![expect(unsafe_code, reason = "no library here offers ptrace")]

use std::io;

/// A stopped process of x86_64, which runs on when this is dropped.
pub struct Tracee {
    pid: libc::pid_t,
    /// Where it was stopped: in a system call, so that a `syscall` instruction is right before.
    registers: libc::user_regs_struct,
}

/// The bytes of `syscall` on x86_64.
const INSTRUCTION: u64 = 2;

impl Tracee {
    /// Stops the process, which waits for something.
    #[track_caller]
    pub fn stop(pid: u32) -> Tracee {
        let pid = pid as libc::pid_t;
        ask(libc::PTRACE_ATTACH, pid, 0).unwrap();
        wait(pid);
        let registers = registers(pid);
        Tracee { pid, registers }
    }

    /// What the kernel answers to a call: a value, or a negative error number.
    #[track_caller]
    pub fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> i64 {
        let mut registers = self.registers;
        registers.rip -= INSTRUCTION;
        registers.rax = number as u64;
        // It is in no call that the kernel should begin again.
        registers.orig_rax = u64::MAX;
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ] = arguments;
        set_registers(self.pid, &registers);
        ask(libc::PTRACE_SINGLESTEP, self.pid, 0).unwrap();
        wait(self.pid);
        self::registers(self.pid).rax as i64
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        set_registers(self.pid, &self.registers);
        // One that has been killed meanwhile is the test's to find.
        let _ = ask(libc::PTRACE_DETACH, self.pid, 0);
    }
}

fn ask(request: libc::c_int, pid: libc::pid_t, data: u64) -> io::Result<()> {
    // SAFETY: these requests take no pointers.
    match unsafe { libc::ptrace(request, pid, 0_u64, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[track_caller]
fn wait(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the status is ours.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    assert!(
        waited == pid && libc::WIFSTOPPED(status),
        "the process did not stop: {status:#x}"
    );
}

#[track_caller]
fn registers(pid: libc::pid_t) -> libc::user_regs_struct {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    // SAFETY: the kernel fills the struct of this architecture; zeros are valid registers too.
    unsafe {
        let done = libc::ptrace(libc::PTRACE_GETREGS, pid, 0_u64, registers.as_mut_ptr());
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        registers.assume_init()
    }
}

#[track_caller]
fn set_registers(pid: libc::pid_t, registers: &libc::user_regs_struct) {
    // SAFETY: the kernel reads the struct of this architecture.
    let done = unsafe { libc::ptrace(libc::PTRACE_SETREGS, pid, 0_u64, std::ptr::from_ref(registers)) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
