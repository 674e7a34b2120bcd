//! Choice of a track: the one that ffmpeg would take, of those that decode here. What is left out for that is noted.

use protocol::error::JobError;
use protocol::stage::Stop;

use super::examined::codec_name;
use crate::failure::Missing;
use crate::media_file::MediaFile;
use crate::pipeline::{self, Kind, LastPackets, Limits, Selection};

/// Codecs that are not tried: their decoders take whatever a container holds of them.
const UNTRIED: [&str; 13] =
    ["h264", "vp8", "vp9", "av1", "opus", "mp2", "mp3", "flac", "vorbis", "ac3", "eac3", "pcm", "mpeg4"];

/// Tracks of a kind that are tried at most.
const MAX_TRIED: usize = 8;

/// A track that might be used.
pub(super) struct Candidate<'t, T> {
    pub(super) track: &'t T,
    /// Number of the track in its container, if it has one.
    pub(super) number: Option<u64>,
    pub(super) codec: String,
    /// Why it is not used, if that is known without a look at its content.
    pub(super) excess: Option<String>,
}

/// Chooser of the tracks of a file.
pub(super) struct Choice<'f> {
    media: &'f MediaFile,
    limits: Limits,
    cancelled: &'f dyn Fn() -> bool,
    /// A sentence for each track that would have been used, had it been readable.
    pub(super) notes: Vec<String>,
}

impl<'f> Choice<'f> {
    pub(super) fn new(media: &'f MediaFile, limits: Limits, cancelled: &'f dyn Fn() -> bool) -> Self {
        Choice { media, limits, cancelled, notes: Vec::new() }
    }

    /// The first of the candidates, best first, that decodes, and how the demuxer is to see the file for it. That is made for
    /// one after the other: it grows with the tracks of the file.
    ///
    /// # Errors
    /// `Cancelled`, and the refusal of the whole file.
    pub(super) fn first<'t, T>(
        &mut self,
        candidates: Vec<Candidate<'t, T>>,
        select: &dyn Fn(&'t T) -> Selection,
    ) -> Result<Option<(Candidate<'t, T>, Selection)>, Stop> {
        for candidate in candidates.into_iter().take(MAX_TRIED) {
            let selection = select(candidate.track);
            let tried = candidate.excess.is_none() && !UNTRIED.contains(&candidate.codec.as_str());
            let reason = match tried {
                true => pipeline::trial(self.media, &selection, self.limits, self.cancelled)?
                    .map(|error| reason(self.media, &error.message)),
                false => candidate.excess.clone(),
            };
            let Some(reason) = reason else { return Ok(Some((candidate, selection))) };
            self.notes.push(note(selection.kind, candidate.number, &candidate.codec, &reason) + &hint(selection.kind));
        }
        Ok(None)
    }
}

impl Choice<'_> {
    /// Whether the sample of a film that is cut, if one is, gives a picture, and whether the decoder is given it.
    ///
    /// # Errors
    /// `Cancelled`, the refusal of the file, and no progress for too long.
    pub(super) fn gives_cut_sample(&self, selection: &Selection) -> Result<[bool; 2], Stop> {
        let Some(cut) = selection.cut else { return Ok([true; 2]) };
        let packets = LastPackets::read(self.media, selection, cut, self.limits, self.cancelled)?;
        // A parser may leave it out.
        let is_given = packets.count() > cut.number;
        Ok([is_given && self.gives_last(&packets)?, is_given])
    }

    /// Whether the last of some packets gives a picture.
    ///
    /// # Errors
    /// `Cancelled`, and no progress for too long.
    pub(super) fn gives_last(&self, packets: &LastPackets) -> Result<bool, Stop> {
        pipeline::gives_last(packets, self.media, self.limits, self.cancelled)
    }

    /// Notes a track that was not found to have anything that is read.
    pub(super) fn leave_out(&mut self, kind: Kind, missing: &Missing) {
        let note = note(kind, None, &codec_name(&missing.caps_name), &reason(self.media, &missing.error.message));
        self.notes.push(if missing.converts { note + &hint(kind) } else { note });
    }

    /// Checks the size of the largest pictures of a track that is used.
    ///
    /// # Errors
    /// `unsupported_media` for larger ones than allowed, with the figures.
    pub(super) fn check_size(&self, size: [u32; 2]) -> Result<(), JobError> {
        self.limits.check(self.media.path(), size)
    }
}

/// What an error about a file says, without the file's name.
fn reason(media: &MediaFile, message: &str) -> String {
    let named = format!("cannot decode {}: ", media.path().display());
    message.strip_prefix(&named).unwrap_or(message).to_owned()
}

/// Sentence about a track that is not used.
fn note(kind: Kind, number: Option<u64>, codec: &str, reason: &str) -> String {
    let number = number.map_or(String::new(), |number| format!(" {number}"));
    format!("{} track{number} ({codec}) is not read: {reason}", kind.noun())
}

/// What to do about such a track.
fn hint(kind: Kind) -> String {
    let other = match kind {
        Kind::Video => "-c:a copy",
        Kind::Audio => "-c:v copy",
    };
    format!(" (ffmpeg -i IN {other} OUT.mp4 converts it)")
}
