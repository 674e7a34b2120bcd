//! What runs the stages besides the stages themselves: the parts behind the `vidi` command.
//!
//! In reading order: [`stages`] (any stage from one binary), [`broker`] (a nats-server of our own), [`supervisor`]
//! (stages as child processes), [`idle`] (which of them are there), [`in_process`] (stages in this one), [`pipeline`]
//! (broker and stages together, or those that run already), [`client`] (submit, follow, cancel), [`ask`] (one question),
//! [`bench`] (how fast), [`inspect`] (a checkpoint, tensor by tensor), [`quantize`] (a language model in blocks), [`demo_model`] (a random checkpoint in the layout of
//! the real one), [`recording`] (what passed over the bus, to a file and back).

pub mod ask;
pub mod bench;
pub mod broker;
pub mod client;
pub mod demo_model;
pub mod idle;
pub mod in_process;
pub mod inspect;
pub mod pipeline;
pub mod quantize;
pub mod recording;
pub mod stages;
pub mod supervisor;
