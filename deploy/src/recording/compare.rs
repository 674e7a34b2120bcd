//! Comparison of rows with recorded rows, however either was cut into messages.

use std::collections::BTreeMap;
use std::io::BufRead;

use protocol::event::{Event, JobEvent};
use protocol::message::{JobId, Modality, Output};
use protocol::plan::WINDOW_SAMPLES;
use protocol::rows::RowSet;
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::{self, WireError};
use serde::Serialize;

use super::kind::{Kind, Part};
use super::publication::output;
use super::reader::Reader;

/// Recorded rows of one job's parts, and how far the rows that came since agree with them.
#[derive(Debug, Default)]
pub struct Comparison {
    parts: BTreeMap<Part, Rows>,
    /// Token ids of the answer: recorded, and heard.
    answer: Option<(Vec<u32>, Option<Vec<u32>>)>,
}

/// Comparison of one part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Kind of the messages that carry it.
    pub kind: Kind,
    /// Modality.
    pub modality: Modality,
    /// Rows in the recording.
    pub recorded: u64,
    /// Rows among them that came.
    pub compared: u64,
    /// The first rows that did not come, if some did not.
    pub first_missing: Option<(u64, u64)>,
    /// Rows that came and are not in the recording.
    pub not_recorded: u64,
    /// Root mean square of the differences over that of the recorded values.
    pub relative_rms: f64,
    /// Largest difference.
    pub max_abs: f64,
    /// Differences in kind: dtype or width of a row.
    pub mismatch: Option<String>,
}

impl Agreement {
    /// Whether every recorded row came and agrees.
    pub fn holds(&self, tolerance: f64) -> bool {
        self.mismatch.is_none() && self.compared == self.recorded && self.relative_rms <= tolerance
    }
}

/// One part's recorded rows.
#[derive(Debug, Default)]
struct Rows {
    /// By first row. Pieces may overlap.
    pieces: BTreeMap<u64, Tensor<'static>>,
    recorded: RowSet,
    came: RowSet,
    compared: u64,
    not_recorded: u64,
    squares_of_difference: f64,
    squares: f64,
    max_abs: f64,
    mismatch: Option<String>,
}

impl Comparison {
    /// Reads what a recording holds of `parts` of `job`, and of its answer if `answer`. It stays in memory.
    ///
    /// # Errors
    /// A recorded message of these parts that cannot be understood.
    pub fn read<R: BufRead>(
        reader: &mut Reader<R>,
        job: &JobId,
        parts: &[Part],
        answer: bool,
    ) -> Result<Self, WireError> {
        let mut comparison = Comparison::default();
        for record in reader {
            let Some(kind) = record.kind().filter(|_| record.job().as_ref() == Some(job)) else { continue };
            if parts.iter().any(|(k, _)| *k == kind) {
                let output = output(kind, &record.body)?;
                let (modality, offset, tensor) = rows_of(&output);
                if parts.contains(&(kind, modality)) {
                    let rows = comparison.parts.entry((kind, modality)).or_default();
                    rows.recorded.insert(offset..offset + tensor.rows() as u64);
                    rows.pieces.insert(offset, owned(tensor)?);
                }
            } else if answer
                && kind == Kind::Events
                && let Event::Result(result) = wire::decode_any::<JobEvent>(&record.body)?.event
            {
                comparison.answer = Some((result.token_ids, None));
            }
        }
        Ok(comparison)
    }

    /// Whether the recording holds nothing to compare with.
    pub fn is_empty(&self) -> bool {
        self.answer.is_none() && self.parts.values().all(|r| r.recorded.is_empty())
    }

    /// Whether everything that was recorded has come.
    pub fn is_complete(&self) -> bool {
        self.answer.as_ref().is_none_or(|(_, heard)| heard.is_some())
            && self.parts.values().all(|r| r.compared == r.recorded.len())
    }

    /// Compares rows that came. Rows that came before are passed over.
    pub fn take(&mut self, kind: Kind, output: &Output<'_>) {
        let (modality, offset, tensor) = rows_of(output);
        if let Some(rows) = self.parts.get_mut(&(kind, modality)) {
            for new in rows.came.insert(offset..offset + tensor.rows() as u64) {
                rows.compare(new.start, &tensor.narrow((new.start - offset) as usize, (new.end - new.start) as usize));
            }
        }
    }

    /// Compares an answer that came.
    pub fn take_answer(&mut self, token_ids: Vec<u32>) {
        if let Some((_, heard)) = &mut self.answer {
            *heard = Some(token_ids);
        }
    }

