//! Decoding of an audio track to 16 kHz mono, as `ffmpeg -f s16le -ac 1 -ar 16000` gives it (MODEL.md 2.3).

use std::path::Path;

use gstreamer as gst;
use gstreamer_audio as gst_audio;
use protocol::error::{ErrorKind, JobError};
use protocol::stage::Stop;

use crate::downmix::Downmix;
use crate::failure;
use crate::media_file::MediaFile;
use crate::pipeline::{self, Interruption, Limits, TrackPipeline};
use crate::probe::{AudioTrack, Trim};
use crate::resample::Resampler;
use crate::spool::Spool;

/// Decodes the whole track into a spool.
///
/// # Errors
/// GStreamer's error before the first sample, `internal` if the temporary directory is full, and `Cancelled`.
pub(crate) fn decode(
    media: &MediaFile,
    track: &AudioTrack,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<Spool, Stop> {
    pipeline::init()?;
    let convert = pipeline::element("audioconvert")?;
    let caps = gst_audio::AudioCapsBuilder::new_interleaved().format(gst_audio::AudioFormat::F32le).build();
    let pipeline = TrackPipeline::start(media, track.selection.clone(), &convert, &caps, limits)?;
    let mut writer = SpoolWriter::new(track.trim).map_err(|e| spool_failed(&e))?;
    loop {
        let sample = match pipeline.pull(cancelled) {
            Ok(Some(sample)) => sample,
            Ok(None) => break,
            Err(Interruption::Broken(error)) if writer.format.is_some() => {
                tracing::warn!(file = %media.path().display(), %error, "decoding of audio failed, the rest is missing");
                break;
            }
            Err(other) => return Err(other.into()),
        };
        writer.take(media.path(), &sample)?;
    }
    drop(pipeline);
    Ok(writer.finish()?)
}

/// `internal` for a temporary directory that does not take the audio.
pub(crate) fn spool_failed(error: &std::io::Error) -> JobError {
    let place = std::env::temp_dir();
    JobError::new(ErrorKind::Internal, format!("cannot write decoded audio to {}: {error}", place.display()))
        .hint("free space there (115 MB per hour of video), or set TMPDIR to another place")
}

/// Conversion of decoded samples to 16 kHz mono in a spool.
struct SpoolWriter {
    trim: Trim,
    format: Option<gst_audio::AudioInfo>,
    downmix: Option<Downmix>,
    resampler: Option<Resampler>,
    /// Decoded samples per channel still to drop.
    skip: u64,
    /// Decoded samples per channel still to keep after those.
    keep: u64,
    /// Decoded samples that may turn out to be the padding at the end.
    held: Vec<f32>,
    /// Number of samples of that padding.
    hold: usize,
    mono: Vec<f32>,
    resampled: Vec<f32>,
    spool: Spool,
}

impl SpoolWriter {
    fn new(trim: Trim) -> std::io::Result<Self> {
        Ok(SpoolWriter {
            trim,
            format: None,
            downmix: None,
            resampler: None,
            skip: 0,
            keep: u64::MAX,
            held: Vec::new(),
            hold: 0,
            mono: Vec::new(),
            resampled: Vec::new(),
            spool: Spool::new()?,
        })
    }

    fn take(&mut self, path: &Path, sample: &gst::Sample) -> Result<(), JobError> {
        let odd = |what: &str| failure::unsupported(path, what);
        let caps = sample.caps().ok_or_else(|| odd("decoded audio has no format"))?;
        let info = gst_audio::AudioInfo::from_caps(caps).map_err(|e| odd(&format!("{caps}: {e}")))?;
        if self.format.as_ref() != Some(&info) {
            self.retune(info)?;
        }
        let map =
            sample.buffer().and_then(|b| b.map_readable().ok()).ok_or_else(|| odd("decoded audio has no data"))?;
        let interleaved: Vec<f32> = map.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        self.mono.clear();
        if let Some(downmix) = &self.downmix {
            downmix.mix(&interleaved, &mut self.mono);
        }
        let skipped = self.skip.min(self.mono.len() as u64);
        self.skip -= skipped;
        let kept = self.keep.min(self.mono.len() as u64 - skipped);
        self.keep -= kept;
        self.held.extend_from_slice(&self.mono[skipped as usize..(skipped + kept) as usize]);
        let ready = self.held.len().saturating_sub(self.hold);
        let ready: Vec<f32> = self.held.drain(..ready).collect();
        self.pass_on(&ready).map_err(|e| spool_failed(&e))
    }

    /// Restarts downmix and resampler for another sample rate or layout; the trim is in samples of the first one.
    fn retune(&mut self, info: gst_audio::AudioInfo) -> Result<(), JobError> {
        if self.format.is_none() {
            let ticks = u128::from(self.trim.timescale);
            let rate = u128::from(info.rate());
            let scaled =
                |t: u64| (u128::from(t) * rate + ticks / 2).checked_div(ticks).map_or(t, |samples| samples as u64);
            self.skip = scaled(self.trim.skip);
            self.keep = self.trim.keep.map_or(u64::MAX, scaled);
            self.hold = scaled(self.trim.discard) as usize;
        }
        self.flush().map_err(|e| spool_failed(&e))?;
        self.downmix = Some(Downmix::new(&info));
        self.resampler = Resampler::new(info.rate());
        self.format = Some(info);
        Ok(())
    }

    fn pass_on(&mut self, mono: &[f32]) -> std::io::Result<()> {
        match &mut self.resampler {
            Some(resampler) => {
                self.resampled.clear();
                resampler.push(mono, &mut self.resampled);
                self.spool.push(&self.resampled)
            }
            None => self.spool.push(mono),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.resampled.clear();
        if let Some(resampler) = self.resampler.take() {
            resampler.finish(&mut self.resampled);
        }
        self.spool.push(&self.resampled)
    }

    fn finish(mut self) -> Result<Spool, JobError> {
        self.flush().map_err(|e| spool_failed(&e))?;
        Ok(self.spool)
    }
}
