//! Fails at each start: a module of WASI preview 1 with nothing but `_start`.
#![no_std]

const EXIT_CODE: u32 = 3;

#[unsafe(no_mangle)]
extern "C" fn _start() {
    let line = b"crash: no database here, giving up with exit code 3\n";
    let piece = wasip1::Ciovec { buf: line.as_ptr(), buf_len: line.len() };
    // SAFETY: the piece points to a constant; `proc_exit` takes any number.
    unsafe {
        let _ = wasip1::fd_write(wasip1::FD_STDERR, &[piece]);
        wasip1::proc_exit(EXIT_CODE);
    }
}

use guest as _; // the panic handler
