//! End of a scanned file: how the demuxer is to see it where it is cut, and what of the last packet counts.

use std::io;

use protocol::stage::Stop;

use super::counted::Counted;
use crate::pipeline::Overlay;
use crate::probe::bytes::Bytes;
use crate::probe::choice::Choice;
use crate::probe::examined::Trim;
use crate::probe::{asf, avi, flv, ps, ts, wav};

/// What the bytes of a file tell besides its packets.
pub(super) struct Ending {
    /// How the demuxer is to see the file.
    pub(super) overlays: Vec<Overlay>,
    /// Times that the tags of an FLV file state.
    pub(super) tags: Option<flv::Times>,
    /// Block of ADPCM that is cut.
    cut_block: Option<wav::CutBlock>,
}

impl Ending {
    /// Reads it.
    ///
    /// # Errors
    /// That of a read, and a file that takes too long to read.
    pub(super) fn read(bytes: &mut Bytes<'_>) -> io::Result<Self> {
        let mut overlays = ts::untold_sounds(bytes)?;
        overlays.extend(asf::cut_packet(bytes)?);
        overlays.extend(avi::cut_chunk(bytes)?);
        overlays.extend(ps::cut_packet(bytes)?);
        let (tags, cut_block) = (flv::Times::read(bytes).ok().flatten(), wav::cut_block(bytes)?);
        overlays.extend(tags.iter().flat_map(flv::Times::cut_tag));
        overlays.extend(cut_block.iter().map(|block| block.rest.clone()));
        Ok(Ending { overlays, tags, cut_block })
    }

    /// Whether the last packet of a track gives a picture.
    ///
    /// # Errors
    /// `Cancelled`, and no progress for too long.
    pub(super) fn gives_last(&self, bytes: &mut Bytes<'_>, track: &Counted, choice: &Choice<'_>) -> Result<bool, Stop> {
        let start = bytes.array::<12>(0).unwrap_or_default();
        // These tell where a packet ends, and the pages of Ogg are whole.
        let tells_end = &start[8..] == b"AVI " || start.starts_with(b"OggS") || self.tags.is_some() || asf::is(bytes);
        if track.ends_in_second || self.overlays.is_empty() && tells_end {
            return Ok(true);
        }
        choice.gives_last(&track.last)
    }

    /// Seconds of a sound whose last block is cut, and what of it is kept.
    pub(super) fn cut_sound(&self, codec: &str) -> Option<(f64, Trim)> {
        let block = self.cut_block.as_ref().filter(|block| codec == "audio/x-adpcm" && block.rate > 0)?;
        Some((block.samples as f64 / f64::from(block.rate), Trim::after(0, Some(block.samples))))
    }
}
