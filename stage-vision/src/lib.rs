//! Frames to pooled patch features: the SigLIP 2 tower, and the merge of its patches into token cells.
//!
//! In reading order: [`pixels`] (what the tower makes of a byte), [`siglip`] (the tower), [`stage`] (tower and pool in a
//! row, one message at a time), [`open`](mod@open) (the stage as a process serves it).

pub mod open;
pub mod pixels;
pub mod siglip;
pub mod stage;

pub use open::open;
pub use siglip::SiglipEncoder;
pub use stage::VisionStage;
