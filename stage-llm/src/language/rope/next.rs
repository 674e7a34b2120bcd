//! What a text's next token is rotated and written by.

use super::RopeTable;
use crate::language::cache::LayerCache;

/// Next token of a text: where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// Rotations of the text's positions.
    pub table: &'a RopeTable,
    /// Position of the token.
    pub at: usize,
    /// Keys and values of the text in the layer.
    pub cache: &'a LayerCache,
}
