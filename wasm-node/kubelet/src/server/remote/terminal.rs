//! A terminal's line discipline, like a kernel's in canonical mode: lines are edited and echoed here, and a guest reads
//! whole ones. `kubectl` sets its own terminal to raw mode, so input arrives byte by byte. Pure.

/// Maximum bytes of a line (Linux' `N_TTY_BUF_SIZE`); further input rings the bell.
const LINE_BYTES_MAX: usize = 4095;

/// ^C
pub(super) const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BELL: u8 = 0x07;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15;
const ERASE_WORD: u8 = 0x17;
const SUSPEND: u8 = 0x1a;
const QUIT: u8 = 0x1c;
const DELETE: u8 = 0x7f;

/// The result of input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TerminalInput {
    /// Bytes for the guest.
    pub(super) input: Vec<u8>,
    /// Bytes for the client's terminal.
    pub(super) echo: Vec<u8>,
    /// Whether the input has ended (^D at a line's beginning).
    pub(super) ended: bool,
    /// Whether the command is to be interrupted (^C, ^\).
    pub(super) interrupted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LineDiscipline {
    line: Vec<u8>,
    /// Whether ^C, and ^D at a line's beginning, are passed to the guest. A shell handles them: it continues when its
    /// command is interrupted.
    in_band: bool,
}

impl LineDiscipline {
    pub(super) fn new(in_band: bool) -> Self {
        Self { line: Vec::new(), in_band }
    }

    /// Processes input. Input after the end is dropped.
    pub(super) fn take(&mut self, bytes: &[u8]) -> TerminalInput {
        let mut typed = TerminalInput::default();
        for byte in bytes {
            self.process_key(*byte, &mut typed);
            if typed.ended || typed.interrupted {
                break;
            }
        }
        typed
    }

    /// Ends the input: an unfinished line is passed to the guest.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.line)
    }

    fn process_key(&mut self, byte: u8, typed: &mut TerminalInput) {
        match byte {
            b'\r' | b'\n' => {
                typed.echo.extend_from_slice(b"\r\n");
                typed.input.append(&mut self.line);
                typed.input.push(b'\n');
            }
            BACKSPACE | DELETE => self.erase(typed),
            KILL_LINE => {
                while !self.line.is_empty() {
                    self.erase(typed);
                }
            }
            ERASE_WORD => {
                while self.line.last().is_some_and(u8::is_ascii_whitespace) {
                    self.erase(typed);
                }
                while self.line.last().is_some_and(|last| !last.is_ascii_whitespace()) {
                    self.erase(typed);
                }
            }
            END if !self.line.is_empty() => typed.input.append(&mut self.line),
            END if self.in_band => typed.input.push(END),
            END => typed.ended = true,
            INTERRUPT | QUIT => {
                self.line.clear();
                typed.echo.extend_from_slice(&[b'^', byte + b'@', b'\r', b'\n']);
                if self.in_band && byte == INTERRUPT {
                    typed.input.push(INTERRUPT);
                } else {
                    typed.interrupted = true;
                }
            }
            // Suspending is not supported.
            SUSPEND => {}
            _ if self.line.len() >= LINE_BYTES_MAX => typed.echo.push(BELL),
            _ => {
                self.line.push(byte);
                echo(byte, &mut typed.echo);
            }
        }
    }

    /// Erases the last character, with all its bytes.
    fn erase(&mut self, typed: &mut TerminalInput) {
        let Some(mut last) = self.line.pop() else { return };
        while last & 0xc0 == 0x80 {
            match self.line.pop() {
                Some(before) => last = before,
                None => break,
            }
        }
        for _ in 0..if is_echoed_as_two(last) { 2 } else { 1 } {
            typed.echo.extend_from_slice(b"\x08 \x08");
        }
    }
}

fn is_echoed_as_two(byte: u8) -> bool {
    byte < b' ' && byte != b'\t'
}

fn echo(byte: u8, to: &mut Vec<u8>) {
    if is_echoed_as_two(byte) {
        to.extend_from_slice(&[b'^', byte + b'@']);
    } else {
        to.push(byte);
    }
}

/// Converts a guest's output for the terminal: each newline also returns to the line's beginning.
pub(super) fn terminal_output(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for byte in bytes {
        if *byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(*byte);
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn type_all(keys: &[u8]) -> (String, String, bool, bool) {
        let typed = LineDiscipline::default().take(keys);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&typed.input), text(&typed.echo), typed.ended, typed.interrupted)
    }

    #[test]
    fn lines_are_edited_as_on_any_terminal() {
        let back = "\x08 \x08";
        for (keys, input, echo) in [
            (&b"ls\r"[..], "ls\n", "ls\r\n".to_owned()),
            (b"lx\x7fs\n", "ls\n", format!("lx{back}s\r\n")),
            (b"\x7f\x7fa\r", "a\n", "a\r\n".to_owned()),
            ("a\u{20ac}\x7f\r".as_bytes(), "a\n", format!("a\u{20ac}{back}\r\n")),
            (b"ab\x15c\r", "c\n", format!("ab{back}{back}c\r\n")),
            (b"a bc \x17d\r", "a d\n", format!("a bc {back}{back}{back}d\r\n")),
            (b"\x1b[A\x7f\x7f\x7f\r", "\n", format!("^[[A{back}{back}{back}{back}\r\n")),
            (b"half\x04", "half", "half".to_owned()),
            (b"\x1aa\r", "a\n", "a\r\n".to_owned()),
        ] {
            assert_eq!(type_all(keys), (input.to_owned(), echo, false, false), "{keys:?}");
        }
        assert_eq!(type_all(b"a\r\x04b\r"), ("a\n".into(), "a\r\n".into(), true, false));
        assert_eq!(type_all(b"abc\x03d"), (String::new(), "abc^C\r\n".into(), false, true));
        assert_eq!(type_all(b"\x1c"), (String::new(), "^\\\r\n".into(), false, true));
    }

    #[test]
    fn a_shell_hears_of_interrupts_and_ends() {
        let mut terminal = LineDiscipline::new(true);
        let typed = terminal.take(b"ab\x03\x04c\r");
        assert_eq!(typed.input, b"\x03\x04c\n");
        assert!(!typed.ended && !typed.interrupted);
        assert!(terminal.take(b"\x1c").interrupted);
    }

    #[test]
    fn a_line_has_an_end() {
        let mut terminal = LineDiscipline::default();
        let typed = terminal.take(&[b'x'; 10_000]);
        assert_eq!(typed.echo.iter().filter(|byte| **byte == BELL).count(), 10_000 - LINE_BYTES_MAX);
        assert_eq!(terminal.take(b"\r").input.len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn newlines_begin_lines() {
        assert_eq!(terminal_output(b"a\nb\r\n"), b"a\r\nb\r\r\n");
    }

    proptest! {
        /// For any input, a guest reads no more than was typed, and no line that was erased completely.
        #[test]
        fn any_bytes_are_taken(keys in proptest::collection::vec(any::<u8>(), 0..200), in_band: bool) {
            let mut terminal = LineDiscipline::new(in_band);
            let typed = terminal.take(&keys);
            prop_assert!(typed.input.len() <= keys.len());
            prop_assert!(typed.echo.len() <= 6 * keys.len());
            prop_assert!(terminal.finish().len() + typed.input.len() <= keys.len());
            prop_assert!(!typed.input.contains(&DELETE) && !typed.input.contains(&b'\r'));
        }
    }
}