    /// The answer's token ids: recorded, and heard.
    pub fn answer(&self) -> Option<&(Vec<u32>, Option<Vec<u32>>)> {
        self.answer.as_ref()
    }

    /// How each part compares.
    pub fn agreements(&self) -> Vec<Agreement> {
        let agreement = |(&(kind, modality), rows): (&Part, &Rows)| Agreement {
            kind,
            modality,
            recorded: rows.recorded.len(),
            compared: rows.compared,
            first_missing: rows.first_missing(),
            not_recorded: rows.not_recorded,
            relative_rms: match (rows.squares_of_difference, rows.squares) {
                (0.0, _) => 0.0,
                (difference, squares) => (difference / squares).sqrt(),
            },
            max_abs: rows.max_abs,
            mismatch: rows.mismatch.clone(),
        };
        self.parts.iter().map(agreement).collect()
    }

    /// Whether everything that was recorded came and agrees.
    pub fn holds(&self, tolerance: f64) -> bool {
        self.answer.as_ref().is_none_or(|(recorded, heard)| heard.as_ref() == Some(recorded))
            && self.agreements().iter().all(|a| a.holds(tolerance))
    }
}

impl Rows {
    /// Compares rows `offset..`, none of which came before.
    fn compare(&mut self, offset: u64, came: &Tensor<'_>) {
        let end = offset + came.rows() as u64;
        let mut done = RowSet::new();
        // Pieces are at most as long as a message, but how long is not known: look at all that start before the end.
        let pieces: Vec<u64> = self.pieces.range(..end).map(|(&at, _)| at).collect();
        for at in pieces {
            let piece = &self.pieces[&at];
            let (from, to) = (at.max(offset), (at + piece.rows() as u64).min(end));
            if from >= to {
                continue;
            }
            if piece.dtype() != came.dtype() || piece.shape()[1..] != came.shape()[1..] {
                let shape = |t: &Tensor<'_>| format!("{} rows of {:?}", t.dtype(), &t.shape()[1..]);
                self.mismatch.get_or_insert(format!("{} instead of {}", shape(came), shape(piece)));
                return;
            }
            for new in done.insert(from..to) {
                let n = (new.end - new.start) as usize;
                let recorded = piece.narrow((new.start - at) as usize, n);
                let came = came.narrow((new.start - offset) as usize, n);
                for (a, b) in values(&recorded).zip(values(&came)) {
                    // Equal infinities, and what is not a number in both, are no difference.
                    let difference = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
                    self.squares_of_difference += difference * difference;
                    self.squares += if a.is_finite() { a * a } else { 0.0 };
                    self.max_abs =
                        if difference > self.max_abs || difference.is_nan() { difference } else { self.max_abs };
                }
            }
        }
        self.compared += done.len();
        self.not_recorded += (end - offset) - done.len();
    }

    /// The first recorded rows that did not come.
    fn first_missing(&self) -> Option<(u64, u64)> {
        let missing = |(&at, piece): (&u64, &Tensor<'_>)| {
            self.came.clone().insert(at..at + piece.rows() as u64).first().map(|gap| (gap.start, gap.end))
        };
        self.pieces.iter().find_map(missing)
    }
}

/// Which rows a batch holds. A window of sound holds samples.
fn rows_of<'a, 'b>(output: &'a Output<'b>) -> (Modality, u64, &'a Tensor<'b>) {
    match output {
        Output::Frames(m) => (Modality::Image, m.offset, &m.tensor),
        Output::Pcm(m) => (Modality::Audio, m.index * WINDOW_SAMPLES, &m.tensor),
        Output::Features(m) => (m.modality, m.offset, &m.tensor),
        Output::Tokens(m) => (m.modality, m.offset, &m.tensor),
    }
}

fn owned(tensor: &Tensor<'_>) -> Result<Tensor<'static>, WireError> {
    Tensor::new(tensor.dtype(), &tensor.shape(), tensor.data().to_vec())
}

/// The elements, each as exactly the number that it stands for.
fn values(tensor: &Tensor<'_>) -> impl Iterator<Item = f64> {
    let dtype = tensor.dtype();
    tensor.data().chunks_exact(dtype.size()).map(move |b| match dtype {
        Dtype::U8 => f64::from(b[0]),
        Dtype::I16 => f64::from(i16::from_le_bytes([b[0], b[1]])),
        Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
        Dtype::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        Dtype::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    })
}
