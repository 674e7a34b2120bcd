//! The layers that both encoders are made of, as a checkpoint holds them.

mod encoder;
mod linear;

pub use encoder::{EncoderLayer, LayerNormWeights, SelfAttention, encode, encode_then};
pub use linear::{FeedForward, Gelu, Linear};
