//! Frames to pooled patch features: the SigLIP tower, and the way from its patches to token cells.
//!
//! In reading order: [`pixels`] (what the tower makes of a byte), [`siglip`] (the tower), [`pool`] (patches to cells),
//! [`stage`] (tower and pool in a row, for one message or several), [`open`](mod@open) (the stage as a process serves it).

pub mod open;
pub mod pixels;
pub mod pool;
pub mod siglip;
pub mod stage;

pub use open::{load, open};
pub use pool::Pool;
pub use siglip::SiglipEncoder;
pub use stage::VisionStage;
