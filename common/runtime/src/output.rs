//! Standard output and standard error: the only place of the product that writes to them, so that neither ends a process
//! where it cannot be written (a full disk, a reader that has gone).
//!
//! What a command was asked for is an [answer](crate::answer): where that cannot be written, the command says so and ends
//! with a status. Everything else is a [remark](crate::remark): where that cannot be written it is lost, and nothing else
//! happens.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Standard output could not be written.
#[derive(Debug)]
pub struct Unwritten(io::Error);

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "standard output cannot be written, and what was asked for is not there as a whole: {}; make room, or read it to its \
             end",
            self.0
        )
    }
}

impl std::error::Error for Unwritten {}

impl From<io::Error> for Unwritten {
    fn from(e: io::Error) -> Self {
        Unwritten(e)
    }
}

/// Writes one line, or several, to standard output; formatted as by `println!`. An [`Unwritten`] is for the caller to hand
/// on.
#[macro_export]
macro_rules! answer {
    ($($arg:tt)*) => { $crate::output::answer(format_args!($($arg)*)) };
}

/// Writes one line, or several, to standard error, and loses it where that cannot be written; formatted as by `eprintln!`.
#[macro_export]
macro_rules! remark {
    ($($arg:tt)*) => { $crate::output::remark(format_args!($($arg)*)) };
}

/// What [`answer!`](crate::answer) does.
///
/// # Errors
/// [`Unwritten`].
#[expect(clippy::disallowed_methods, reason = "this is where standard output is written")]
pub fn answer(text: fmt::Arguments<'_>) -> Result<(), Unwritten> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Unwritten)
}

/// What [`remark!`](crate::remark) does.
pub fn remark(text: fmt::Arguments<'_>) {
    Remarks.line(text);
}

/// Standard error as a writer that never fails: what cannot be written is lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remarks;

impl Remarks {
    fn line(mut self, text: fmt::Arguments<'_>) {
        // In one piece, so that lines of several threads do not mix; it cannot fail.
        let _ = self.write_all(format!("{text}\n").as_bytes());
    }

    /// Whether a person sees it.
    #[expect(clippy::disallowed_methods, reason = "nothing is written")]
    pub fn on_a_terminal(self) -> bool {
        io::stderr().is_terminal()
    }
}

impl Write for Remarks {
    #[expect(clippy::disallowed_methods, reason = "this is where standard error is written")]
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // There is nowhere to tell of it.
        let _ = io::stderr().lock().write_all(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard output as a buffered writer, for much of it. Its errors say that it was standard output.
#[derive(Debug)]
pub struct Answers(io::BufWriter<io::Stdout>);

impl Answers {
    /// Nothing written yet.
    #[expect(clippy::disallowed_methods, reason = "this is where standard output is written")]
    pub fn new() -> Self {
        Answers(io::BufWriter::new(io::stdout()))
    }
}

impl Default for Answers {
    fn default() -> Self {
        Answers::new()
    }
}

impl Write for Answers {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), Unwritten(error))
}
