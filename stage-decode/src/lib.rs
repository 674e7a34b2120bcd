//! Decoding of video files into frames and PCM windows with GStreamer. The library knows no message bus.
//!
//! In reading order: `media_path` (which files may be opened), `beneath` (how), `media_file` (an open file), ``offline`
//! (threads without a network), `crew` (and what becomes of one that a read holds up), `probe` (facts of a file, without decoding), `pipeline` (a GStreamer pipeline that decodes one track); for video `timeline` (the
//! number of a decoded picture), `picks` (which numbers are used), `unneeded` (what need not be decoded), `video` (both on a pipeline), `color` (YUV to RGB as
//! swscale does it), [`picture`] (rotation), [`resize`] (Pillow's bicubic); for audio `audio`, `pcm` (sound that needs no decoder), `downmix`, `resample` (as
//! libswresample does it), `spool` (samples on disk until their number is known); `batch` (rows to messages), [`stage`]
//! (video and audio at once, into one port), [`npy`] and [`dump`] (the delivered rows, for the reference),
//! `fetched` (copies of files that travel over the bus), [`open`](mod@open) (the stage as a process serves it); `bits`, `failure` and `identity` serve several of them.

pub mod dump;
pub mod npy;
#[cfg(feature = "gstreamer")]
pub mod open;
pub mod picture;
pub mod resize;
#[cfg(feature = "gstreamer")]
pub mod stage;

#[cfg(feature = "gstreamer")]
mod audio;
#[cfg(feature = "gstreamer")]
mod batch;
#[cfg(feature = "gstreamer")]
mod beneath;
#[cfg(feature = "gstreamer")]
mod bits;
#[cfg(feature = "gstreamer")]
mod color;
#[cfg(feature = "gstreamer")]
mod crew;
#[cfg(feature = "gstreamer")]
mod downmix;
#[cfg(feature = "gstreamer")]
mod failure;
#[cfg(feature = "gstreamer")]
mod fetched;
#[cfg(feature = "gstreamer")]
mod identity;
#[cfg(feature = "gstreamer")]
mod media_file;
#[cfg(feature = "gstreamer")]
mod media_path;
#[cfg(feature = "gstreamer")]
mod offline;
#[cfg(feature = "gstreamer")]
mod pcm;
#[cfg(feature = "gstreamer")]
mod picks;
#[cfg(feature = "gstreamer")]
mod pipeline;
#[cfg(feature = "gstreamer")]
mod probe;
#[cfg(feature = "gstreamer")]
mod resample;
#[cfg(feature = "gstreamer")]
mod spool;
#[cfg(feature = "gstreamer")]
mod timeline;
#[cfg(feature = "gstreamer")]
mod unneeded;
#[cfg(feature = "gstreamer")]
mod video;

#[cfg(feature = "gstreamer")]
pub use open::open;
#[cfg(feature = "gstreamer")]
pub use stage::{DecodeOptions, DecodeStage};
