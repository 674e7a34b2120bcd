//! Decoding of an audio track to 16 kHz mono, as `ffmpeg -f s16le -ac 1 -ar 16000` gives it (MODEL.md 2.3).

use std::ops::Range;
use std::path::Path;

use gstreamer as gst;
use gstreamer_audio as gst_audio;
use protocol::error::{ErrorKind, JobError};
use protocol::stage::Stop;

use crate::downmix::Downmix;
use crate::failure;
use crate::media_file::MediaFile;
use crate::pcm::{self, Pcm};
use crate::pipeline::{self, Interruption, Kind, Limits, Selection, TrackPipeline};
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
    let mut writer = SpoolWriter::new(track.trim.clone()).map_err(|e| spool_failed(&e))?;
    for pass in 0..track.trim.passes.len().max(1 + track.links.len()) {
        writer.begin(pass);
        let selection = pass.checked_sub(1).and_then(|pass| track.links.get(pass)).unwrap_or(&track.selection);
        match &track.pcm {
            Some(pcm) => read_pass(media, pcm, cancelled, &mut writer)?,
            None => decode_pass(media, selection, limits, cancelled, &mut writer)?,
        }
    }
    Ok(writer.finish()?)
}

/// Decodes a track once, as far as the writer takes something of it.
fn decode_pass(
    media: &MediaFile,
    selection: &Selection,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
    writer: &mut SpoolWriter,
) -> Result<(), Stop> {
    let (convert, caps) = pipeline::tail(Kind::Audio)?;
    let pipeline = TrackPipeline::start(media, selection.clone(), &convert, &caps, limits)?;
    while !writer.is_done() {
        let sample = match pipeline.pull(cancelled) {
            Ok(Some(sample)) => sample,
            Ok(None) => break,
            Err(Interruption::Broken(error)) if writer.format.is_some() => {
                tracing::warn!(file = %media.path().display(), %error, "decoding of audio failed, the rest is missing");
                break;
            }
            Err(other) => return Err(other.into()),
        };
        let clips = pipeline.parsed_caps().is_some_and(|caps| clips(&caps));
        writer.take(media.path(), &sample, clips)?;
    }
    Ok(())
}

/// Whether ffmpeg's decoder clips what it decodes: that of MPEG sound of layers 1 and 2 gives whole numbers of 16 bits, where GStreamer has the one
/// of floating point alone.
fn clips(caps: &gst::CapsRef) -> bool {
    let Some(sound) = caps.structure(0).filter(|sound| sound.name() == "audio/mpeg") else { return false };
    sound.get::<i32>("mpegversion") == Ok(1) && sound.get::<i32>("layer").is_ok_and(|layer| layer < 3)
}

/// Reads uncompressed sound once, as far as the writer takes something of it.
fn read_pass(media: &MediaFile, pcm: &Pcm, cancelled: &dyn Fn() -> bool, writer: &mut SpoolWriter) -> Result<(), Stop> {
    let format = gst_audio::AudioInfo::builder(gst_audio::AudioFormat::F32le, pcm.rate, pcm.channels).build();
    let format = format.map_err(|e| failure::unsupported(media.path(), &e.to_string()))?;
    writer.expect(&format)?;
    let mut interleaved = Vec::new();
    for &(at, samples) in &pcm.chunks {
        for from in (0..samples).step_by(pcm::BLOCK as usize) {
            if cancelled() {
                return Err(Stop::Cancelled);
            }
            if writer.is_done() {
                return Ok(());
            }
            let count = pcm::BLOCK.min(samples - from);
            if !writer.wants(count) {
                writer.at += count;
                continue;
            }
            let read = pcm.read(media, at, from, count, &mut interleaved);
            read.map_err(|e| failure::unreadable(media.path(), &e))?;
            writer.mix(&interleaved)?;
            if interleaved.len() as u64 != count * u64::from(pcm.channels) {
                tracing::warn!(file = %media.path().display(), "the file ends within its sound, the rest is missing");
                return Ok(());
            }
        }
    }
    Ok(())
}

/// `internal` for a temporary directory that does not take the audio.
pub(crate) fn spool_failed(error: &std::io::Error) -> JobError {
    let place = config::temp_dir();
    JobError::new(ErrorKind::Internal, format!("cannot write decoded audio to {}: {error}", place.display()))
        .hint("free space there (115 MB per hour of video), or set TMPDIR to another place")
}

