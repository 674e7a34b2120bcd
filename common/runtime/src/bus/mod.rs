//! The broker: connection, streams and consumers, reliable publishing, and each job's event log.
//!
//! In reading order: `error` (why a broker cannot be used), `handle` (a connection and publishing), `role`, `address` and
//! `connect` (who a process is to the broker), `headers` (what stands beside a body), `leader` (what a cluster cannot answer for a while),
//! [`size`], `settings` and [`streams`] (what exists on the server), [`queue`] (work queues), `tries` (asking until the broker answers, with `held_up`), `publish` (storing a
//! message), [`follow`] (reading a subject for as long as it takes), `conditional` (writing behind a known message), `clock`
//! and `time` (what time it is there), [`events`] (what a client hears, with `past_events`), `purge` (what a job leaves behind), [`capacity`]
//! (whose tokens fit the token stream).

mod address;
pub mod capacity;
mod clock;
pub(crate) mod conditional;
mod connect;
mod error;
pub mod events;
pub mod follow;
mod handle;
mod headers;
mod held_up;
mod leader;
mod past_events;
mod publish;
mod purge;
pub mod queue;
mod role;
mod settings;
pub mod size;
pub mod streams;
mod time;
mod tries;

pub use error::{BusError, BusErrorKind};
pub use handle::Bus;
pub use headers::{Attempt, FencingToken, headers, job_of};
pub use publish::Stored;
pub use queue::WorkQueue;
pub use role::Role;
