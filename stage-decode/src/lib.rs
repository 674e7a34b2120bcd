//! A video file to frames and PCM windows, with GStreamer; no bus in sight.
//!
//! In reading order: [`media_path`] (which files may be opened), [`probe`] (what a file is, without decoding),
//! `pipeline` (one decoding GStreamer pipeline), then the picture's way: `timeline` (which picture a decoded one is),
//! `picks` (which are looked at), `video` (both on a pipeline), `color` (YUV to RGB as swscale does it), [`picture`]
//! (turning it upright), [`resize`] (Pillow's bicubic); the sound's way: `audio`, `downmix`, `resample` (as
//! libswresample does it), `spool` (sound on disk until its length is known); `batch` (rows to messages), [`stage`]
//! (both at once, into one port), [`npy`] and [`dump`] (what was delivered, for the reference), [`open`](mod@open) (the
//! stage as a process serves it).

pub mod dump;
#[cfg(feature = "gstreamer")]
pub mod media_path;
pub mod npy;
#[cfg(feature = "gstreamer")]
pub mod open;
pub mod picture;
#[cfg(feature = "gstreamer")]
pub mod probe;
pub mod resize;
#[cfg(feature = "gstreamer")]
pub mod stage;

#[cfg(feature = "gstreamer")]
mod audio;
#[cfg(feature = "gstreamer")]
mod batch;
#[cfg(feature = "gstreamer")]
mod color;
#[cfg(feature = "gstreamer")]
mod downmix;
#[cfg(feature = "gstreamer")]
mod failure;
#[cfg(feature = "gstreamer")]
mod identity;
#[cfg(feature = "gstreamer")]
mod picks;
#[cfg(feature = "gstreamer")]
mod pipeline;
#[cfg(feature = "gstreamer")]
mod resample;
#[cfg(feature = "gstreamer")]
mod spool;
#[cfg(feature = "gstreamer")]
mod timeline;
#[cfg(feature = "gstreamer")]
mod video;

#[cfg(feature = "gstreamer")]
pub use open::open;
#[cfg(feature = "gstreamer")]
pub use probe::probe;
#[cfg(feature = "gstreamer")]
pub use stage::{DecodeConfig, DecodeStage};
