//! Windows of sound to encoder states: log-mel features, and the Whisper encoder.
//!
//! In reading order: [`mel`] (samples to what the encoder takes), [`conv`] and [`whisper`] (the encoder), [`stage`] (the two in a
//! row, for one window or several), [`open`](mod@open) (the stage as a process serves it).

pub mod conv;
pub mod mel;
pub mod open;
pub mod stage;
pub mod whisper;

pub use mel::LogMel;
pub use open::open;
pub use stage::AudioStage;
pub use whisper::WhisperEncoder;
