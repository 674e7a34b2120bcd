//! The run loop that connects a stage to the bus, and the process around it. It knows no tensor library.
//!
//! In reading order: [`subject`] (names on the bus), [`bus`] (the broker), [`objects`] (files on it), [`run`] (the loop), [`output`]
//! (standard output and standard error), [`telemetry`] (logs), [`traces`] (spans of a job across processes), [`metrics`] (what a
//! process counts), [`notify`] (words to a service manager), [`process`] (a process that is
//! one stage).

pub mod bus;
pub mod metrics;
pub mod notify;
pub mod objects;
pub mod output;
pub mod process;
pub mod run;
pub mod subject;
pub mod telemetry;
pub mod traces;
