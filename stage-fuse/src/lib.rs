//! Features to tokens in the language model's space: projectors, position embeddings and norms.
//!
//! In reading order: `layers` (what all adapters are made of), [`frequency`] and [`position`] (where a token stands),
//! [`adapters`] (features and positions to tokens), [`stage`] (one message at a time), [`open`](mod@open) (the stage as
//! a process serves it).

pub mod adapters;
pub mod frequency;
mod layers;
pub mod open;
pub mod position;
pub mod stage;

pub use adapters::Fuser;
pub use open::open;
pub use position::PositionEmbedding;
pub use stage::FuseStage;
