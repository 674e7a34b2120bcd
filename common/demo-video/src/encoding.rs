//! Pictures and sound to a file: H.264 and AAC in MP4, with GStreamer.

use std::path::Path;

use anyhow::{Context, bail};
use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;

/// Encoders of H.264, the better one first, with their options.
const H264: [(&str, &str); 2] = [
    ("x264enc", "pass=quant quantizer=20 speed-preset=veryfast key-int-max=20"),
    ("openh264enc", "bitrate=4000000 gop-size=20"),
];
/// Other elements, and the Debian packages that have them.
const ELEMENTS: [(&str, &str); 6] = [
    ("appsrc", "gstreamer1.0-plugins-base"),
    ("videoconvert", "gstreamer1.0-plugins-base"),
    ("audioconvert", "gstreamer1.0-plugins-base"),
    ("avenc_aac", "gstreamer1.0-libav"),
    ("h264parse", "gstreamer1.0-plugins-bad"),
    ("mp4mux", "gstreamer1.0-plugins-good"),
];
/// Longest wait of a source for the encoder, bytes.
const QUEUED_BYTES: u64 = 8 << 20;
/// Samples of sound that are handed over at once.
const SAMPLES: usize = 1024;

/// Pictures of a video.
pub struct Pictures<'a> {
    /// Width and height.
    pub size: [usize; 2],
    /// Pictures a second.
    pub rate: u32,
    /// How many.
    pub count: u64,
    /// RGB of a picture by its number, 8 bits, row by row.
    pub picture: &'a (dyn Fn(u64) -> Vec<u8> + Sync),
}

/// Sound track of a video.
pub struct Track {
    /// Samples a second.
    pub rate: u32,
    /// Samples of its one channel.
    pub samples: Vec<i16>,
}

/// Writes a video; a file that is there is replaced.
///
/// # Errors
/// GStreamer's, with the package of an element that is missing.
pub fn encode(out: &Path, pictures: &Pictures<'_>, track: Option<Track>) -> anyhow::Result<()> {
    gst::init().context("GStreamer initialization failed: install gstreamer1.0-plugins-base")?;
    for (element, package) in ELEMENTS {
        if gst::ElementFactory::find(element).is_none() {
            bail!("cannot make a video: GStreamer has no element {element}; install {package}");
        }
    }
    let Some((h264, options)) = H264.into_iter().find(|(name, _)| gst::ElementFactory::find(name).is_some()) else {
        bail!("cannot make a video: GStreamer has no H.264 encoder; install gstreamer1.0-plugins-ugly (x264enc)");
    };
    let [width, height] = pictures.size;
    let mut line = format!(
        "mp4mux name=mux ! filesink name=file \
         appsrc name=pictures caps=video/x-raw,format=RGB,width={width},height={height},framerate={}/1 \
         ! videoconvert ! video/x-raw,format=I420,colorimetry=bt601 ! {h264} {options} ! h264parse ! queue ! mux.",
        pictures.rate
    );
    if let Some(track) = &track {
        line += &format!(
            " appsrc name=sound caps=audio/x-raw,format=S16LE,layout=interleaved,channels=1,rate={} ! audioconvert \
             ! avenc_aac bitrate=128000 ! aacparse ! queue ! mux.",
            track.rate
        );
    }
    let made = gst::parse::launch(&line).context("cannot make a video: GStreamer refuses the pipeline")?;
    let pipeline =
        made.downcast::<gst::Pipeline>().map_err(|_| anyhow::anyhow!("{line}: no pipeline. This is a bug."))?;
    let by_name = |name: &str| pipeline.by_name(name).with_context(|| format!("{line}: no {name}. This is a bug."));
    by_name("file")?.set_property("location", out);
    let picture_source = source(by_name("pictures")?)?;
    let sound_source = track.as_ref().map(|_| source(by_name("sound")?)).transpose()?;
    let outcome = std::thread::scope(|scope| {
        pipeline.set_state(gst::State::Playing).with_context(|| format!("cannot write {}", out.display()))?;
        if let (Some(source), Some(track)) = (sound_source, track) {
            scope.spawn(move || push_sound(&source, &track));
        }
        // Threads of their own: the muxer takes pictures and sound in turn, and either waits where it is full.
        scope.spawn(|| push_pictures(&picture_source, pictures));
        ended(&pipeline, out)
    });
    let stopped = pipeline.set_state(gst::State::Null);
    outcome?;
    stopped.map(|_| ()).with_context(|| format!("cannot finish {}", out.display()))
}

/// A source that waits while enough is queued.
fn source(element: gst::Element) -> anyhow::Result<gst_app::AppSrc> {
    let source = element.downcast::<gst_app::AppSrc>().map_err(|_| anyhow::anyhow!("no appsrc. This is a bug."))?;
    source.set_format(gst::Format::Time);
    source.set_block(true);
    source.set_max_bytes(QUEUED_BYTES);
    Ok(source)
}

/// Bytes with the time that they are about, as a count of units of which there are `rate` a second.
fn buffer(bytes: Vec<u8>, first: u64, units: u64, rate: u32) -> gst::Buffer {
    let time = |at: u64| gst::ClockTime::from_nseconds(at * gst::ClockTime::SECOND.nseconds() / u64::from(rate));
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    if let Some(buffer) = buffer.get_mut() {
        buffer.set_pts(time(first));
        buffer.set_duration(time(first + units) - time(first));
    }
    buffer
}

/// Hands all pictures over. What goes wrong stands on the pipeline's bus.
fn push_pictures(source: &gst_app::AppSrc, pictures: &Pictures<'_>) {
    for at in 0..pictures.count {
        if source.push_buffer(buffer((pictures.picture)(at), at, 1, pictures.rate)).is_err() {
            return;
        }
    }
    let _ = source.end_of_stream();
}

/// Hands all sound over. What goes wrong stands on the pipeline's bus.
fn push_sound(source: &gst_app::AppSrc, track: &Track) {
    let mut first = 0;
    for part in track.samples.chunks(SAMPLES) {
        let bytes = part.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        if source.push_buffer(buffer(bytes, first, part.len() as u64, track.rate)).is_err() {
            return;
        }
        first += part.len() as u64;
    }
    let _ = source.end_of_stream();
}

/// Waits until the file is complete, or GStreamer has failed.
fn ended(pipeline: &gst::Pipeline, out: &Path) -> anyhow::Result<()> {
    let bus = pipeline.bus().context("a pipeline without a bus. This is a bug.")?;
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let message =
        bus.timed_pop_filtered(gst::ClockTime::NONE, &kinds).context("GStreamer's bus was closed. This is a bug.")?;
    let outcome = match message.view() {
        gst::MessageView::Error(error) => {
            Err(anyhow::anyhow!("cannot write {}: {} ({:?})", out.display(), error.error(), error.debug()))
        }
        _ => Ok(()),
    };
    if outcome.is_err() {
        // A source that still waits for the encoder is let go.
        let _ = pipeline.set_state(gst::State::Null);
    }
    outcome
}
