//! What runs the stages besides the stages themselves: the parts behind the `vidi` command.
//!
//! In reading order: [`up`] (broker and stages, in processes of their own or in this one), [`client`] (submit, follow,
//! cancel), [`top`] (the stages that run), [`ask`] (one question), [`export`] (its answer as files for editors), [`model`](mod@model) (a checkpoint:
//! inspected, planned for, quantized, made up), [`bench`] (how fast), [`eval`] (how right), [`plot`] (pictures of both),
//! [`trace`](mod@trace) (where a job's time went), [`draw`] (pictures of answers and jobs), [`recording`] (what passed over the
//! bus, to a file and back), [`gateway`] (all this over HTTP).

pub mod ask;
pub mod bench;
pub mod client;
pub mod draw;
pub mod eval;
pub mod export;
pub mod gateway;
pub mod model;
pub mod plot;
pub mod recording;
pub mod top;
pub mod trace;
pub mod up;