/// Conversion of decoded samples to 16 kHz mono in a spool.
struct SpoolWriter {
    trim: Trim,
    format: Option<gst_audio::AudioInfo>,
    /// Samples a second of the first format; 0 before it.
    rate: u32,
    downmix: Option<Downmix>,
    resampler: Option<Resampler>,
    /// Pass over the track.
    pass: usize,
    /// Number of the next decoded sample of each channel in that pass.
    at: u64,
    /// Decoded samples that are kept, in this pass; none before the first one tells their rate.
    kept: Vec<Range<u64>>,
    /// Decoded samples that may turn out to be the padding at the end of the pass.
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
            rate: 0,
            downmix: None,
            resampler: None,
            pass: 0,
            at: 0,
            kept: Vec::new(),
            held: Vec::new(),
            hold: 0,
            mono: Vec::new(),
            resampled: Vec::new(),
            spool: Spool::new()?,
        })
    }

    /// Begins a pass over the track.
    fn begin(&mut self, pass: usize) {
        (self.pass, self.at) = (pass, 0);
        self.held.clear();
        if self.rate > 0 {
            self.hold = self.scaled(self.trim.discard.get(pass).copied().unwrap_or(0)) as usize;
            self.kept = match self.trim.passes.get(pass) {
                Some(parts) => parts.iter().map(|part| self.scaled(part.start)..self.scaled(part.end)).collect(),
                None => std::iter::once(0..u64::MAX).collect(),
            };
        }
    }

    /// Samples of the first format in so many ticks.
    fn scaled(&self, ticks: u64) -> u64 {
        let per_second = u128::from(self.trim.timescale);
        let scaled = (u128::from(ticks) * u128::from(self.rate) + per_second / 2).checked_div(per_second);
        scaled.map_or(ticks, |samples| u64::try_from(samples).unwrap_or(u64::MAX))
    }

    /// Whether nothing that is still to come in this pass is kept.
    fn is_done(&self) -> bool {
        self.rate > 0 && self.kept.last().is_none_or(|part| part.end <= self.at)
    }

    /// Takes what was decoded, clipped to the full scale or not.
    fn take(&mut self, path: &Path, sample: &gst::Sample, clips: bool) -> Result<(), JobError> {
        let odd = |what: &str| failure::unsupported(path, what);
        let caps = sample.caps().ok_or_else(|| odd("decoded audio has no format"))?;
        let info = gst_audio::AudioInfo::from_caps(caps).map_err(|e| odd(&format!("{caps}: {e}")))?;
        self.expect(&info)?;
        let map =
            sample.buffer().and_then(|b| b.map_readable().ok()).ok_or_else(|| odd("decoded audio has no data"))?;
        let limit = if clips { 1.0 } else { f32::INFINITY };
        let decoded = map.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).clamp(-limit, limit));
        let interleaved: Vec<f32> = decoded.collect();
        self.mix(&interleaved)
    }

    /// Prepares for samples of a format.
    fn expect(&mut self, format: &gst_audio::AudioInfo) -> Result<(), JobError> {
        if self.format.as_ref() == Some(format) { Ok(()) } else { self.retune(format.clone()) }
    }

    /// Whether any of the next `count` samples is kept.
    fn wants(&self, count: u64) -> bool {
        let next = self.kept.partition_point(|part| part.end <= self.at);
        self.kept.get(next).is_some_and(|part| part.start < self.at + count)
    }

    /// Takes interleaved samples of the format that is expected.
    fn mix(&mut self, interleaved: &[f32]) -> Result<(), JobError> {
        self.mono.clear();
        if let Some(downmix) = &self.downmix {
            downmix.mix(interleaved, &mut self.mono);
        }
        let (start, end) = (self.at, self.at + self.mono.len() as u64);
        let first = self.kept.partition_point(|part| part.end <= start);
        for part in self.kept[first..].iter().take_while(|part| part.start < end) {
            let (from, to) = (part.start.max(start) - start, part.end.min(end) - start);
            self.held.extend_from_slice(&self.mono[from as usize..to as usize]);
        }
        self.at = end;
        let ready = self.held.len().saturating_sub(self.hold);
        let ready: Vec<f32> = self.held.drain(..ready).collect();
        self.pass_on(&ready).map_err(|e| spool_failed(&e))
    }

    /// Restarts downmix and resampler for another sample rate or layout; what is kept is in samples of the first one.
    fn retune(&mut self, info: gst_audio::AudioInfo) -> Result<(), JobError> {
        if self.rate == 0 {
            self.rate = info.rate();
            self.begin(self.pass);
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
