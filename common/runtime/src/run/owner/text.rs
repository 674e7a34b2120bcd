//! Answer text on its way to the client, held back for a moment, so that the bus does not slow generation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::bus::events::EventLog;

/// Time that a text delta waits for more.
const EVERY: Duration = Duration::from_millis(40);

/// Piece of an answer's text.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// Text.
    pub delta: String,
    /// Bytes of the answer before it.
    pub at: u64,
    /// Question that the answer is to; none in a job with one.
    pub question: Option<u32>,
}

/// Text that is not told yet.
pub struct HeldText {
    /// One piece at most of each answer.
    pieces: Vec<Piece>,
    /// Bytes of each answer's text that an earlier owner of this job told already; none until they are counted.
    already_written: Option<BTreeMap<Option<u32>, usize>>,
    flushed: Instant,
}

impl HeldText {
    /// Text of answers that have not begun.
    pub fn new() -> Self {
        HeldText { pieces: Vec::new(), already_written: None, flushed: Instant::now() }
    }

    /// Adds text that stands behind `at` bytes of the answer to a question; true once it has waited long enough to be told.
    pub fn push(&mut self, delta: &str, at: u64, question: Option<u32>) -> bool {
        match self.pieces.iter_mut().find(|piece| piece.question == question) {
            Some(piece) => piece.delta.push_str(delta),
            None => self.pieces.push(Piece { delta: delta.to_owned(), at, question }),
        }
        self.flushed.elapsed() >= EVERY
    }

    /// Takes what is to be told of the text, all but what an earlier owner told, in the order in which it came.
    pub async fn take(&mut self, log: &Mutex<EventLog>) -> Vec<Piece> {
        self.flushed = Instant::now();
        let pieces = std::mem::take(&mut self.pieces);
        if pieces.is_empty() {
            return pieces;
        }
        // Counted only now: this owner has written `planned`, so that an earlier one is refused and adds no more.
        if self.already_written.is_none() {
            self.already_written = Some(log.lock().await.text_written().await);
        }
        pieces.into_iter().filter_map(|piece| self.new_of(piece)).collect()
    }

    /// What an earlier owner has not told of a piece.
    fn new_of(&mut self, piece: Piece) -> Option<Piece> {
        let told = self.already_written.as_mut().and_then(|written| written.get_mut(&piece.question));
        let skip = told.map_or(0, |told| {
            let skip = piece.delta.len().min(*told);
            *told -= skip;
            skip
        });
        let new = piece.delta.get(skip..).filter(|new| !new.is_empty())?;
        Some(Piece { delta: new.to_owned(), at: piece.at + skip as u64, ..piece })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(delta: &str, at: u64, question: Option<u32>) -> Piece {
        Piece { delta: delta.to_owned(), at, question }
    }

    #[test]
    fn text_of_several_answers_is_held_apart() {
        let mut held = HeldText::new();
        for (delta, at, question) in [("a", 0, Some(0)), ("x", 0, Some(1)), ("b", 1, Some(0))] {
            held.push(delta, at, question);
        }
        assert_eq!(held.pieces, [piece("ab", 0, Some(0)), piece("x", 0, Some(1))]);
    }

    #[test]
    fn what_an_earlier_owner_told_of_an_answer_is_not_told_again() {
        let mut held = HeldText::new();
        held.already_written = Some(BTreeMap::from([(Some(0), 3)]));
        assert_eq!(held.new_of(piece("ab", 0, Some(0))), None);
        assert_eq!(held.new_of(piece("xy", 0, Some(1))), Some(piece("xy", 0, Some(1))));
        assert_eq!(held.new_of(piece("cd", 2, Some(0))), Some(piece("d", 3, Some(0))));
        assert_eq!(held.new_of(piece("e", 4, Some(0))), Some(piece("e", 4, Some(0))));
    }
}
