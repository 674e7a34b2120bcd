//! What the whole is held to: processes, brokers, files and other people's programs, and the rules of the house. One program, since each
//! would be linked with all there is; `tests/programs.py` runs its modules side by side, each in a process of its own.
//!
//! Not in here: [the fault suite](../faults.rs), which has times to keep, and tests that hold up their process's own reads.

mod autoscale;
mod bench;
mod capacity;
mod clips;
mod cluster;
mod deployed;
mod documents;
mod end_to_end;
mod eval;
mod exits;
mod export;
mod gateway;
mod house;
mod idle;
mod layers;
mod mps;
mod owners;
mod parity;
mod parked;
mod peers;
mod pictures;
mod placement;
mod python;
mod random_weights;
mod replay;
mod scale;
mod second_question;
mod security;
mod seen;
mod streams;
mod tasks;
mod together;
mod truth;
mod units;
