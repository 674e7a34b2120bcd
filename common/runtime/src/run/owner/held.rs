//! Jobs that a worker has taken from the line and not begun, in the order in which they are to be answered.

use std::cmp::Reverse;

use protocol::message::JobId;

/// Place of a job in line: the more urgent first, then the older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    priority: Reverse<u8>,
    /// Sequence of its message in the line's stream.
    sequence: u64,
}

impl Place {
    /// Place of a job of a priority whose message has this sequence.
    pub fn new(priority: u8, sequence: u64) -> Self {
        Place { priority: Reverse(priority), sequence }
    }

    /// Priority of the job.
    pub fn priority(self) -> u8 {
        self.priority.0
    }
}

/// Jobs with what is known of each, in order.
#[derive(Debug)]
pub struct Held<T> {
    jobs: Vec<(Place, JobId, T)>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Held { jobs: Vec::new() }
    }
}

impl<T> Held<T> {
    /// Adds a job.
    pub fn put(&mut self, place: Place, job: JobId, of: T) {
        let at = self.jobs.partition_point(|(other, ..)| *other <= place);
        self.jobs.insert(at, (place, job, of));
    }

    /// First job that `wanted` accepts.
    pub fn first(&self, wanted: impl Fn(&T) -> bool) -> Option<(Place, JobId)> {
        let (place, job, _) = self.jobs.iter().find(|(.., of)| wanted(of))?;
        Some((*place, job.clone()))
    }

    /// Takes a job out.
    pub fn take(&mut self, job: &JobId) -> Option<(Place, T)> {
        let at = self.jobs.iter().position(|(_, other, _)| other == job)?;
        let (place, _, of) = self.jobs.remove(at);
        Some((place, of))
    }

    /// Takes all jobs out that `wanted` accepts, in order.
    pub fn take_all(&mut self, wanted: impl Fn(&T) -> bool) -> Vec<(Place, JobId, T)> {
        let (taken, left) = std::mem::take(&mut self.jobs).into_iter().partition(|(.., of)| wanted(of));
        self.jobs = left;
        taken
    }

    /// All jobs in order.
    pub fn iter(&self) -> impl Iterator<Item = &(Place, JobId, T)> {
        self.jobs.iter()
    }

    /// All jobs in order, to be changed; their places stay.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&JobId, &mut T)> {
        self.jobs.iter_mut().map(|(_, job, of)| (&*job, of))
    }

    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: u64) -> JobId {
        JobId::new(format!("j{n}")).unwrap()
    }

    #[test]
    fn the_more_urgent_job_goes_first_and_of_equal_ones_the_older() {
        let mut held = Held::default();
        for (priority, sequence) in [(5, 3), (5, 1), (9, 4), (0, 0), (5, 2)] {
            held.put(Place::new(priority, sequence), job(sequence), sequence);
        }
        let order: Vec<u64> = held.iter().map(|(.., of)| *of).collect();
        assert_eq!(order, [4, 1, 2, 3, 0]);
        assert_eq!(held.first(|of| *of != 4).map(|(place, _)| place), Some(Place::new(5, 1)));
        assert!(Place::new(9, 7) < Place::new(5, 1) && Place::new(5, 1).priority() == 5);
    }

    /// However jobs come, go out and come back, those that are held are all that were put and not taken, in order.
    #[test]
    fn jobs_that_come_and_go_in_any_order_are_held_in_theirs_and_none_is_lost() {
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        let mut roll = |n: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % n
        };
        for _ in 0..200 {
            let (mut held, mut known) = (Held::default(), std::collections::BTreeMap::new());
            for sequence in 0..40 {
                match roll(4) {
                    0 if !known.is_empty() => {
                        let at = roll(known.len() as u64) as usize;
                        let place = *known.keys().nth(at).unwrap();
                        let sequence = known.remove(&place).unwrap();
                        assert_eq!(held.take(&job(sequence)), Some((place, sequence)));
                        assert_eq!(held.take(&job(sequence)), None);
                    }
                    1 => {
                        let odd = held.take_all(|of| of % 2 == 1);
                        let places: Vec<Place> = odd.iter().map(|(place, ..)| *place).collect();
                        assert!(places.is_sorted());
                        // Given back and taken again.
                        odd.into_iter().rev().for_each(|(place, job, of)| held.put(place, job, of));
                    }
                    _ => {
                        let place = Place::new(roll(10) as u8, sequence);
                        known.insert(place, sequence);
                        held.put(place, job(sequence), sequence);
                    }
                }
                let order: Vec<(Place, u64)> = held.iter().map(|(place, _, of)| (*place, *of)).collect();
                assert_eq!(order, known.iter().map(|(place, of)| (*place, *of)).collect::<Vec<_>>());
                assert_eq!(held.first(|_| true).map(|(place, _)| place), known.keys().next().copied());
            }
        }
    }
}
