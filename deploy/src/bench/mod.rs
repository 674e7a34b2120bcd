//! `vidi bench`: throughput and latency of one stage alone, or of whole jobs.
//!
//! In reading order: this file (what both measurements share), [`load`] (messages for one stage, made or recorded),
//! [`stage`] (one stage alone, with 1, 2, 4 replicas), [`pipeline`] (whole jobs, 1, 2, 4 at a time), [`show`] (tables and
//! pictures), [`command`] (its command line).

use std::collections::BTreeMap;

use protocol::error::StageName;
use runtime::bus::Bus;
use runtime::process::{Exit, Fatal};

use crate::client;

pub mod command;
pub mod load;
pub mod pipeline;
pub mod show;
pub mod stage;

/// Microseconds that each instance of a stage had a message in flight.
type Busy = BTreeMap<String, u64>;

async fn busy(bus: &Bus, stage: StageName) -> anyhow::Result<Busy> {
    Ok(client::status(bus, stage).await?.into_iter().map(|s| (s.instance, s.busy_us)).collect())
}

/// Share of `seconds` that each instance was busy between two readings.
fn shares(before: &Busy, after: &Busy, seconds: f64) -> Vec<f64> {
    let since = |instance: &String, us: u64| us.saturating_sub(before.get(instance).copied().unwrap_or(0));
    after.iter().map(|(instance, &us)| since(instance, us) as f64 / 1e6 / seconds).collect()
}

/// The value that a share `q` of all does not exceed (nearest rank); 0 of none.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * q).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied().unwrap_or(0.0)
}

fn failed(e: anyhow::Error) -> Fatal {
    Fatal(Exit::Other, format!("{e:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values_and_the_last_one_is_the_largest() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(values.clone(), 0.5), 100.0);
        assert_eq!(quantile(values.clone(), 0.99), 198.0);
        assert_eq!(quantile(values, 1.0), 200.0);
        assert_eq!(quantile(vec![7.0], 0.5), 7.0);
        assert_eq!(quantile(Vec::new(), 0.5), 0.0);
    }

    #[test]
    fn a_share_counts_from_the_first_look_or_from_the_start_of_an_instance() {
        let busy = |of: &[(&str, u64)]| of.iter().map(|&(name, us)| (name.to_owned(), us)).collect::<Busy>();
        let before = busy(&[("a", 1_000_000), ("gone", 5)]);
        let after = busy(&[("a", 2_000_000), ("new", 500_000)]);
        assert_eq!(shares(&before, &after, 2.0), [0.5, 0.25]);
    }
}
