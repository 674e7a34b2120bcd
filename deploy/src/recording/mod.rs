//! Recordings: the messages of the bus written to a file, and published again from it.
//!
//! In reading order: [`kind`] (the kinds of messages), [`format`](mod@format) (the file), [`writer`] and [`reader`],
//! [`tap`] (`vidi record`), [`show`] (`vidi recording show`), [`publication`] (a recorded message as it is published
//! again, perhaps for another job), [`play`] (`vidi replay`), [`compare`] and [`check`] (`vidi replay --check`),
//! [`command`] (their command lines).

pub mod check;
pub mod command;
pub mod compare;
pub mod format;
pub mod kind;
pub mod play;
pub mod publication;
pub mod reader;
pub mod show;
pub mod tap;
pub mod writer;

pub use format::{Header, Record};
pub use kind::Kind;
pub use reader::Reader;
pub use writer::Writer;
