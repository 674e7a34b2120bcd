//! How many GPUs, hosts and bytes a load takes, by arithmetic, and by a simulation that drives real brokers and the real run
//! loops with stages that only wait (deploy/CAPACITY.md).
//!
//! In reading order: [`times`] (what was measured), [`model`] (what one video takes), [`needs`] (what a
//! load needs), [`plan`] (tables of that), [`pace`] (waiting),
//! [`stages`] and [`owner`] (what waits), [`scenario`] (what is simulated), [`monitor`] (what a broker says), [`shard`] (a
//! pipeline), [`run`] (a load, run), [`report`] (what it came to), [`cluster`] (writes to one server and to three).

pub mod cluster;
pub mod model;
pub mod monitor;
pub mod needs;
pub mod owner;
pub mod pace;
pub mod plan;
pub mod report;
pub mod run;
pub mod scenario;
pub mod shard;
pub mod stages;
pub mod times;
