//! Rounds of ours and the peer's in turns, their medians, and the report.

use anyhow::ensure;

use super::case::{Case, Part};
use super::ceilings::Ceilings;
use super::clock::{Laps, Took, median};
use super::peer::Peer;

/// A measured part of a case.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// Case and part.
    pub name: String,
    /// Least seconds of CPU time on this machine, by its measured rates.
    pub floor_s: f64,
    /// Median of our runs.
    pub ours: Took,
    /// Median of the peer's; none where it has no such case.
    pub peer: Option<Took>,
}

/// Runs a case so many times, in turns with the peer, once before anything counts.
///
/// # Errors
/// A run's; a peer that has ended or has other laps.
pub fn measure(
    case: &mut Case,
    peer: Option<&mut Peer>,
    rounds: usize,
    ceilings: &Ceilings,
) -> anyhow::Result<Vec<Row>> {
    let mut peer = peer;
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for round in 0..=rounds {
        let mut laps = Laps::begin();
        (case.run)(&mut laps)?;
        let laps = laps.finish();
        ensure!(laps.len() == case.parts.len(), "{}: {} laps of {} parts", case.name, laps.len(), case.parts.len());
        let other = peer.as_mut().map(|peer| peer.run(case.name)).transpose()?.flatten();
        if let Some(other) = &other {
            ensure!(other.len() == laps.len(), "{}: {} laps in PyTorch, {} here", case.name, other.len(), laps.len());
        }
        if round > 0 {
            ours.push(laps);
            theirs.extend(other);
        }
    }
    let row = |part: Option<usize>| {
        let of = |runs: &[Vec<Took>]| {
            let pick = |laps: &Vec<Took>| match part {
                Some(part) => laps[part],
                None => laps.iter().fold(Took::default(), |a, &b| a + b),
            };
            median(&runs.iter().map(pick).collect::<Vec<_>>())
        };
        let parts: &[Part] = part.map_or(&case.parts, |part| &case.parts[part..=part]);
        Row {
            name: [case.name, part.map_or("", |part| case.parts[part].name)].join(" ").trim_end().to_owned(),
            floor_s: parts.iter().map(|part| part.floor_s(ceilings)).sum(),
            ours: of(&ours),
            peer: (!theirs.is_empty()).then(|| of(&theirs)),
        }
    };
    let whole = (case.parts.len() > 1).then_some(None);
    Ok((0..case.parts.len()).map(Some).chain(whole).map(row).collect())
}

/// Heads of the columns.
pub const HEADS: &str = "| part | floor CPU ms | ours wall ms | CPU ms | PyTorch wall ms | CPU ms | PyTorch / ours, CPU | floor / ours, CPU |\n\
    | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |s: f64| format!("{:.2}", 1e3 * s);
        let (ours, floor) = (self.ours, self.floor_s);
        write!(f, "| {} | {} | {} | {} |", self.name, ms(floor), ms(ours.wall_s), ms(ours.cpu_s))?;
        match self.peer {
            Some(peer) => {
                let ratio = peer.cpu_s / ours.cpu_s;
                write!(f, " {} | {} | {ratio:.2} |", ms(peer.wall_s), ms(peer.cpu_s))?;
            }
            None => write!(f, " | | |")?,
        }
        write!(f, " {:.2} |", floor / ours.cpu_s)
    }
}
