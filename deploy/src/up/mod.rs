//! Broker and stages: what `vidi up` runs, and `vidi ask` and `vidi bench` for as long as they need it.
//!
//! In reading order: [`profile`] (configurations by name), [`stages`] (any stage from one binary), [`lock`] and [`private`]
//! (whose a directory is, and files that nobody else reads), [`lifeline`] (a child that ends with this process), [`child`] (this
//! program as one), [`room`] and [`broker`] (a nats-server of our own, and streams that fit its disk), [`replicas`] (how many
//! processes, and on which devices), [`mps`] (a daemon by which they share a GPU's time), [`merged`] (what stages read), [`desired`] and [`supervisor`] (stages as child processes), [`idle`] (which of
//! them are loaded),
//! [`in_process`] (stages in this process), [`budgets`] (what each process may hold), [`pipeline`] (broker and stages
//! together), [`note`] (how clients on this host find them), [`down`] (how another process stops them).

pub mod broker;
pub mod budgets;
pub mod child;
pub mod desired;
pub mod down;
pub mod idle;
pub mod in_process;
pub mod lifeline;
pub mod lock;
pub mod merged;
pub mod mps;
pub mod note;
pub mod pipeline;
pub mod private;
pub mod profile;
pub mod replicas;
pub mod room;
pub mod stages;
pub mod supervisor;
