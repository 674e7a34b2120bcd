//! The broker: connection, streams and consumers, reliable publishing, and each job's event log.
//!
//! In reading order: `error` (why a broker cannot be used), `handle` (a connection and publishing), `role` and
//! `connect` (who a process is to the broker), `headers` (what stands beside a body), [`streams`] (what exists on the server), [`follow`]
//! (reading a subject for as long as it takes), `conditional` (writing behind a known message), `clock` and `time` (what time it is there), [`events`] (what a client hears), [`capacity`] (whose tokens fit the
//! token stream).

pub mod capacity;
mod clock;
mod conditional;
mod connect;
mod error;
pub mod events;
pub mod follow;
mod handle;
mod headers;
mod role;
pub mod streams;
mod time;

pub use error::{BusError, BusErrorKind};
pub use handle::Bus;
pub use headers::{Attempt, headers};
pub use role::Role;
