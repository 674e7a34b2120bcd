//! A video file to frames and PCM windows, with GStreamer; no bus in sight.
//!
//! In reading order: [`media_path`] (which files may be opened), [`probe`] (what a file is, without decoding),
//! `pipeline` (one decoding GStreamer pipeline), then the picture's way: `video` (every picture is counted, some are
//! picked), `color` (YUV to RGB as swscale does it), [`picture`] (turning it upright), [`resize`] (Pillow's bicubic);
//! the sound's way: `audio`, `downmix`, `resample` (as libswresample does it), `spool` (sound on disk until its length
//! is known); `batch` (rows to messages), [`stage`] (both at once, into one port), [`npy`] and
//! [`dump`] (what was delivered, for the reference), [`open`](mod@open) (the stage as a process serves it).

pub mod dump;
pub mod media_path;
pub mod npy;
pub mod open;
pub mod picture;
pub mod probe;
pub mod resize;
pub mod stage;

mod audio;
mod batch;
mod color;
mod downmix;
mod failure;
mod identity;
mod pipeline;
mod resample;
mod spool;
mod video;

pub use open::open;
pub use probe::probe;
pub use stage::{DecodeConfig, DecodeStage};
