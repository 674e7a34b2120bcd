//! The one run loop that connects a stage to the bus: pull, prefetch the next input while this one computes, publish,
//! acknowledge, report, honour cancel, drain.
//!
//! In reading order: [`shutdown`] (how a process is told to leave), [`inbox`] (pulling and keeping messages), [`engine`]
//! (the thread that computes), [`watchdog`] (which ends the
//! process if that hangs), [`device`] (which ends it if its GPU is lost), [`job_end`] (why work on a job stops), [`registry`] (what is known and in flight), [`port`]
//! (what a stage's outputs pass through), [`pass`] (what the engine computes together), [`allowance`] (how many bytes are in flight), [`report`] (what is told to the
//! job's owner), [`control`] (control messages from whoever sends them), [`listener`] (and in the instance that hears
//! them), [`dead`] (messages that no stage could use), [`taking`] (which messages are taken together), [`worker`] (a stage between two queues), [`service`] (how an
//! instance is found and watched), [`checkpoint`] and [`peers`] (what all instances share), [`probes`] (what a file is),
//! [`whereabouts`] (who has it) and [`handover`] (work on a file that is elsewhere), with [`handing`] (how a delivery is handed on),
//! [`admission`] (how jobs come in), [`line`] (how they wait), [`ending`] (how a job ends without an owner), with
//! [`deadlines`], [`sweep`] (what is left then), [`expiry`] (what was kept long enough), [`rescue`] (what a queue has
//! forgotten) and [`losses`] (what a broker has), [`owner`] (stage-llm, which
//! owns its jobs).

pub mod admission;
pub mod allowance;
pub mod checkpoint;
pub mod control;
pub mod dead;
pub mod deadlines;
pub mod device;
pub mod ending;
pub mod engine;
pub mod expiry;
pub mod handing;
pub mod handover;
pub mod inbox;
pub mod job_end;
pub mod line;
pub mod listener;
pub mod losses;
pub mod owner;
pub mod pass;
pub mod peers;
pub mod port;
pub mod probes;
pub mod registry;
pub mod report;
pub mod rescue;
pub mod service;
pub mod shutdown;
pub mod sweep;
pub mod taking;
pub mod watchdog;
pub mod whereabouts;
pub mod worker;

use crate::bus::BusError;
pub use shutdown::Shutdown;
pub use worker::run;

/// Reason for which an instance does not serve any more.
#[derive(Debug)]
pub enum Ended {
    /// What it needs of the broker cannot be had.
    Bus(BusError),
    /// Its device is lost: in the words of [`protocol::memory::lost`].
    Device(String),
}

impl From<BusError> for Ended {
    fn from(e: BusError) -> Self {
        Ended::Bus(e)
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Bus(e) => e.fmt(f),
            Ended::Device(lost) => f.write_str(lost),
        }
    }
}

impl std::error::Error for Ended {}
